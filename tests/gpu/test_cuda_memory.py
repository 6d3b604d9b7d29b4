"""No kernel reads or writes where it must not: the hard cases under g++'s address and undefined sanitizers.

On a device such an access may pass unseen or end the process; here it is reported with its line. The kernels run
through their CPU shim; shared arrays are checked as well.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import cuda_shim

SCRIPT = """
import sys, torch
from bids_gsrecon.gpu import cuda
from tests.gpu import cuda_shim, fields
cuda.PIECE = 500
backend = cuda.CudaBackend(cuda_shim.Operators(sys.argv[1]), 'cpu')
cases = dict(fields.hard_cases())
for n_channels in (0, 2, 3, 5, 9):
    cases[str(n_channels)] = fields.random_field(40, (16, 14, 13), n_channels=n_channels), (16, 14, 13)
cases['many'] = fields.random_field(2500, (9, 9, 9), scale=0.4), (9, 9, 9)
for field, shape in cases.values():
    plan = backend.plan(*field[:3], shape)
    sums = plan.forward(field[3])
    plan.backward(field[3], sums)
print('clean')
"""


def runtime(name) -> str:
    """The sanitizer's runtime library, or an empty string."""
    path = subprocess.run(
        ['g++', f'-print-file-name={name}'], capture_output=True, text=True, check=True
    ).stdout
    return path.strip() if os.path.isabs(path.strip()) else ''


@pytest.mark.skipif(bool(cuda_shim.why_not()), reason=cuda_shim.why_not() or 'g++ is here')
def test_hard_cases_under_sanitizers(tmp_path):
    libraries = [runtime('libasan.so'), runtime('libubsan.so')]
    if not all(libraries):
        pytest.skip("g++ comes without its sanitizers' libraries")
    library = cuda_shim.build(
        tmp_path, ('-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined')
    )
    environment = {
        **os.environ,
        'LD_PRELOAD': ' '.join(libraries),
        # Python's own leaks are not of interest, and fibers have their own stacks.
        'ASAN_OPTIONS': 'detect_leaks=0:detect_stack_use_after_return=0',
    }
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, library],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).resolve().parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == 'clean', done.stderr[-3000:]
