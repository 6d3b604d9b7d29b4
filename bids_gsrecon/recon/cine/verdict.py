"""Whether a result can be trusted, and why not."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.types import VERDICTS

CHI2_CHECK, CHI2_REFUSE, CHI2_LOW = 1.3, 2.0, 0.5
# With little noise chi^2 finds faults that no eye sees: only those of this share of the signal condemn a result.
UNEXPLAINED_REFUSE = 0.005
MAX_ACCELERATION, REFUSED_ACCELERATION = 16.5, 24.5


def judge(
    chi2: float, unexplained: float, acceleration: float, rung: int, notes
) -> tuple[str, tuple[str, ...]]:
    """Verdict (one of `VERDICTS`) and its reasons.

    Parameters
    ----------
    chi2
        Mean squared residual in units of the noise.
    unexplained
        From `unexplained_share`.
    acceleration
        Lines of k-space over lines of a frame.
    rung
        How far the model fell back.
    notes
        Sentences on the input: each lowers the verdict to ``check``.
    """
    level, reasons = 0, []

    def lower(to, reason):
        nonlocal level
        level = max(level, to)
        reasons.append(reason)

    if not chi2 <= CHI2_REFUSE and not unexplained < UNEXPLAINED_REFUSE:
        lower(2, f'chi^2 is {chi2:.2f}: the model does not describe the data')
    elif chi2 > CHI2_CHECK:
        share = f'{100 * unexplained:.2g} % of the signal'
        lower(1, f'chi^2 is {chi2:.2f}: something moves or changes that the model does not follow ({share})')
    elif chi2 < CHI2_LOW:
        lower(1, f'chi^2 is {chi2:.2f}: the noise was taken for larger than it is')
    if acceleration > REFUSED_ACCELERATION:
        lower(2, f'R = {acceleration:.1f} leaves too few lines a frame (nothing works above 16)')
    elif acceleration > MAX_ACCELERATION:
        lower(1, f'R = {acceleration:.1f} is above 16, the highest that was tested')
    if rung >= 2:
        lower(1, 'the motion is not that of a regular beat alone (drift modes were added)')
    for note in notes:
        lower(1, note)
    return VERDICTS[level], tuple(reasons)


def unexplained_share(series: SenseSeries, chi2: float) -> float:
    """Power of the data beyond noise that the model misses, as a share of their power beyond noise."""
    noise = float(series.n_samples)
    signal = float(np.vdot(series.data, series.data).real) - noise
    return max(0.0, chi2 - 1.0) * noise / signal if signal > 0 else float('inf')
