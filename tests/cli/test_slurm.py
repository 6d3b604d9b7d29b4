"""``gsrecon slurm``: what it writes for a data set, run with stand-ins for sbatch and the program."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from bids_gsrecon.cli.direct import main
from bids_gsrecon.cli.outcome import FAILED, OK, Outcome, write_status
from bids_gsrecon.config import Config, Execution
from bids_gsrecon.interfaces.m2asr_files import save_weights
from tests.bids_datasets import affine, anat, brain, healthy, write_image, write_thick
from tests.helpers import require_program
from tests.m2asr_fakes import fake_model


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Two participants; the working directory is the folder that holds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('APPTAINER_CONTAINER', raising=False)
    return healthy(tmp_path / 'bids', labels=('01', '02'))


def slurm(*arguments):
    return main(['slurm', *map(str, arguments)])


def fails(capsys, *arguments) -> str:
    assert slurm(*arguments) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith('gsrecon slurm: error: ') and 'Traceback' not in said.err
    assert said.out == ''
    return lines[-1]


def directives(script: Path) -> dict:
    return dict(re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', script.read_text(), re.MULTILINE))


def test_scripts_of_a_data_set(dataset, tmp_path, capsys):
    options = ['--partition', 'short', '--account', 'me', '--cpus-per-task', '2', '--concurrent', '7']
    assert slurm('bids', 'out', '-w', 'scratch', *options, '--', '--recon', 'harmonize', '--sloppy') == 0
    verdict = capsys.readouterr().out.strip()
    folder = tmp_path / 'out' / 'logs' / 'slurm'
    assert verdict.startswith('gsrecon slurm: ok, 2 of 2 participant(s), each 2 processors, ')
    assert verdict.endswith(f'-> bash {folder}/submit.sh')
    assert (folder / 'participants.txt').read_text() == '01\n02\n'
    asked = directives(folder / 'array.sbatch')
    assert (asked['partition'], asked['account'], asked['cpus-per-task']) == ('short', 'me', '2')
    assert re.fullmatch(r'\d+G', asked['mem']) and re.fullmatch(r'\d\d:\d\d:00', asked['time'])
    assert asked['chdir'] == str(tmp_path) and asked['output'] == f'{folder}/%A_%a.out'
    assert asked['signal'] == 'B:USR1@180' and 'requeue' in asked
    assert 'qos' not in asked and 'gres' not in asked
    assert f'{asked["mem"]} and {asked["time"]}' in verdict
    lines = (folder / 'array.sbatch').read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith('#SBATCH'))
    assert all(line.startswith('#') for line in lines[: last + 1]), (
        'sbatch stops reading at the first command'
    )
    assert not list((tmp_path / 'out').rglob('.tmp-*'))


def test_scripts_are_sound_shell(dataset, tmp_path):
    assert slurm('bids', 'out', '--image', dataset / 'README') == 0
    folder = tmp_path / 'out' / 'logs' / 'slurm'
    program = require_program('shellcheck')
    found = subprocess.run(
        [program, folder / 'array.sbatch', folder / 'submit.sh'], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def _stub(folder, name, body):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def task(tmp_path):
    """Run a task of the script with stand-ins for the programs; what was called, one word per line."""
    (tmp_path / 'bin').mkdir()
    for name in ('bids_gsrecon', 'apptainer'):
        _stub(tmp_path / 'bin', name, f'printf "%s\\n" {name} "$@"')

    def run(number, **more):
        script = tmp_path / 'out' / 'logs' / 'slurm' / 'array.sbatch'
        text = re.sub(r'^PROGRAM=.*$', 'PROGRAM=bids_gsrecon', script.read_text(), flags=re.MULTILINE)
        environment = {
            'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
            'BIDS_DIR': '/of/another/data/set',
            'SLURM_ARRAY_TASK_ID': str(number),
            **more,
        }
        done = subprocess.run(
            ['bash', '-c', text, '--', '--more'], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_task_runs_its_participant_with_the_arguments_given(dataset, tmp_path, task):
    (tmp_path / 'filters.json').write_text('{}')
    (tmp_path / 'masks').mkdir()
    options = ['--recon', 'harmonize', '--bids-filter-file', 'filters.json', '-d', 'fmriprep=masks']
    assert slurm('bids', 'out', '-w', 'scratch', '--', *options) == 0
    called = task(2)
    assert called[:4] == ['bids_gsrecon', str(dataset), str(tmp_path / 'out'), 'participant']
    assert called[called.index('--participant-label') + 1] == '02'
    assert called[called.index('--work-dir') + 1] == f'{tmp_path}/scratch/sub-02'
    assert called[called.index('--recon') + 1] == 'harmonize'
    assert called[called.index('--bids-filter-file') + 1] == f'{tmp_path}/filters.json'
    assert called[called.index('-d') + 1] == f'fmriprep={tmp_path}/masks'
    assert '--more' in called


def test_a_task_runs_its_own_participant_alone(dataset, tmp_path, task):
    assert slurm('bids', 'out', '--', '--participant-label', 'sub-02', '--recon', 'harmonize') == 0
    assert (tmp_path / 'out/logs/slurm/participants.txt').read_text() == '02\n'
    called = task(1)
    assert called.count('--participant-label') == 1
    assert called[called.index('--participant-label') + 1 :][0] == '02' and '01' not in called


def test_a_container_sees_every_path_that_is_named(dataset, tmp_path, task, monkeypatch):
    (tmp_path / 'app.sif').touch()
    (tmp_path / 'masks').mkdir()
    options = ['--image', 'app.sif', '--', '-d', 'masks', '--bids-database-dir', 'database']
    assert slurm('bids', 'out', *options) == 0
    called = task(1)
    assert called[:2] == ['apptainer', 'run'] and f'{tmp_path}/app.sif' in called
    assert f'{tmp_path}/database:{tmp_path}/database,{tmp_path}/masks:{tmp_path}/masks:ro' in called
    monkeypatch.setenv('APPTAINER_CONTAINER', '/apps/this.sif')
    assert slurm('bids', 'out') == 0
    assert '/apps/this.sif' in task(1), 'started in a container, the tasks run in it too'


def test_trained_weights_are_seen_too(dataset, tmp_path, task):
    save_weights(tmp_path / 'net.h5', fake_model())
    folder, stem = anat(dataset, '01', None)
    coarse = (8.0, 8.0, 8.0)
    write_image(folder / f'{stem}_acq-coarse_T2w.nii.gz', brain((10, 10, 10), coarse, -1.0), affine(coarse))
    (tmp_path / 'app.sif').touch()
    options = ['--participant-label', '01', '--recon', 'm2asr', '--weights', 'net.h5']
    assert slurm('bids', 'out', '--image', 'app.sif', '--', *options) == 0
    called = task(1)
    assert called[called.index('--weights') + 1] == f'{tmp_path}/net.h5'
    assert any(f'{tmp_path}/net.h5:{tmp_path}/net.h5:ro' in word for word in called)


def test_a_gpu_is_asked_for_where_there_is_none_here(dataset, tmp_path, task):
    script = tmp_path / 'out' / 'logs' / 'slurm' / 'array.sbatch'
    for options in (['--gpus', '1'], ['--', '--device', 'cuda'], ['--gpus', '1', '--', '--device', 'cuda']):
        assert slurm('bids', 'out', *options) == 0
        assert directives(script)['gres'] == 'gpu:1'
        called = task(1)
        assert called.count('--device') == 1 and called[called.index('--device') + 1] == 'cuda'
    assert slurm('bids', 'out', '--', '--device', 'cpu') == 0
    assert 'gres' not in directives(script) and 'cpu' in task(1)


def test_who_has_nothing_to_reconstruct_is_said_and_left_out(dataset, tmp_path, capsys):
    write_thick(dataset, '03')
    assert slurm('bids', 'out', '--', '--recon', 'harmonize') == 0
    said = capsys.readouterr()
    assert 'left out: sub-03 has no T1w' in said.err
    assert '2 of 3 participant(s)' in said.out
    assert (tmp_path / 'out/logs/slurm/participants.txt').read_text() == '01\n02\n'


def test_only_the_unfinished(dataset, tmp_path, capsys):
    config = Config(Execution(output_dir=str(tmp_path / 'out'), run_uuid='1'))
    write_status(config, [Outcome('01', OK), Outcome('02', FAILED)], code=1, line='', started=0.0)
    assert slurm('bids', 'out', '--unfinished') == 0
    assert (tmp_path / 'out/logs/slurm/participants.txt').read_text() == '02\n'
    assert slurm('bids', 'out') == 0
    assert (tmp_path / 'out/logs/slurm/participants.txt').read_text() == '01\n02\n'
    write_status(config, [Outcome('01', OK), Outcome('02', OK)], code=0, line='', started=0.0)
    capsys.readouterr()
    assert 'nothing to submit' in fails(capsys, 'bids', 'out', '--unfinished')


def test_resources_can_be_given(dataset, tmp_path):
    assert slurm('bids', 'out', '--mem', '12G', '--time', '1-02:00:00', '--max-restarts', '1') == 0
    script = tmp_path / 'out/logs/slurm/array.sbatch'
    assert (directives(script)['mem'], directives(script)['time']) == ('12G', '1-02:00:00')
    assert '\nMAX_RESTARTS=1\n' in script.read_text()


def test_submission_in_as_many_arrays_as_the_cluster_asks_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    healthy(tmp_path / 'bids', labels=[f'{n:02d}' for n in range(1, 6)])
    assert slurm('bids', 'out', '--concurrent', '3') == 0
    (tmp_path / 'bin').mkdir()
    _stub(tmp_path / 'bin', 'scontrol', 'echo "MaxArraySize            = 3"')
    _stub(tmp_path / 'bin', 'sbatch', f'echo "$OFFSET $*" >> {tmp_path}/calls; wc -l < {tmp_path}/calls')
    environment = {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
    script = tmp_path / 'out/logs/slurm/submit.sh'
    done = subprocess.run(['bash', script, '--nice'], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'job 1: 2 participant(s)',
        'job 2: 2 participant(s)',
        'job 3: 1 participant(s)',
    ]
    calls = [call.replace(str(tmp_path), '.') for call in (tmp_path / 'calls').read_text().splitlines()]
    tail = '--nice ./out/logs/slurm/array.sbatch'
    assert calls == [
        f'0 --parsable --array=1-2%3 {tail}',
        f'2 --parsable --array=1-2%3 --dependency=afterany:1 {tail}',
        f'4 --parsable --array=1-1%3 --dependency=afterany:2 {tail}',
    ]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nowhere', 'out'], 'nowhere is not a folder'),
        (['bids', 'bids'], 'is the input dataset'),
        (['bids', 'out', '--time', 'soon'], '--time soon is no time limit'),
        (['bids', 'out', '--mem', 'much'], "--mem 'much' is not an amount of memory"),
        (['bids', 'out', '--image', 'no.sif'], '--image no.sif does not exist'),
        (['bids', 'out', '--partition', 'a b'], "--partition 'a b' is no name"),
        (['bids', 'out', '--', '--recon', 'magic'], 'invalid choice'),
        (['bids', 'out', '--', '--work-dir', 'x'], '--work-dir belongs before the --'),
        (['bids', 'out', '--', '--mem=8G'], '--mem belongs before the --'),
        (['bids', 'out', '--', '--device', 'tpu'], 'invalid choice'),
        (['bids', 'out', '--', '--participant-label', '01', '09'], 'has no sub-09'),
        (['bids', 'out', '--', '--recon', 'cine'], 'no participant has anything to reconstruct'),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(dataset, tmp_path, capsys, arguments, words):
    assert words in fails(capsys, *arguments)
    assert not (tmp_path / 'out/logs/slurm/array.sbatch').exists()
