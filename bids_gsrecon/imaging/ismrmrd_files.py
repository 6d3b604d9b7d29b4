"""ISMRMRD raw data (.h5, .mrd): header and acquisitions, read as whole arrays.

The format: Inati et al., "ISMRM Raw data format", MRM 2017; field names are those of its header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from bids_gsrecon.errors import InputError

# Bits of the acquisition flags (counted from 1 in the standard, from 0 here).
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 18, 19, 20, 21
# Navigation, phase correction, feedback, dummy, surface coil correction and phase stabilisation scans.
NO_IMAGE = (22, 23, 25, 26, 27, 28, 29, 30)

COUNTERS = ('kspace_encode_step_1', 'kspace_encode_step_2', 'average', 'slice', 'contrast', 'phase',
            'repetition', 'set', 'segment')  # fmt: skip
ACQUISITION_HEADER = np.dtype(
    [('version', '<u2'), ('flags', '<u8'), ('measurement_uid', '<u4'), ('scan_counter', '<u4'),
     ('acquisition_time_stamp', '<u4'), ('physiology_time_stamp', '<u4', (3,)), ('number_of_samples', '<u2'),
     ('available_channels', '<u2'), ('active_channels', '<u2'), ('channel_mask', '<u8', (16,)),
     ('discard_pre', '<u2'), ('discard_post', '<u2'), ('center_sample', '<u2'), ('encoding_space_ref', '<u2'),
     ('trajectory_dimensions', '<u2'), ('sample_time_us', '<f4'), ('position', '<f4', (3,)),
     ('read_dir', '<f4', (3,)), ('phase_dir', '<f4', (3,)), ('slice_dir', '<f4', (3,)),
     ('patient_table_position', '<f4', (3,)), ('idx', [*((name, '<u2') for name in COUNTERS), ('user', '<u2', (8,))]),
     ('user_int', '<i4', (8,)), ('user_float', '<f4', (8,))]
)  # fmt: skip


@dataclass(frozen=True)
class EncodingHeader:
    """What the XML header says of the first encoding.

    Attributes
    ----------
    matrix, fov_mm
        Encoded samples and field of view along readout, phase encoding and partition encoding.
    recon_fov_mm
        Field of view of the image (readout oversampling removed).
    n_lines, centre_line
        Lines along phase encoding, and the one at the centre of k-space.
    frame_ms
        Repetition time as the header gives it (of cine: the time of a frame); 0 if it does not.
    """

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    recon_fov_mm: tuple[float, float, float]
    n_lines: int
    centre_line: int
    frame_ms: float


@dataclass(frozen=True, eq=False)
class RawFile:
    """Acquisitions of one file.

    Attributes
    ----------
    header
        Of the first encoding.
    heads
        (N,) structured (`ACQUISITION_HEADER`): the lines of the image.
    samples
        (N, coil, sample) complex64.
    noise
        (coil, sample) complex64 of the noise scans, already in units of the image's bandwidth; None without.
    """

    header: EncodingHeader
    heads: np.ndarray
    samples: np.ndarray
    noise: np.ndarray | None


@dataclass(frozen=True)
class RawExtent:
    """How much a file holds, by its headers alone.

    Attributes
    ----------
    header
        Of the first encoding.
    n_slices, n_frames, n_coils, n_sets
        Of its image lines; several sets are several series.
    n_lines, n_samples
        Acquisitions of any kind, and the longest of them.
    acceleration
        Lines of k-space over the mean number of lines of a frame.
    """

    header: EncodingHeader
    n_slices: int
    n_frames: int
    n_coils: int
    n_sets: int
    n_lines: int
    n_samples: int
    acceleration: float


def read_extent(path) -> RawExtent:
    """What a file holds; no samples are read.

    Raises
    ------
    InputError
        As `read_raw`, as far as headers tell.
    """
    header, heads, _ = _open(path, with_samples=False)
    image = heads[_image_lines(path, header, heads)]
    counters = image['idx'][image['idx']['set'] == image['idx']['set'].min()]
    frames = counters['repetition'].astype(int) * (int(counters['phase'].max()) + 1) + counters['phase']
    slices = counters['slice'].astype(int)
    places = np.stack([slices, frames, counters['kspace_encode_step_1'].astype(int)])
    n_frames = len(np.unique(frames))
    n_slices = len(np.unique(slices))
    lines_per_frame = np.unique(places, axis=1).shape[1] / (n_frames * n_slices)
    return RawExtent(
        header=header,
        n_slices=n_slices,
        n_frames=n_frames,
        n_coils=int(image['active_channels'].max()),
        n_sets=len(np.unique(image['idx']['set'])),
        n_lines=len(heads),
        n_samples=int(heads['number_of_samples'].max()),
        acceleration=header.matrix[1] / lines_per_frame,
    )


def read_raw(path) -> RawFile:
    """Read an ISMRMRD file.

    Raises
    ------
    InputError
        Missing, truncated or another format; not Cartesian; 3D; real samples; no encoding limits; no image lines.
    """
    header, heads, data = _open(path)
    image = _image_lines(path, header, heads)
    samples = _stack(path, heads, data, image)
    noise = _noise(path, heads, data, np.flatnonzero(_has(heads['flags'], NOISE)), heads[image[0]])
    return RawFile(header, heads[image], samples, noise)


def _open(path, *, with_samples: bool = True):
    path = Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist: check the path.')
    xml, heads, data = _read_arrays(path, with_samples)
    return _parse_header(path, xml), heads, data


def _image_lines(path, header, heads) -> np.ndarray:
    """Which acquisitions are lines of the image."""
    flags = heads['flags']
    is_noise = _has(flags, NOISE)
    skip = is_noise | np.any([_has(flags, bit) for bit in NO_IMAGE], axis=0)
    skip |= _has(flags, CALIBRATION) & ~_has(flags, CALIBRATION_AND_IMAGING)
    skip |= heads['encoding_space_ref'] != 0
    image = np.flatnonzero(~skip)
    if not len(image):
        raise InputError(
            f'{path} holds no image lines (of {len(heads)} acquisitions): give a cine acquisition.'
        )
    if heads['idx']['kspace_encode_step_2'][image].any() or header.matrix[2] > 1:
        raise InputError(
            f'{path} is a 3D acquisition (partition encoding): only 2D slices can be reconstructed.'
        )
    return image


def _has(flags, bit):
    return (flags >> np.uint64(bit)) & np.uint64(1) != 0


def _read_arrays(path, with_samples):
    import h5py

    try:
        with h5py.File(path, 'r') as file:
            groups = [name for name in file if isinstance(file[name], h5py.Group) and 'xml' in file[name]]
            if not groups:
                raise InputError(
                    f'{path} is HDF5 but not ISMRMRD (no group with "xml"): convert the raw data first.'
                )
            group = file['dataset' if 'dataset' in groups else groups[0]]
            if 'data' not in group:
                raise InputError(f'{path} holds no acquisitions (only images or waveforms): give raw data.')
            if not with_samples:
                return group['xml'][0], group['data'].fields('head')[:], None
            table = group['data'][:]
            return group['xml'][0], table['head'], table['data']
    except InputError:
        raise
    except (OSError, KeyError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(
            f'{path} cannot be read as ISMRMRD ({str(error)[:120]}): the file is truncated or of another format; '
            'copy or convert it again.'
        ) from error


def _parse_header(path, xml) -> EncodingHeader:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise InputError(f'{path} has a header that is no XML ({error}): convert it again.') from error
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]
    encoding = root.find('encoding')
    if encoding is None:
        raise InputError(f'{path} has a header without an encoding: convert it again.')
    trajectory = (encoding.findtext('trajectory') or '').strip().lower()
    if trajectory != 'cartesian':
        raise InputError(
            f'{path} has a {trajectory or "nameless"} trajectory: only Cartesian data can be reconstructed.'
        )
    limits = encoding.find('encodingLimits/kspace_encoding_step_1')
    if limits is None:
        raise InputError(
            f'{path} has no encoding limits (kspace_encoding_step_1) in its header: convert it again.'
        )

    def triple(name, kind):
        return tuple(kind(float(encoding.findtext(f'{name}/{axis}'))) for axis in 'xyz')

    try:
        matrix, fov = triple('encodedSpace/matrixSize', int), triple('encodedSpace/fieldOfView_mm', float)
        recon_fov = triple('reconSpace/fieldOfView_mm', float)
        maximum, centre = (int(limits.findtext(name)) for name in ('maximum', 'center'))
        frame_ms = float(root.findtext('sequenceParameters/TR') or 0.0)
    except (TypeError, ValueError) as error:
        raise InputError(
            f'{path} has an incomplete header (matrix, field of view or limits): convert it again.'
        ) from error
    if min(*matrix, *fov, *recon_fov) <= 0 or maximum < 1:
        raise InputError(f'{path} has a header with an empty matrix or field of view: convert it again.')
    return EncodingHeader(matrix, fov, recon_fov, maximum + 1, centre, frame_ms)


def _stack(path, heads, data, index) -> np.ndarray:
    """(N, coil, sample) of lines of one size."""
    head = heads[index]
    n_samples, n_coils = int(head['number_of_samples'][0]), int(head['active_channels'][0])
    if (head['number_of_samples'] != n_samples).any() or (head['active_channels'] != n_coils).any():
        raise InputError(
            f'{path} has lines of several lengths or numbers of coils: split it into separate files.'
        )
    lengths = {len(data[i]) for i in index}
    if lengths == {n_samples * n_coils}:
        raise InputError(f'{path} holds real samples where k-space is complex: convert the raw data again.')
    if lengths != {2 * n_samples * n_coils} or not n_samples:
        raise InputError(f'{path} has lines without all their samples: the file is truncated; copy it again.')
    samples = np.concatenate([data[i] for i in index]).astype(np.float32, copy=False).view(np.complex64)
    samples = samples.reshape(len(index), n_coils, n_samples)
    if not np.isfinite(samples).all():
        raise InputError(f'{path} holds samples that are NaN or infinite: convert the raw data again.')
    if not samples.imag.any():
        raise InputError(f'{path} has only zeros as imaginary parts: give k-space, not magnitudes.')
    return samples


def _noise(path, heads, data, index, image_head):
    """(coil, sample) of all noise scans, scaled to the bandwidth of the image."""
    index = [i for i in index if heads['active_channels'][i] == image_head['active_channels']]
    pieces = []
    for i in index:
        dwell, image_dwell = float(heads['sample_time_us'][i]), float(image_head['sample_time_us'])
        scale = np.sqrt(dwell / image_dwell) if dwell > 0 and image_dwell > 0 else 1.0
        piece = np.asarray(data[i], np.float32)
        if piece.size % (2 * int(image_head['active_channels'])) == 0 and piece.size:
            piece = piece.view(np.complex64).reshape(int(image_head['active_channels']), -1)
            pieces.append(piece * np.float32(scale))
    return np.concatenate(pieces, axis=1) if pieces else None
