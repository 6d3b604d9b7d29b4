"""The table of the rasteriser's benchmark can be made without the app's dependencies."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def test_smallest_table():
    script = (
        'import runpy, sys; sys.modules.update(dict.fromkeys(["nipype", "bids", "ants", "nilearn"])); '
        f'sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ["rasterizer.py", *sys.argv[1:]]; '
        f'runpy.run_path({str(BENCHMARKS / "rasterizer.py")!r}, run_name="__main__")'
    )
    arguments = ['--backends', 'cpu', '--gaussians', '500', '--sides', '20', '24', '--sample', '20']
    printed = subprocess.run(
        [sys.executable, '-c', script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=BENCHMARKS.parent,
    ).stdout
    rows = [line for line in printed.splitlines() if line.startswith('| 5e+02')]
    assert [row.split(' | ')[1] for row in rows] == ['20^3', '24^3']
    assert {row.count('|') for row in printed.splitlines() if row.startswith('|')} == {14}
