import json
import os
import re

import pytest

from bids_gsrecon.cli.group import run_group
from bids_gsrecon.cli.locks import Locks
from bids_gsrecon.cli.outcome import FAILED, OK, SKIPPED, UNFINISHED, Outcome, write_status
from bids_gsrecon.config import Config, Execution
from bids_gsrecon.reports.group import unlike_the_others
from tests.bids_datasets import write_description


@pytest.fixture
def dataset(tmp_path):
    """Settings of the group level of six participants."""
    bids = write_description(tmp_path / 'bids')
    for label in ('01', '02', '03', '04', '05', '06'):
        (bids / f'sub-{label}').mkdir()
    (tmp_path / 'out').mkdir()
    return Config(Execution(bids_dir=str(bids), output_dir=str(tmp_path / 'out'), analysis_level='group'))


def finished(config, run, *outcomes, code=0, at=1000.0):
    execution = Execution(output_dir=config.execution.output_dir, run_uuid=run)
    path = write_status(Config(execution), list(outcomes), code=code, line='', started=0.0)
    os.utime(path, (at, at))


def merit(config, label, suffix, **figures):
    folder = config.output_dir / f'sub-{label}' / 'figures'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'sub-{label}_ses-1_acq-ax_desc-merit_{suffix}.json'
    path.write_text(json.dumps({'figures': figures}))
    return path


def table(config, name):
    lines = (config.output_dir / name).read_text().splitlines()
    return [dict(zip(lines[0].split('\t'), line.split('\t'))) for line in lines[1:]]


def test_nothing_was_run_yet(dataset, capsys):
    assert run_group(dataset) == 70
    assert 'NOTHING TO DO' in capsys.readouterr().out
    assert list(dataset.output_dir.iterdir()) == []


def test_everyone_is_in_the_table_with_the_last_that_became_of_him(dataset, capsys):
    finished(
        dataset, 'a', Outcome('01', FAILED, ['sub-01 is broken.']), Outcome('02', OK, recon='svr'), at=1000
    )
    finished(
        dataset,
        'b',
        Outcome('01', OK, recon='svr'),
        Outcome('03', FAILED, ['sub-03: a <b>\nbad\tfile.']),
        at=2000,
    )
    finished(
        dataset, 'c', Outcome('04', UNFINISHED), Outcome('05', UNFINISHED), Outcome('06', SKIPPED), at=3000
    )
    running = Locks('c')
    running.acquire([dataset.output_dir / 'logs' / '.lock-sub-05'])
    (dataset.bids_dir / 'sub-07').mkdir()
    assert run_group(dataset) == 0
    rows = table(dataset, 'group_status.tsv')
    assert [(row['participant_id'], row['status']) for row in rows] == [
        ('sub-03', 'failed'),
        ('sub-04', 'killed'),
        ('sub-07', 'not run'),
        ('sub-05', 'running'),
        ('sub-01', 'ok'),
        ('sub-02', 'ok'),
        ('sub-06', 'nothing to do'),
    ]
    assert rows[0]['why'] == 'sub-03: a <b> bad file.'
    assert 'run it again' in rows[1]['why']
    assert rows[4]['run'] == 'b'
    assert (dataset.output_dir / 'group_rerun.txt').read_text() == '03\n04\n07\n'
    said = capsys.readouterr().out
    assert (
        'SUCCESS: 7 participant(s): 1 failed (sub-03), 1 killed (sub-04), 1 not run (sub-07), 1 running, 2 ok'
        in said
    )
    page = (dataset.output_dir / 'group.html').read_text()
    assert '--participant-label 03 04 07' in page
    assert 'a &lt;b&gt;' in page
    assert not re.search(r'(src|href)="(https?:|//)', page), 'it opens offline'
    running.release()


def test_figures_of_merit_are_gathered(dataset):
    for label, value in (('01', 1.5), ('02', 2.5)):
        merit(dataset, label, 'T2w', residual_rms_percent=value)
    merit(dataset, '02', 'FLAIR').write_text('not json')
    assert run_group(dataset) == 0
    assert (dataset.output_dir / 'group_merit.tsv').read_text().splitlines() == [
        'participant_id\tsession_id\tcontrast\tquality\tresidual_rms_percent',
        'sub-01\tses-1\tacq-ax_T2w\tgood\t1.5',
        'sub-02\tses-1\tacq-ax_T2w\tgood\t2.5',
    ]


def test_a_training_does_not_count_as_a_run_of_its_participants(dataset):
    finished(dataset, 'a', Outcome('01', OK, recon='svr'), at=1000)
    execution = Execution(output_dir=dataset.execution.output_dir, run_uuid='b', analysis_level='group')
    write_status(Config(execution), [Outcome('01', FAILED, ['no pair.'])], code=1, line='', started=0.0)
    run_group(dataset)
    assert (
        next(row for row in table(dataset, 'group_status.tsv') if row['participant_id'] == 'sub-01')['status']
        == 'ok'
    )


def test_only_those_asked_for(dataset):
    merit(dataset, '01', 'T2w', residual_rms_percent=1.0)
    merit(dataset, '02', 'T2w', residual_rms_percent=99.0)
    dataset.execution.participant_label = ['02']
    assert run_group(dataset) == 0
    rows = table(dataset, 'group_status.tsv')
    assert [(row['participant_id'], row['quality']) for row in rows] == [('sub-02', 'check')]


def test_again_it_writes_nothing_new(dataset):
    finished(dataset, 'a', Outcome('01', OK))
    merit(dataset, '01', 'T2w', residual_rms_percent=1.0)
    run_group(dataset)
    before = {path: path.stat().st_mtime_ns for path in dataset.output_dir.glob('group*')}
    run_group(dataset)
    assert {path: path.stat().st_mtime_ns for path in dataset.output_dir.glob('group*')} == before
    assert len(before) == 4


def test_tables_can_be_made_where_the_images_are_not(dataset, tmp_path):
    finished(dataset, 'a', Outcome('01', OK))
    (dataset.output_dir / 'sub-01').mkdir()
    dataset.execution.bids_dir = str(tmp_path / 'out')
    assert run_group(dataset) == 0


def test_values_unlike_the_others_are_marked():
    from bids_gsrecon.cli.group_status import Contrast

    values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 9.0]
    contrasts = [(f'{n}', Contrast('T2w', 'n/a', {'x': value}, 'good', [])) for n, value in enumerate(values)]
    assert unlike_the_others(contrasts) == {('7', 'n/a', 'T2w', 'x')}
    assert unlike_the_others(contrasts[1:]) == set(), 'too few to tell'
