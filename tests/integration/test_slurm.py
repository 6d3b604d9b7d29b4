"""On a real SLURM of one node, on brains of 20 voxels: the array job of ``gsrecon slurm``, and --use-plugin."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bids_datasets import healthy
from tests.integration.test_app import FAST, last_status, results, run
from tests.slurm_cluster import missing_programs, one_node

ASKED = os.environ.get('GSRECON_TEST_SLURM', '')
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not ASKED, reason='takes minutes: set GSRECON_TEST_SLURM=1 (and install slurm-wlm and munge)'
    ),
]
PLUGIN = """\
plugin: SLURM
plugin_args:
  sbatch_args: --cpus-per-task=1 --mem=1500M --time=10 --output={folder}/node-%j.out
"""


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """The environment of commands on the cluster."""
    if missing := missing_programs():
        pytest.fail(
            f'GSRECON_TEST_SLURM is set, but {", ".join(missing)} is not installed (slurm-wlm, munge)'
        )
    folder = tmp_path_factory.mktemp('slurm')
    bin_folder = folder / 'bin'
    bin_folder.mkdir()
    program = bin_folder / 'bids_gsrecon'
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m bids_gsrecon "$@"\n')
    program.chmod(0o755)
    with one_node(folder) as environment:
        environment['PATH'] = f'{bin_folder}:{environment["PATH"]}'
        yield environment


def shell(command: str, environment: dict, folder: Path, timeout: float = 60) -> str:
    done = subprocess.run(
        ['bash', '-c', command], env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_job(root: Path, environment: dict, *, cpus: int = 2) -> Path:
    """The scripts of ``gsrecon slurm``, with the program of this environment; their folder."""
    app = [argument for argument in FAST if not argument.startswith('--mem') and argument != '6G']
    command = [sys.executable, '-m', 'bids_gsrecon.cli.direct', 'slurm', 'bids', 'out', '-w', 'work',
               '--cpus-per-task', str(cpus), '--mem', '1900M', '--', *app, '--recon', 'harmonize']  # fmt: skip
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = root / 'out' / 'logs' / 'slurm'
    script = folder / 'array.sbatch'
    lines = script.read_text().splitlines(keepends=True)
    script.write_text(
        ''.join('PROGRAM=bids_gsrecon\n' if line.startswith('PROGRAM=') else line for line in lines)
    )
    return folder


def state_of(job: str, environment: dict, folder: Path) -> dict:
    """What the controller knows of a task: JobState, ExitCode, Restarts, ..."""
    words = shell(f'scontrol show job {job} --oneliner', environment, folder).split()
    return dict(word.split('=', 1) for word in words if '=' in word)


def wait_for(condition, seconds: float, what: str):
    began = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - began < seconds, f'{what}: not within {seconds} s'
        time.sleep(0.5)
    return value


def wait_for_end(job: str, environment: dict, folder: Path, seconds: float) -> dict:
    def ended():
        known = state_of(job, environment, folder)
        return known if known['JobState'] in ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT') else None

    return wait_for(ended, seconds, f'the end of job {job}')


def test_two_participants_through_the_array(cluster, tmp_path):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    folder = make_job(tmp_path, cluster, cpus=1)
    said = shell(f'bash {folder}/submit.sh', cluster, tmp_path)
    job = said.split()[1].rstrip(':')
    assert said == f'job {job}: 2 participant(s)\n'
    for task in (1, 2):
        known = wait_for_end(f'{job}_{task}', cluster, tmp_path, 500)
        log = (folder / f'{job}_{task}.out').read_text()
        assert (known['JobState'], known['ExitCode']) == ('COMPLETED', '0:0'), log
        assert 'SUCCESS: 1 of 1 participant(s) done' in log
        assert '1 thread(s) per node, 1 in all' in log, 'it takes what was granted, not the machine'
    for label in ('01', '02'):
        assert f'sub-{label}/anat/sub-{label}_space-T1w_res-iso_desc-sr_T2w.nii.gz' in results(
            tmp_path / 'out'
        )
        assert (tmp_path / 'out' / f'sub-{label}.html').is_file()
    assert len(list((tmp_path / 'out' / 'logs').glob('*/status.json'))) == 2
    assert not list((tmp_path / 'out').rglob('.tmp-*'))


def running_step(root: Path, label: str):
    """Whether a task is past its first steps: then there is something to keep."""
    return list((root / 'work' / f'sub-{label}').rglob('result_bias_field.pklz'))


def test_a_task_that_is_out_of_time_goes_on_in_its_next_one(cluster, tmp_path):
    healthy(tmp_path / 'bids')
    undisturbed = run(tmp_path, '--recon', 'harmonize', '--nprocs', '1', out='alone', work='work-alone')
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = make_job(tmp_path, cluster)
    job = shell(f'bash {folder}/submit.sh', cluster, tmp_path).split()[1].rstrip(':')
    log = folder / f'{job}_1.out'
    wait_for(lambda: running_step(tmp_path, '01'), 300, 'the first steps')
    # What SLURM sends a batch shell before its time limit.
    shell(f'scancel --batch --signal=USR1 {job}_1', cluster, tmp_path)
    wait_for(lambda: 'submitted again (restart 1 of 3)' in log.read_text(), 170, 'a clean end')
    assert 'INTERRUPTED' in log.read_text()
    status = last_status(tmp_path / 'out')
    assert status['exit_code'] == 130
    shell(f'scontrol update jobid={job}_1 starttime=now', cluster, tmp_path)
    known = wait_for_end(f'{job}_1', cluster, tmp_path, 500)
    assert (known['JobState'], known['Restarts']) == ('COMPLETED', '1'), log.read_text()
    assert last_status(tmp_path / 'out')['exit_code'] == 0
    assert results(tmp_path / 'out') == results(tmp_path / 'alone'), 'as if nothing had happened'


def test_a_cancelled_task_ends_and_stays_cancelled(cluster, tmp_path):
    healthy(tmp_path / 'bids')
    folder = make_job(tmp_path, cluster)
    job = shell(f'bash {folder}/submit.sh', cluster, tmp_path).split()[1].rstrip(':')
    wait_for(lambda: running_step(tmp_path, '01'), 300, 'the first steps')
    shell(f'scancel {job}_1', cluster, tmp_path)
    known = wait_for_end(f'{job}_1', cluster, tmp_path, 60)
    assert (known['JobState'], known['Restarts']) == ('CANCELLED', '0')


def plugin_file(folder: Path) -> Path:
    path = folder / 'plugin.yml'
    path.write_text(PLUGIN.format(folder=folder))
    return path


def app_with_plugin(root: Path, environment: dict) -> subprocess.Popen:
    command = [sys.executable, '-m', 'bids_gsrecon', 'bids', 'out', 'participant', '-w', 'work', *FAST,
               '--recon', 'harmonize', '--use-plugin', str(plugin_file(root))]  # fmt: skip
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_workflow_whose_steps_are_jobs(cluster, tmp_path):
    healthy(tmp_path / 'bids')
    undisturbed = run(tmp_path, '--recon', 'harmonize', '--nprocs', '1', out='alone', work='work-alone')
    assert undisturbed.returncode == 0, undisturbed.stderr
    started = app_with_plugin(tmp_path, cluster)
    out, err = started.communicate(timeout=580)
    assert started.returncode == 0, out + err
    assert 'SUCCESS' in out
    assert len(list(tmp_path.glob('node-*.out'))) > 5, 'its steps were jobs'
    assert results(tmp_path / 'out') == results(tmp_path / 'alone')


def test_a_cancelled_step_is_a_failure_that_names_it(cluster, tmp_path):
    healthy(tmp_path / 'bids')
    started = app_with_plugin(tmp_path, cluster)

    def first_job():
        done = subprocess.run(
            ['squeue', '-h', '-t', 'R', '-o', '%A'], env=cluster, capture_output=True, text=True
        )
        return done.stdout.split()

    jobs = wait_for(first_job, 120, 'the first step')
    shell(f'scancel {" ".join(jobs)}', cluster, tmp_path)
    out, err = started.communicate(timeout=400)
    assert started.returncode == 1, out + err
    assert 'FAILED' in out.strip().splitlines()[-1]
    status = last_status(tmp_path / 'out')
    errors = status['participants']['01']['errors']
    assert any('SLURM job' in error and 'run the same command again' in error for error in errors), (
        json.dumps(status)
    )
    assert status['participants']['01']['crash_files']
