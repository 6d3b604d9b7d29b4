import io

from bids_gsrecon.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_draws_stages_with_remaining_time_on_a_terminal():
    stream = Terminal()
    with ProgressBar(stream) as progress:
        for stage in ('scaffold', 'appearance of T2w'):
            for done in range(1, 4):
                progress(stage, done, 3)
    text = stream.getvalue()
    assert 'scaffold' in text and 'appearance of T2w' in text and '3/3' in text and '<' in text


def test_is_silent_elsewhere():
    stream = io.StringIO()
    with ProgressBar(stream) as progress:
        progress('scaffold', 1, 3)
    assert stream.getvalue() == ''
