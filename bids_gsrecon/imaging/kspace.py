"""From raw lines to what a cine reconstruction takes: white noise of standard deviation 1, few coils, hybrid space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bids_gsrecon.imaging.coil_noise import NoiseModel, estimate_noise
from bids_gsrecon.imaging.ismrmrd_files import REVERSE, RawFile
from bids_gsrecon.imaging.line_checks import suspicious_lines
from bids_gsrecon.imaging.sense import centred_fft, centred_ifft

CALIBRATION_WIDTH = 24
# Fewer neighbouring central lines leave no room for kernels of coil sensitivities.
MIN_CALIBRATION_LINES = 6
MAX_COILS = 12
KEPT_ENERGY = 0.9995


@dataclass(frozen=True, eq=False)
class CineKSpace:
    """One slice.

    Attributes
    ----------
    hybrid
        (T, coil, x, ky) complex64: image space along the readout (oversampling removed), k-space along phase
        encoding, centre at n // 2; zero where nothing was acquired. Noise of a sample: `weights`.
    weights
        (T, ky) float32: one over the noise's standard deviation (real and imaginary part each); 0: not acquired.
    voxel_sizes_mm
        Along x, y, and the thickness of the slice.
    affine
        4x4, index (x, y, slice 0) to world RAS mm.
    frame_ms
        Time of a frame; 0 if unknown.
    scale
        Noise (standard deviation of real parts) of a typical coil in the units of the file.
    to_file
        (coil of the file, coil) complex64: virtual coils to those of the file, over `scale`.
    noise
        How the noise was found.
    notes
        Sentences for a person: what is unusual, and lowers the trust in the result.
    """

    hybrid: np.ndarray
    weights: np.ndarray
    voxel_sizes_mm: tuple[float, float, float]
    affine: np.ndarray
    frame_ms: float
    scale: float
    to_file: np.ndarray
    noise: NoiseModel
    notes: tuple[str, ...] = field(default=())

    @property
    def mask(self) -> np.ndarray:
        """(T, ky) bool: lines that were acquired."""
        return self.weights > 0

    def without(self, lines: np.ndarray) -> CineKSpace:
        """The same data less ``lines`` (T, ky) bool."""
        keep = ~lines
        return replace(self, hybrid=self.hybrid * keep[:, None, None], weights=self.weights * keep)

    @property
    def acceleration(self) -> float:
        """Lines of k-space over the mean number of lines of a frame."""
        return self.weights.shape[1] / max(float(self.mask.sum(1).mean()), 1e-9)

    def temporal_average(self) -> np.ndarray:
        """(coil, x, ky): every line averaged over the frames that have it."""
        weights = self.weights**2
        total = np.einsum('tcxy,ty->cxy', self.hybrid, weights)
        return total / np.maximum(weights.sum(0), 1e-12).astype(np.float32)

    def file_norm(self, maps: np.ndarray) -> np.ndarray:
        """(x, y): norm over the coils of the file of sensitivities (coil, x, y) of unit norm over the virtual ones.

        Whitening weighs the coils anew; divided by this, the maps belong to the image that the root sum of squares
        over the coils of the file would show (times `scale`: in its units).
        """
        norm = np.linalg.norm(np.tensordot(self.to_file, maps, (1, 0)), axis=0)
        return np.where(norm > 0, norm, 1.0).astype(np.float32)

    def calibration(self, width: int = CALIBRATION_WIDTH) -> np.ndarray:
        """(coil, kx, ky): the centre of the temporal average, for coil sensitivities."""
        first, last = central_lines(self.mask.any(0), width)
        centre = centred_fft(self.temporal_average(), 1)
        nx = centre.shape[1]
        half = min(width, nx) // 2
        return centre[:, nx // 2 - half : nx // 2 + half, first:last]


def central_lines(acquired: np.ndarray, width: int) -> tuple[int, int]:
    """First and last + 1 of the neighbouring acquired lines around the centre, as many on both sides."""
    centre = len(acquired) // 2
    half = 0
    while (
        half < width // 2 and centre - half - 1 >= 0 and acquired[centre - half - 1 : centre + half + 1].all()
    ):
        half += 1
        if centre + half >= len(acquired):
            break
    return centre - half, centre + half


def cine_slices(
    raw: RawFile,
    *,
    encoding_set: int = 0,
    slice_number: int | None = None,
    sigma: float | None = None,
    frame_ms: float | None = None,
) -> list[CineKSpace]:
    """Every slice of a raw file, in the order of their positions.

    Parameters
    ----------
    encoding_set
        Which of several sets (counter `set`) to take.
    slice_number
        Which slice (counter `slice`) to take; None: all.
    sigma
        Standard deviation of the noise in the file's units (real and imaginary part each), if it is known better.
    frame_ms
        Time of a frame (default: repetition time of the header).

    Raises
    ------
    ValueError
        "it ...": a single coil, no calibration lines, frames without lines, lines outside the limits, one frame
        of several sizes.
    """
    counters = raw.heads['idx']
    keep = (counters['set'] == encoding_set) & (counters['contrast'] == counters['contrast'].min())
    if not keep.any():
        raise ValueError(
            f'it has no set {encoding_set}: its sets are {sorted(set(counters["set"].tolist()))}'
        )
    if slice_number is not None:
        present = sorted(set(counters['slice'][keep].tolist()))
        keep &= counters['slice'] == slice_number
        if not keep.any():
            raise ValueError(f'it has no slice {slice_number}: its slices are {present}')
    heads, samples = raw.heads[keep], raw.samples[keep]
    if samples.shape[1] == 1:
        raise ValueError('it holds one coil: undersampled frames need several coils')
    echo, share = _full_echoes(heads, samples, raw.header.matrix[0])
    readout = centred_ifft(echo, 2)
    n_x = max(2, round(raw.header.matrix[0] * min(1.0, raw.header.recon_fov_mm[0] / raw.header.fov_mm[0])))
    first = readout.shape[2] // 2 - n_x // 2
    inside, outside = readout[:, :, first : first + n_x], _outside(readout, first, n_x)
    noise = estimate_noise(raw.noise, outside, inside, heads['idx'], share=share, sigma=sigma)
    inside = np.einsum('dc,ncx->ndx', noise.whitening, inside, dtype=np.complex64, optimize=True)
    frames, n_frames = _frame_numbers(heads['idx'])
    line, n_y = _line_numbers(heads['idx'], raw.header)
    sizes = (raw.header.fov_mm[0] / raw.header.matrix[0], raw.header.fov_mm[1] / n_y, raw.header.fov_mm[2])
    slices = []
    for number in np.unique(heads['idx']['slice']):
        mine = heads['idx']['slice'] == number
        hybrid, count = _sorted_lines(inside[mine], frames[mine], line[mine], n_frames, n_y)
        bad, doubtful = suspicious_lines(hybrid, count > 0)
        hybrid, count = hybrid * ~bad[:, None, None, :], np.where(bad, 0, count).astype(np.float32)
        notes = list(noise.notes)
        if bad.any():
            notes.append(f'{int(bad.sum())} lines differ wildly from those of other frames and were left out')
        if doubtful:
            notes.append(f'{doubtful} strong lines differ between frames as hearts hardly do')
        _check_coverage(count, n_y)
        hybrid, turn = _compress(hybrid, count)
        to_file = np.linalg.pinv(turn @ noise.whitening) / noise.scale
        # A partial echo leaves zeros in k-space, which carry no noise.
        weights = np.sqrt(count / share).astype(np.float32)
        affine = image_affine(heads[mine][0], sizes, (n_x, n_y))
        time_ms = raw.header.frame_ms if frame_ms is None else frame_ms
        slices.append(
            CineKSpace(
                hybrid,
                weights,
                sizes,
                affine,
                time_ms,
                noise.scale,
                to_file.astype(np.complex64),
                noise,
                tuple(notes),
            )
        )
    return sorted(slices, key=lambda one: float(one.affine[:3, 3] @ one.affine[:3, 2]))


def retrospective(kspace: CineKSpace, acceleration: float, pattern) -> CineKSpace:
    """The same data with fewer lines: those of ``pattern(n_lines, n_frames, lines_per_frame)`` (T, ky) bool.

    Raises
    ------
    ValueError
        The data are not fully sampled.
    """
    share = float(kspace.mask.mean())
    if share < 0.85:
        raise ValueError(
            f'it holds {100 * share:.0f} % of all lines: retrospective undersampling needs full data'
        )
    n_frames, n_lines = kspace.weights.shape
    keep = pattern(n_lines, n_frames, max(1, round(n_lines / acceleration))) & kspace.mask
    return kspace.without(~keep)


def _full_echoes(heads, samples, n_encoded):
    """Echoes with their centre in the middle of the encoded matrix, and the share of it that was sampled."""
    pre, post = int(heads['discard_pre'][0]), int(heads['discard_post'][0])
    n = samples.shape[2]
    centre = int(heads['center_sample'][0])
    if (heads['center_sample'] != centre).any():
        raise ValueError('it has echoes of several positions (center_sample): split it into separate files')
    reverse = (heads['flags'] >> np.uint64(REVERSE)) & np.uint64(1) != 0
    if reverse.any():
        samples = samples.copy()
        samples[reverse] = samples[reverse][:, :, ::-1]
    if n <= n_encoded and centre == 0:  # never set: the echo is in the middle
        centre = n // 2
    places = np.arange(pre, n - post) - centre + n_encoded // 2
    good = (places >= 0) & (places < n_encoded)
    if not good.any():
        raise ValueError('it has an echo outside the encoded matrix (center_sample): convert it again')
    if good.all() and len(places) == n_encoded:
        return samples[:, :, pre : n - post], 1.0
    out = np.zeros((*samples.shape[:2], n_encoded), np.complex64)
    out[:, :, places[good]] = samples[:, :, pre : n - post][:, :, good]
    return out, float(good.sum() / n_encoded)


def _outside(readout, first, n_x):
    """The part of the oversampled readout that shows no object, away from the field of view; None without."""
    band = readout.shape[2] - n_x
    if band < 8:
        return None
    guard = max(1, band // 8)
    left, right = readout[:, :, 1 : max(1, first - guard)], readout[:, :, first + n_x + guard : -1]
    outside = np.concatenate([left, right], axis=2)
    return outside if outside.shape[2] >= 4 else None


def _frame_numbers(counters):
    """(N,) frame of every line: cardiac phases; repetitions follow one another."""
    phases, phase = np.unique(counters['phase'], return_inverse=True)
    _, repetition = np.unique(counters['repetition'], return_inverse=True)
    frames = repetition * len(phases) + phase
    return frames, int(frames.max()) + 1


def _line_numbers(counters, header):
    """(N,) row of k-space of every line with the centre at n // 2, and n."""
    step = counters['kspace_encode_step_1'].astype(int)
    if step.max() >= header.n_lines or header.centre_line >= header.n_lines:
        raise ValueError(
            f'it has a line {max(step.max(), header.centre_line)} beyond its encoding limits ({header.n_lines} lines)'
        )
    above = header.n_lines - header.centre_line
    n = max(header.matrix[1], 2 * header.centre_line, 2 * above - 1)
    return step - header.centre_line + n // 2, n


def _sorted_lines(samples, frames, line, n_frames, n_y):
    """(T, coil, x, ky) averaged over acquisitions of the same line, and their number (T, ky)."""
    n_coils, n_x = samples.shape[1:]
    total = np.zeros((n_frames, n_y, n_coils, n_x), np.complex64)
    count = np.zeros((n_frames, n_y), np.float32)
    np.add.at(count, (frames, line), 1)
    if count.max() <= 1:
        total[frames, line] = samples
    else:
        np.add.at(total, (frames, line), samples)
        total /= np.maximum(count, 1)[:, :, None, None]
    return np.ascontiguousarray(total.transpose(0, 2, 3, 1)), count


def _check_coverage(count, n_y):
    acquired = count > 0
    lines = acquired.sum(1)
    if lines.min() < min(2, n_y):
        frame = int(np.argmin(lines))
        raise ValueError(f'it has {int(lines[frame])} lines in frame {frame}: every frame needs at least two')
    first, last = central_lines(acquired.any(0), CALIBRATION_WIDTH)
    if last - first < min(MIN_CALIBRATION_LINES, n_y):
        raise ValueError(
            f'it has no calibration lines: {last - first} neighbouring lines at the centre of k-space over all '
            f'frames, {MIN_CALIBRATION_LINES} are needed'
        )


def _compress(hybrid, count):
    """As many virtual coils (principal components, Huang et al. 2008) as hold nearly all the energy, and the turn."""
    first, last = central_lines((count > 0).any(0), CALIBRATION_WIDTH)
    data = np.moveaxis(hybrid[:, :, :, first:last], 1, 0).reshape(hybrid.shape[1], -1)
    values, vectors = np.linalg.eigh((data @ data.conj().T).astype(np.complex128))
    share = np.cumsum(values[::-1]) / values.sum()
    n = min(MAX_COILS, int(np.searchsorted(share, KEPT_ENERGY)) + 1)
    if n >= len(values):
        return hybrid, np.eye(len(values), dtype=np.complex64)
    turn = vectors[:, ::-1][:, :n].conj().T.astype(np.complex64)
    return np.ascontiguousarray(np.einsum('dc,tcxy->tdxy', turn, hybrid, optimize=True)), turn


def image_affine(head, sizes, shape) -> np.ndarray:
    """4x4, index (x, y, 0) to world RAS mm, of an image of ``shape`` (nx, ny) with voxels of ``sizes`` mm.

    Directions and position of an acquisition's header are LPS; the position is that of the centre, pixel n // 2.
    """
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    directions = np.stack([head[name] for name in ('read_dir', 'phase_dir', 'slice_dir')], 1).astype(float)
    if not np.allclose(np.linalg.norm(directions, axis=0), 1.0, atol=0.05):
        directions = np.eye(3)  # never set
    affine[:3, :3] = to_ras @ directions * np.asarray(sizes)
    centre = to_ras @ head['position'].astype(float)
    affine[:3, 3] = centre - affine[:3, :2] @ np.array([shape[0] // 2, shape[1] // 2], float)
    return affine
