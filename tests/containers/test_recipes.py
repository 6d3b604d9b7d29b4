"""The container recipes agree with each other and with the project; scripts are sound shell."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers import require_program

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / 'containers' / 'install.sh'
DOCKERFILE = ROOT / 'containers' / 'Dockerfile'
SINGULARITY = ROOT / 'Singularity.def'
ARRAY = ROOT / 'containers' / 'slurm' / 'array.sbatch'
SCRIPTS = [INSTALL, ARRAY]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_stop_on_errors(script):
    assert script.read_text().startswith('#!/usr/bin/env bash\n')
    assert 'set -euo pipefail' in script.read_text()
    subprocess.run(['bash', '-n', script], check=True)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(script):
    program = require_program('shellcheck')
    found = subprocess.run([program, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_both_images_use_the_one_script_on_the_same_base():
    docker, singularity = DOCKERFILE.read_text(), SINGULARITY.read_text()
    base = re.search(r'^FROM (\S+)$', docker, re.MULTILINE).group(1)
    assert base.startswith('debian:bookworm')
    assert re.search(r'^Bootstrap: docker$', singularity, re.MULTILINE)
    assert re.search(r'^From: (\S+)$', singularity, re.MULTILINE).group(1) == base
    for recipe in (docker, singularity):
        assert recipe.count('containers/install.sh') >= 1
        assert 'apt-get' not in recipe and 'pip install' not in recipe


def test_both_images_set_the_same_environment():
    docker = DOCKERFILE.read_text().split('\nENV ')[1].split('\nENTRYPOINT')[0]
    docker = dict(re.findall(r'(\w+)=(\S+)', docker.replace('\\\n', '')))
    block = SINGULARITY.read_text().split('%environment')[1].split('%runscript')[0]
    singularity = dict(re.findall(r'export (\w+)=(\S+)', block))
    assert docker == singularity
    assert docker['PYTHONNOUSERSITE'] == '1'
    assert docker['NUMBA_CACHE_DIR'].startswith(_default('PREFIX'))


def _default(name):
    return re.search(rf'^{name}="\$\{{{name}:-([^}}]*)\}}"$', INSTALL.read_text(), re.MULTILINE).group(1)


def test_torch_is_the_same_everywhere():
    makefile = (ROOT / 'Makefile').read_text()
    pinned = re.search(r'^TORCH \?= (\S+)$', makefile, re.MULTILINE).group(1)
    assert _default('TORCH') == pinned
    assert re.search(r'^ARG TORCH=(\S+)$', DOCKERFILE.read_text(), re.MULTILINE).group(1) == pinned


def test_everything_that_is_copied_exists_and_everything_needed_is_copied():
    block = SINGULARITY.read_text().split('%files')[1].split('%post')[0]
    pairs = [line.split() for line in block.strip().splitlines()]
    for source, target in pairs:
        assert (ROOT / source).exists(), source
        assert target.endswith('/' + source)
    copied = {source for source, _ in pairs}
    needed = set(re.findall(r'"\$SOURCE/([\w.]+)" ', INSTALL.read_text()))
    assert {'bids_gsrecon', 'gpu', 'workflows', 'setup.cfg'} <= needed
    assert needed <= copied


def test_the_programs_are_those_of_setup_cfg():
    scripts = re.findall(r'^    (\w+) = bids_gsrecon\.cli', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)
    assert (
        re.search(r'^for program in (.*); do$', INSTALL.read_text(), re.MULTILINE).group(1).split() == scripts
    )


def _stub(folder, name, body):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def array_setup(tmp_path):
    for label in ('02', '10', '01'):
        (tmp_path / 'bids' / f'sub-{label}').mkdir(parents=True)
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    for name in ('bids_gsrecon', 'apptainer'):
        _stub(bin_folder, name, f'printf "%s\\n" {name} "$@"')
    environment = {
        'PATH': f'{bin_folder}:{os.environ["PATH"]}',
        'BIDS_DIR': str(tmp_path / 'bids'),
        'OUTPUT_DIR': str(tmp_path / 'out'),
        'WORK_DIR': str(tmp_path / 'work'),
        'SLURM_CPUS_PER_TASK': '4',
        'SLURM_MEM_PER_NODE': '16384',
    }

    def run(task, *arguments, **more):
        return subprocess.run(
            ['bash', ARRAY, *arguments],
            env={**environment, 'SLURM_ARRAY_TASK_ID': str(task), **more},
            capture_output=True,
            text=True,
        )

    return run


def test_array_task_runs_its_participant(array_setup, tmp_path):
    done = array_setup(2, '--recon', 'harmonize')
    assert done.returncode == 0, done.stderr
    called = done.stdout.split('\n')
    assert called[:4] == ['bids_gsrecon', str(tmp_path / 'bids'), str(tmp_path / 'out'), 'participant']
    assert called[called.index('--participant-label') + 1] == '02'
    assert called[called.index('--work-dir') + 1] == str(tmp_path / 'work' / 'sub-02')
    assert called[called.index('--recon') + 1] == 'harmonize'


def test_array_task_reads_a_list_of_participants(array_setup, tmp_path):
    listed = tmp_path / 'list.txt'
    listed.write_text('sub-10\n\n 02 \n')
    done = array_setup(1, PARTICIPANTS=str(listed))
    called = done.stdout.split('\n')
    assert called[called.index('--participant-label') + 1] == '10'
    called = array_setup(2, PARTICIPANTS=str(listed)).stdout.split('\n')
    assert called[called.index('--participant-label') + 1] == '02'


def test_array_task_in_a_container_is_sealed_and_told_its_share(array_setup):
    done = array_setup(3, IMAGE='/apps/x.sif', CUDA_VISIBLE_DEVICES='1')
    called = done.stdout.split('\n')
    assert called[:2] == ['apptainer', 'run']
    assert '--cleanenv' in called and '--containall' in called and '--nv' in called
    assert 'SLURM_CPUS_PER_TASK=4' in called and 'SLURM_MEM_PER_NODE=16384' in called
    assert any(argument.endswith('/bids:/bids:ro') for argument in called)
    assert '--nv' not in array_setup(3, IMAGE='/apps/x.sif').stdout


def test_array_task_without_a_participant_fails(array_setup):
    done = array_setup(4)
    assert done.returncode == 2
    assert 'no participant' in done.stderr
    assert array_setup(1, BIDS_DIR='').returncode != 0


def test_install_refuses_what_it_cannot_use(tmp_path):
    done = subprocess.run(
        ['bash', INSTALL], env={**os.environ, 'SOURCE': str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'set SOURCE' in done.stderr or 'as root' in done.stderr
