import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.reports import figures, glossary
from bids_gsrecon.reports.html import collect_sessions, write_participant_report
from tests.phantoms import head


class Page(HTMLParser):
    """Collects tags, links and ids; complains about unbalanced tags."""

    VOID = ('meta', 'img', 'br', 'link', 'input', 'hr')

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ''
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ('script', 'style'):
            self.text += data

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture
def output(tmp_path):
    t1w, t2w, mask, _ = head((24, 26, 22))
    view = figures.make_view(t1w.lattice, mask)
    folder = tmp_path / 'sub-01' / 'figures'
    folder.mkdir(parents=True)
    plain = figures.gray_montage(t2w, view, window=(0, 500))
    for session in ('', '_ses-b'):
        (folder / f'sub-01{session}_desc-reference_T1w.png').write_bytes(
            figures.gray_montage(t1w, view, window=(0, 800))
        )
        (folder / f'sub-01{session}_desc-summary_T1w.json').write_text(
            '{"method": "harmonize", "n_contrasts": 1}'
        )
        for part in ('before', 'after'):
            (folder / f'sub-01{session}_acq-ax_space-T1w_desc-{part}_T2w.png').write_bytes(plain)
        merit = {'figures': {'residual_rms_percent': 2.0, 'seconds_prior': 4.5, 'something_new_mm': 3.25},
                 'input_shape': [24, 26, 4], 'input_voxel_mm': [1, 1, 5], 'output_shape': [24, 26, 22],
                 'output_voxel_mm': [1, 1, 1]}  # fmt: skip
        (folder / f'sub-01{session}_acq-ax_desc-merit_T2w.json').write_text(json.dumps(merit))
    residual = figures.residual_montage(Volume(np.ones(t1w.data.shape), t1w.lattice))
    (folder / 'sub-01_acq-ax_desc-residual_T2w.png').write_bytes(residual)
    return tmp_path


def test_page_is_self_contained_and_complete(output):
    path = write_participant_report(
        output,
        '01',
        boilerplate='# Method\n\nDone with **care** (doi:10.1000/x1, arXiv:2606.02961) [1].\n\n'
        '- [1] A & B <i>.',
        run_info={'command': 'bids_gsrecon a b', 'wall_time_s': 12.5},
    )
    assert path == output / 'sub-01.html'
    text = path.read_text()
    page = Page(text)
    for source in page.values('src'):
        assert source.startswith('data:image/png;base64,')
    assert not [tag for tag, _ in page.tags if tag in ('link', 'iframe', 'object')]
    assert '@import' not in text and not re.search(r'url\(', text)
    links = page.values('href')
    assert 'https://doi.org/10.1000/x1' in links and 'https://arxiv.org/abs/2606.02961' in links
    ids = page.values('id')
    assert len(ids) == len(set(ids))
    for link in links:
        assert not link.startswith('#') or link[1:] in ids
    assert 'A & B <i>.' in page.text  # escaped, not interpreted
    assert '24×26×4 voxels of 1×1×5 mm → 24×26×22 voxels of 1×1×1 mm' in page.text
    assert 'Slice residual' in page.text and 'Seconds prior' in page.text
    assert 'Something new (mm)' in page.text and '3.25' in page.text
    assert 'bids_gsrecon a b' in page.text
    assert 'nothing stands out' in page.text


def test_sessions_and_contrasts_are_grouped_by_entities(output):
    sessions = collect_sessions(output / 'sub-01' / 'figures')
    assert [s.label for s in sessions] == ['', 'ses-b']
    assert [[scan.name for scan in s.scans] for s in sessions] == [['acq-ax_T2w']] * 2
    first = sessions[0].scans[0]
    assert [flip[0] for flip in first.flips] == ['before', 'after', 'reference']
    assert 'residual' in first.pictures and 'residual' not in sessions[1].scans[0].pictures
    assert dict(sessions[0].facts)['Method'] == 'harmonize'


def test_only_pictures_of_one_size_flip(output):
    folder = output / 'sub-01' / 'figures'
    (folder / 'sub-01_desc-reference_T1w.png').write_bytes(
        (folder / 'sub-01_acq-ax_desc-residual_T2w.png').read_bytes()
    )
    scan = collect_sessions(folder)[0].scans[0]
    assert [flip[0] for flip in scan.flips] == ['before', 'after']


def test_tables_warnings_and_pictures_of_a_volume(output):
    folder = output / 'sub-01' / 'figures'
    merit = {
        'figures': {'ncc_mean': 0.4, 'excluded_percent': 1.0},
        'input_text': '3 stacks, 60 slices of 3 mm',
        'output_shape': [9, 9, 9],
        'output_voxel_mm': [0.8] * 3,
        'warnings': ['stack <2> has no mask.'],
        'tables': [
            {
                'title': 'Stacks',
                'text': 'One row each.',
                'columns': ['Stack', 'NCC'],
                'rows': [['<a>', '0.91']],
            },
            {'title': 'Excluded slices: none', 'text': '', 'columns': ['Stack'], 'rows': []},
        ],
    }
    (folder / 'sub-01_rec-svr_desc-merit_T2w.json').write_text(json.dumps(merit))
    (folder / 'sub-01_rec-svr_desc-motion_T2w.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / 'sub-01_rec-svr_desc-later_T2w.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    path = write_participant_report(output, '01')
    page = Page(path.read_text())
    for words in (
        '3 stacks, 60 slices of 3 mm → 9×9×9 voxels of 0.8×0.8×0.8 mm',
        'stack <2> has no mask.',
        'One row each.',
        'Excluded slices: none',
        'Slices against the others 0.4 is below 0.6',
    ):
        assert words in page.text
    cells = [text for text in ('<a>', '0.91') if text in page.text]
    assert len(cells) == 2
    assert page.text.index('Motion of every slice') < page.text.index('Later')
    assert sum(source.startswith('data:image/svg+xml') for source in page.values('src')) == 2


def test_errors_are_shown_and_decide_the_verdict(output):
    errors = [
        {
            'node': 'harmonize_wf.fit',
            'error': 'ValueError: <no overlap>',
            'file': 'crash.txt',
            'traceback': ['a\n', 'b'],
        },
        'sub-01 has no T1w: add one.',
    ]
    page = Page(write_participant_report(output, '01', errors=errors).read_text())
    for words in (
        '2 step(s) failed',
        'harmonize_wf.fit',
        'ValueError: <no overlap>',
        'crash.txt',
        'has no T1w',
    ):
        assert words in page.text


def test_report_of_nothing(tmp_path):
    (tmp_path / 'sub-02').mkdir()
    page = Page(write_participant_report(tmp_path, '02').read_text())
    assert 'No contrast was reconstructed' in page.text


def test_broken_reportlets_are_left_out(output):
    folder = output / 'sub-01' / 'figures'
    (folder / 'sub-01_acq-ax_desc-merit_T2w.json').write_text('{"figures": ')
    (folder / 'sub-01_desc-summary_T1w.json').write_text('[1]')
    (folder / 'notes.txt').write_text('')
    (folder / 'sub-01_something.txt').write_text('')
    page = Page(write_participant_report(output, '01').read_text())
    assert 'acq-ax_T2w' in page.text


def test_figures_of_merit_beyond_their_limits_ask_for_a_look(output):
    folder = output / 'sub-01' / 'figures'
    name, figure = next((k, v) for k, v in glossary.GLOSSARY.items() if v.high is not None)
    merit = {'figures': {name: 10 * figure.high}}
    (folder / 'sub-01_acq-ax_desc-merit_T2w.json').write_text(json.dumps(merit))
    page = Page(write_participant_report(output, '01').read_text())
    assert 'look closely at acq-ax_T2w' in page.text and f'{figure.title} ' in page.text
    assert glossary.verdict_of({name: 0.1 * figure.high}) == ('good', [])
    assert glossary.verdict_of({name: float('nan')})[0] == 'check'


def test_numbers_and_names_read_well():
    assert glossary.number(123456) == '123\u202f456'
    assert glossary.number(0.123456) == '0.1235'
    assert glossary.number([1, 2.5]) == '1, 2.5'
    assert glossary.number(True) == 'yes'
    assert glossary.humanise('slice_thickness_mm') == 'Slice thickness (mm)'
