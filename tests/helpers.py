"""Shared by the tests: where real data lie, and the checks every operator must pass."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest


def find_data_root() -> Path | None:
    """The folder of real data: ``GSRECON_TEST_DATA``, else a sibling of the repository; None where absent."""
    given = os.environ.get('GSRECON_TEST_DATA')
    root = Path(given) if given else Path(__file__).resolve().parents[1] / '..' / 'shared' / 'data'
    return root.resolve() if root.is_dir() else None


def require_data(*parts: str) -> Path:
    """Path of a real test file; skips the test, saying why, where it is absent."""
    root = find_data_root()
    if root is None:
        pytest.skip('no real data: set GSRECON_TEST_DATA to the folder that holds them')
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'{"/".join(parts)} is not among the real data')
    return path


def require_program(name: str) -> str:
    """A program of this environment (activated or not) or of the system; skips the test where it is absent."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install '.[tests]')")
    return found


def assert_adjoint(
    forward, adjoint, domain_shape, range_shape, *, seed=0, dtype=np.float64, rtol=1e-9
) -> None:
    """Dot-product test <A x, y> = <x, A^T y> on random arrays (A linear; arrays in ``dtype``)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(domain_shape).astype(dtype)
    y = rng.standard_normal(range_shape).astype(dtype)
    ax, aty = np.asarray(forward(x)), np.asarray(adjoint(y))
    assert ax.shape == tuple(range_shape) and aty.shape == tuple(domain_shape)
    left = np.vdot(ax.astype(np.float64), y.astype(np.float64))
    right = np.vdot(x.astype(np.float64), aty.astype(np.float64))
    # Relative to the norms: the inner product itself may be near zero by chance.
    scale = np.linalg.norm(ax) * np.linalg.norm(y)
    assert scale > 0, 'the operator maps a random vector to zero'
    assert abs(left - right) <= rtol * scale, f'<Ax,y> = {left!r} but <x,Aty> = {right!r}'


def assert_gradient(function, gradient, x0, *, seed=0, step=1e-6, rtol=1e-6, n_directions=5) -> None:
    """Central differences of a scalar ``function`` along random directions against ``gradient(x0)``."""
    rng = np.random.default_rng(seed)
    x0 = np.asarray(x0, dtype=np.float64)
    g = np.asarray(gradient(x0), dtype=np.float64)
    assert g.shape == x0.shape
    for _ in range(n_directions):
        direction = rng.standard_normal(x0.shape)
        direction /= np.linalg.norm(direction)
        numeric = (function(x0 + step * direction) - function(x0 - step * direction)) / (2 * step)
        analytic = float(np.vdot(g, direction))
        assert abs(numeric - analytic) <= rtol * max(np.linalg.norm(g), 1e-12), (numeric, analytic)


def open_to_others(folder):
    """Let every user reach a folder of pytest's, which keeps its own for their maker."""
    top = Path(tempfile.gettempdir()).resolve()
    for one in (folder, *folder.parents):
        if top not in one.resolve().parents:
            break
        one.chmod(0o755)
