"""The image built and run for real: by Apptainer where it is at hand, else its recipe in a plain chroot.

Takes many minutes and a gigabyte or two, so it must be asked for:

    GSRECON_TEST_CONTAINER=apptainer python -m pytest tests/containers/test_build.py

``apptainer``: the SIF. ``chroot``: the recipe in a debootstrapped tree (root only). A base image is taken from Docker
Hub, or, with ``GSRECON_TEST_BASE``, from a folder that holds a Debian bookworm tree; ``GSRECON_TEST_SIF`` names an
image that is built already. ``GSRECON_APPTAINER`` is the command if it is not ``apptainer``;
``GSRECON_TEST_BUILD_OPTIONS`` are further options of ``apptainer build`` (``--build-arg TORCH_INDEX= ...``), or
variables for ``install.sh`` in a chroot.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import open_to_others

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get('GSRECON_TEST_CONTAINER', '')
OPTIONS = shlex.split(os.environ.get('GSRECON_TEST_BUILD_OPTIONS', ''))
BASE = os.environ.get('GSRECON_TEST_BASE', '')
APPTAINER = shlex.split(os.environ.get('GSRECON_APPTAINER', 'apptainer'))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        ASKED not in ('apptainer', 'chroot'),
        reason='builds an image (many minutes): set GSRECON_TEST_CONTAINER to apptainer or chroot',
    ),
]


class Sif:
    """The image for Apptainer, sealed as on a cluster."""

    def __init__(self, folder: Path):
        if shutil.which(APPTAINER[0]) is None:
            pytest.fail(f'GSRECON_TEST_CONTAINER=apptainer, but {APPTAINER[0]} is not installed')
        self.path = Path(os.environ.get('GSRECON_TEST_SIF') or folder / 'app.sif')
        if not self.path.is_file():
            base = ['--build-arg', 'BOOTSTRAP=localimage', '--build-arg', f'FROM={BASE}'] if BASE else []
            check([*APPTAINER, 'build', *base, *OPTIONS, self.path, 'Singularity.def'], cwd=ROOT)

    def command(self, binds: dict[Path, str], *words: str) -> list:
        """``words`` inside; ``binds``: folders here, and where they are seen."""
        mounts = [part for here, there in binds.items() for part in ('--bind', f'{here}:{there}')]
        return [*APPTAINER, 'exec', '--cleanenv', '--containall', *mounts, self.path, *words]

    def inspect(self) -> str:
        """Labels and help."""
        found = [check([*APPTAINER, 'inspect', option, self.path]) for option in ('--labels', '--helpfile')]
        return '\n'.join(found)


class Chroot:
    """The recipe in a Debian tree; run read-only, by somebody without name and home."""

    def __init__(self, folder: Path):
        missing = [name for name in ('chroot', 'unshare', 'setpriv') if shutil.which(name) is None]
        missing += [] if BASE or shutil.which('debootstrap') else ['debootstrap']
        if missing or os.getuid() != 0:
            pytest.fail(
                f'GSRECON_TEST_CONTAINER=chroot needs root and {", ".join(missing) or "nothing else"}'
            )
        self.tree = folder / 'tree'
        if BASE:
            check(['cp', '-a', f'{BASE}/.', self.tree])
        else:
            include = '--include=ca-certificates,python3,python3-venv'
            check(['debootstrap', '--variant=minbase', include, 'bookworm', self.tree])
        for name in ('etc/resolv.conf', 'etc/ssl/certs/ca-certificates.crt'):
            if Path('/', name).is_file():
                shutil.copyfile(Path('/', name), self.tree / name)
        for name in ('in', 'out', 'work', 'proc', 'dev', 'tmp', 'src'):
            (self.tree / name).mkdir(exist_ok=True)
        shutil.copytree(
            ROOT, self.tree / 'src', dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*', 'demo')
        )
        install = ' '.join([*map(shlex.quote, OPTIONS), 'bash', '/src/containers/install.sh'])
        check(
            self._namespaced(
                {}, ['env', '-i', 'PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'sh', '-c', install], False
            )
        )

    def command(self, binds: dict[Path, str], *words: str) -> list:
        """As `Sif.command`."""
        return self._namespaced(binds, ['setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', 'env', '-i',
                                        'PATH=/usr/local/bin:/usr/bin:/bin', *words], True)  # fmt: skip

    def _namespaced(self, binds, words, sealed: bool) -> list:
        tree = shlex.quote(str(self.tree))
        steps = [
            f'mount --bind {tree} {tree}',
            f'mount -t proc proc {tree}/proc',
            f'mount --rbind /dev {tree}/dev',
        ]
        if sealed:
            steps += [f'mount -o remount,bind,ro {tree}', f'mount -t tmpfs -o mode=1777 tmpfs {tree}/tmp']
        for here, there in binds.items():
            path, _, mode = there.partition(':')
            steps.append(f'mount --bind {shlex.quote(str(here))} {tree}{path}')
            steps += [f'mount -o remount,bind,ro {tree}{path}'] if mode == 'ro' else []
        steps.append(f'exec chroot {tree} {shlex.join(words)}')
        return ['unshare', '--mount', 'sh', '-ec', '; '.join(steps)]

    def inspect(self) -> str:
        """Of the recipe."""
        return (ROOT / 'Singularity.def').read_text()


def check(command, **kwargs) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp('image')
    yield (Sif if ASKED == 'apptainer' else Chroot)(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='module')
def folders(tmp_path_factory, image):
    """in, out and work, for whoever runs there; the demo data set is in ``in``."""
    root = tmp_path_factory.mktemp('data')
    open_to_others(root)
    for name in ('in', 'out', 'work'):
        (root / name).mkdir()
        (root / name).chmod(0o777)
    check(image.command({root / 'in': '/in'}, 'gsrecon', 'demo', '/in/bids', '--resolution', '4'))
    return root


def test_it_says_what_it_is(image):
    said = image.inspect()
    assert 'org.opencontainers.image.version' in said and 'Apache-2.0' in said
    assert 'apptainer run --cleanenv --containall' in said


def test_the_demo_runs_sealed(image, folders):
    binds = {folders / 'in/bids': '/in:ro', folders / 'out': '/out', folders / 'work': '/work'}
    said = check(
        image.command(binds, 'bids_gsrecon', '/in', '/out', 'participant', '-w', '/work', '--sloppy')
    )
    assert 'SUCCESS: 1 of 1 participant(s) done' in said
    assert (folders / 'out/sub-01/anat/sub-01_space-T1w_res-iso_desc-sr_T2w.nii.gz').is_file()
    description = json.loads((folders / 'out/dataset_description.json').read_text())
    assert description['GeneratedBy'][0]['Name'] == 'bids_gsrecon'
    if ASKED == 'apptainer':
        assert 'Container' in description['GeneratedBy'][0]


def test_nothing_is_left_to_compile(image):
    said = check(image.command({}, 'gsrecon-selftest'))
    found = re.search(r'OK: .*, (\d+) kernels, (\d+) of them compiled now', said)
    assert int(found[1]) > 30 and found[2] == '0', said


def test_nothing_of_the_host_leaks_in(image):
    script = 'import sys; print([p for p in sys.path if p and not p.startswith(("/opt/bids_gsrecon", "/usr/lib"))])'
    environment = {**os.environ, 'PYTHONPATH': '/leak', 'APPTAINERENV_X': '1'}
    done = subprocess.run(
        list(map(str, image.command({}, '/opt/bids_gsrecon/bin/python', '-c', script))),
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def test_bad_input_is_one_sentence(image):
    done = subprocess.run(
        list(map(str, image.command({}, 'bids_gsrecon', '/nowhere', '/tmp/out', 'participant'))),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert '/nowhere is not a folder' in done.stderr and 'Traceback' not in done.stderr
