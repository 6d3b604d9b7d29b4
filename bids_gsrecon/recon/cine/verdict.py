"""Whether a result can be trusted, and why not."""

from __future__ import annotations

from bids_gsrecon.recon.cine.types import VERDICTS

CHI2_CHECK, CHI2_REFUSE, CHI2_LOW = 1.3, 2.0, 0.5
MAX_ACCELERATION, REFUSED_ACCELERATION = 16.5, 24.5


def judge(chi2: float, acceleration: float, rung: int, notes) -> tuple[str, tuple[str, ...]]:
    """Verdict (one of `VERDICTS`) and its reasons.

    Parameters
    ----------
    chi2
        Mean squared residual in units of the noise.
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

    if not chi2 <= CHI2_REFUSE:
        lower(2, f'chi^2 is {chi2:.2f}: the model does not describe the data')
    elif chi2 > CHI2_CHECK:
        lower(1, f'chi^2 is {chi2:.2f}: something moves or changes that the model does not follow')
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
