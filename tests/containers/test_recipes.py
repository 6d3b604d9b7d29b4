"""The container recipes agree with each other and with the project; scripts are sound shell."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers import open_to_others, require_program

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / 'containers' / 'install.sh'
DOCKERFILE = ROOT / 'containers' / 'Dockerfile'
SINGULARITY = ROOT / 'Singularity.def'
ARRAY = ROOT / 'containers' / 'slurm' / 'array.sbatch'
SELFTEST = ROOT / 'containers' / 'selftest.sh'
ENVIRONMENT = ROOT / 'containers' / 'environment.sh'
SCRIPTS = [INSTALL, SELFTEST, ARRAY]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_stop_on_errors(script):
    assert script.read_text().startswith('#!/usr/bin/env bash\n')
    assert 'set -euo pipefail' in script.read_text()
    subprocess.run(['bash', '-n', script], check=True)


@pytest.mark.parametrize('script', [*SCRIPTS, ENVIRONMENT], ids=lambda p: p.name)
def test_shellcheck(script):
    program = require_program('shellcheck')
    found = subprocess.run([program, '-x', script], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout


def _arguments(recipe):
    """Build arguments and their defaults, of either recipe."""
    if 'FROM debian' in recipe:
        return dict(re.findall(r'^ARG (\w+)=(.*)$', recipe, re.MULTILINE))
    block = recipe.split('%arguments')[1].split('%help')[0]
    return dict(re.findall(r'^    (\w+)=(.*)$', block, re.MULTILINE))


def test_both_images_use_the_one_script_on_the_same_base():
    docker, singularity = DOCKERFILE.read_text(), SINGULARITY.read_text()
    base = re.search(r'^FROM (\S+)$', docker, re.MULTILINE).group(1)
    assert base.startswith('debian:bookworm')
    arguments = _arguments(singularity)
    assert (arguments.pop('BOOTSTRAP'), arguments.pop('FROM')) == ('docker', base)
    assert arguments == _arguments(docker), 'CPU and CUDA images are chosen by the same arguments'
    for recipe in (docker, singularity):
        assert recipe.count('containers/install.sh') >= 1
        assert 'apt-get' not in recipe and 'pip install' not in recipe
        for name in ('TORCH', 'TORCH_INDEX', 'EXTRAS'):
            assert re.search(rf'{name}="(\${name}|{{{{ {name} }}}})"', recipe), f'{name} reaches install.sh'


def test_both_images_carry_the_same_labels_and_the_version_of_the_package():
    docker = dict(
        re.findall(r'([\w.]+)="([^"]*)"', DOCKERFILE.read_text().split('\nLABEL ')[1].split('\n\n')[0])
    )
    block = SINGULARITY.read_text().split('%labels\n')[1].split('\n\n')[0]
    singularity = dict(line.split(maxsplit=1) for line in block.splitlines())
    same = {name: re.sub(r'\$\{(\w+)\}', r'{{ \1 }}', value) for name, value in docker.items()}
    assert same == singularity
    version = re.search(r'^version = (\S+)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE).group(1)
    assert _arguments(DOCKERFILE.read_text())['VERSION'] == version


def test_the_image_for_singularity_has_all_its_sections():
    for section in (
        '%arguments',
        '%help',
        '%labels',
        '%files',
        '%post',
        '%environment',
        '%runscript',
        '%test',
    ):
        assert f'\n{section}\n' in SINGULARITY.read_text()


def test_docker_runs_as_nobody_in_particular():
    assert re.search(r'^USER (?!0|root)\d+:\d+$', DOCKERFILE.read_text(), re.MULTILINE)


def test_both_images_set_the_same_environment():
    docker = DOCKERFILE.read_text().split('\nENV ')[1].split('\n\n')[0]
    docker = dict(re.findall(r'(\w+)=(\S+)', docker.replace('\\\n', '')))
    block = SINGULARITY.read_text().split('%environment')[1].split('%runscript')[0]
    singularity = dict(re.findall(r'export (\w+)=(\S+)', block))
    assert docker == singularity
    assert docker['PYTHONNOUSERSITE'] == '1'


def _default(name):
    return re.search(rf'^{name}="\$\{{{name}:?-([^}}]*)\}}"$', INSTALL.read_text(), re.MULTILINE).group(1)


def test_torch_is_the_same_everywhere():
    makefile = (ROOT / 'Makefile').read_text()
    pinned = re.search(r'^TORCH \?= (\S+)$', makefile, re.MULTILINE).group(1)
    assert _default('TORCH') == pinned
    assert _arguments(DOCKERFILE.read_text())['TORCH'] == pinned
    assert _arguments(DOCKERFILE.read_text())['TORCH_INDEX'] == _default('TORCH_INDEX')


def test_everything_that_is_copied_exists_and_everything_needed_is_copied():
    block = SINGULARITY.read_text().split('\n%files\n')[1].split('%post')[0]
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
    for name in ('bids_gsrecon', 'apptainer', 'scontrol'):
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
            env={**environment, 'SLURM_ARRAY_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': str(task), **more},
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
    more = array_setup(3, IMAGE='/apps/x.sif', BINDS='/a:/a:ro,/b:/b').stdout.split('\n')
    assert '/a:/a:ro,/b:/b' in more


def test_scratch_of_a_container_is_removed(array_setup, tmp_path):
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    done = array_setup(1, IMAGE='/apps/x.sif', SLURM_TMPDIR=str(scratch))
    assert f'{scratch}/gsrecon-' in done.stdout and done.returncode == 0
    assert list(scratch.iterdir()) == []


def test_tasks_beyond_the_largest_array_are_reached_by_an_offset(array_setup):
    called = array_setup(1, OFFSET='2').stdout.split('\n')
    assert called[called.index('--participant-label') + 1] == '10'
    assert array_setup(1, OFFSET='3').returncode == 2


SLOW = """trap 'echo stopped; exit 130' TERM
echo started
kill -{signal} $PPID
for _ in $(seq 100); do sleep 0.1; done"""


@pytest.mark.parametrize('restarts', ['0', '2'])
def test_a_task_that_is_out_of_time_stops_cleanly_and_is_submitted_again(array_setup, tmp_path, restarts):
    _stub(tmp_path / 'bin', 'bids_gsrecon', SLOW.format(signal='USR1'))
    done = array_setup(2, SLURM_RESTART_COUNT=restarts, MAX_RESTARTS='2')
    assert done.stdout.split('\n')[:2] == ['started', 'stopped']
    assert done.returncode == 130
    if restarts == '0':
        assert 'sub-02: out of time, submitted again (restart 1 of 2)' in done.stdout
        assert done.stdout.endswith('scontrol\nrequeue\n7_2\n')
    else:
        assert 'scontrol' not in done.stdout
        assert 'longer --time' in done.stderr


def test_a_cancelled_task_stops_cleanly_and_is_not_submitted_again(array_setup, tmp_path):
    _stub(tmp_path / 'bin', 'bids_gsrecon', SLOW.format(signal='TERM'))
    done = array_setup(2)
    assert done.stdout == 'started\nstopped\n'
    assert done.returncode == 130


def test_a_task_that_ends_in_its_last_minutes_is_not_submitted_again(array_setup, tmp_path):
    for code in (0, 1):
        body = f"trap 'exit {code}' TERM\nkill -USR1 $PPID\nfor _ in $(seq 100); do sleep 0.1; done"
        _stub(tmp_path / 'bin', 'bids_gsrecon', body)
        done = array_setup(2)
        assert done.returncode == code
        assert 'scontrol' not in done.stdout


def _environment(tmp_path, prefix, **more):
    """What the programs of the image see, as name: value; the image is ``prefix``."""
    script = f'prefix={prefix}; . {ENVIRONMENT}; env'
    done = subprocess.run(
        ['sh', '-c', script], capture_output=True, text=True, cwd=tmp_path,
        env={'PATH': os.environ['PATH'], 'TMPDIR': str(tmp_path / 'tmp'), 'HOME': '/nowhere', **more},
    )  # fmt: skip
    return done, dict(line.split('=', 1) for line in done.stdout.splitlines() if '=' in line)


@pytest.fixture
def image(tmp_path):
    prefix = tmp_path / 'prefix'
    (prefix / 'warm' / 'numba').mkdir(parents=True)
    (prefix / 'warm' / 'numba' / 'kernel.nbc').write_text('compiled')
    (prefix / 'build-id').write_text('20260101000000\n')
    (prefix / 'kernel-levels').write_text('x86-64-v3\nx86-64-v4\n')
    (tmp_path / 'tmp').mkdir()
    return prefix


def test_environment_of_the_image_is_self_contained(tmp_path, image):
    done, seen = _environment(tmp_path, image)
    assert done.returncode == 0, done.stderr
    assert seen['PYTHONNOUSERSITE'] == '1' and seen['NO_ET'] == '1'
    assert seen['LOGNAME'] == 'gsrecon', 'a user without a name'
    assert os.access(seen['HOME'], os.W_OK), 'a user without a home'
    assert Path(seen['NUMBA_CACHE_DIR'], 'kernel.nbc').is_file()
    if 'avx2' in Path('/proc/cpuinfo').read_text():
        assert seen['NUMBA_CPU_NAME'] in ('x86-64-v3', 'x86-64-v4') and seen['NUMBA_CPU_FEATURES'] == ''
    (image / 'kernel-levels').write_text('')
    assert 'NUMBA_CPU_NAME' not in _environment(tmp_path, image)[1], (
        'no level was compiled: that of the machine'
    )
    assert _environment(tmp_path, image, NUMBA_CPU_NAME='generic')[1]['NUMBA_CPU_NAME'] == 'generic'


def _sealed(tmp_path, image, **more):
    """As `_environment`, for a user who may not write into the image."""
    setpriv = require_program('setpriv')
    if os.getuid() != 0:
        pytest.skip('needs root, to be somebody else')
    open_to_others(tmp_path)
    (tmp_path / 'tmp').chmod(0o1777)
    script = f'prefix={image}; . {ENVIRONMENT}; env'
    done = subprocess.run(
        [setpriv, '--reuid=12345', '--regid=12345', '--clear-groups', 'sh', '-c', script],
        capture_output=True, text=True, cwd='/',
        env={'PATH': os.environ['PATH'], 'TMPDIR': str(tmp_path / 'tmp'), **more},
    )  # fmt: skip
    return done, dict(line.split('=', 1) for line in done.stdout.splitlines() if '=' in line)


def test_a_sealed_image_uses_a_writable_copy_of_its_kernels(tmp_path, image):
    done, seen = _sealed(tmp_path, image)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / 'tmp' / 'gsrecon-12345-20260101000000'
    assert seen['NUMBA_CACHE_DIR'] == f'{copy}/numba'
    assert Path(copy, 'numba', 'kernel.nbc').read_text() == 'compiled'
    again = _sealed(tmp_path, image)[1]
    assert again['NUMBA_CACHE_DIR'] == seen['NUMBA_CACHE_DIR'], 'one copy serves all'
    assert [item.name for item in (tmp_path / 'tmp').iterdir()] == [copy.name]


def test_compiled_code_of_somebody_else_is_not_run(tmp_path, image):
    planted = tmp_path / 'tmp' / 'gsrecon-12345-20260101000000'
    (planted / 'numba').mkdir(parents=True)
    seen = _sealed(tmp_path, image)[1]
    assert not seen['NUMBA_CACHE_DIR'].startswith(str(planted))
    assert Path(seen['NUMBA_CACHE_DIR'], 'kernel.nbc').is_file()


def test_a_sealed_image_without_any_room_says_so(tmp_path, image):
    done, _ = _sealed(tmp_path, image, TMPDIR='/proc')
    assert done.returncode == 2
    assert 'error: /proc cannot be written' in done.stderr


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
