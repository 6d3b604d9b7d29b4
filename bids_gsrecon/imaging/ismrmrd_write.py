"""ISMRMRD files of simulated Cartesian cine."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.ismrmrd_files import ACQUISITION_HEADER, NOISE
from bids_gsrecon.imaging.kspace import image_affine
from bids_gsrecon.imaging.sense import centred_fft, centred_ifft

_HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding>
  <encodedSpace>
   <matrixSize><x>{nx2}</x><y>{ny}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{fx2}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm>
  </encodedSpace>
  <reconSpace>
   <matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm>
  </reconSpace>
  <encodingLimits>
   <kspace_encoding_step_0><minimum>0</minimum><maximum>{maxx}</maximum><center>{nx}</center></kspace_encoding_step_0>
   <kspace_encoding_step_1><minimum>0</minimum><maximum>{maxy}</maximum><center>{cy}</center></kspace_encoding_step_1>
   <slice><minimum>0</minimum><maximum>{maxs}</maximum><center>0</center></slice>
   <phase><minimum>0</minimum><maximum>{maxt}</maximum><center>0</center></phase>
  </encodingLimits>
  <trajectory>cartesian</trajectory>
 </encoding>
 <sequenceParameters><TR>{frame_ms}</TR></sequenceParameters>
</ismrmrdHeader>
"""


def write_cine(
    path, slices, *, fov_mm: float = 360.0, thickness_mm: float = 8.0, frame_ms: float = 40.0, seed: int = 0
) -> list[np.ndarray]:
    """Write simulated slices (`SimulatedCine`, of one shape): noise scan, then all acquired lines, readout twofold
    oversampled with noise beyond the field of view; slices stacked along their normal without gap.

    Returns the affine (4x4, index (x, y, 0) to world RAS mm) of every slice's image.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    import h5py

    n_frames, n_coils, nx, ny = slices[0].kspace.shape
    pixel = fov_mm / nx
    xml = _HEADER.format(
        coils=n_coils, nx=nx, ny=ny, nx2=2 * nx, fx=fov_mm, fx2=2 * fov_mm, fy=pixel * ny, fz=thickness_mm,
        maxx=2 * nx - 1, maxy=ny - 1, cy=ny // 2, maxs=len(slices) - 1, maxt=n_frames - 1, frame_ms=frame_ms,
    )  # fmt: skip
    rng = np.random.default_rng([seed, 2])

    def noise(sigma, *shape):
        return (sigma * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(np.complex64)

    heads, lines = [], []

    def add(samples, **counters):
        head = np.zeros((), ACQUISITION_HEADER)
        head['version'], head['scan_counter'] = 1, len(heads)
        head['number_of_samples'], head['center_sample'] = samples.shape[1], nx
        head['available_channels'] = head['active_channels'] = n_coils
        head['sample_time_us'] = 4.0
        head['read_dir'], head['phase_dir'], head['slice_dir'] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        for name, value in counters.items():
            head['idx'][name] = value
        head['position'] = (0, 0, thickness_mm * (head['idx']['slice'] - (len(slices) - 1) / 2))
        heads.append(head)
        lines.append(np.ascontiguousarray(samples, np.complex64).view(np.float32).ravel())

    add(noise(slices[0].sigma, n_coils, 2 * nx))
    heads[0]['flags'] = 1 << NOISE
    for number, one in enumerate(slices):
        readout = centred_ifft(one.kspace, 2)
        for frame in range(n_frames):
            for line in np.flatnonzero(one.mask[frame]):
                wide = noise(one.sigma, n_coils, 2 * nx)
                wide[:, nx - nx // 2 : nx - nx // 2 + nx] = readout[frame, :, :, line]
                add(centred_fft(wide, 1), kspace_encode_step_1=line, phase=frame, slice=number)
    vector = h5py.vlen_dtype(np.float32)
    table = np.empty(len(heads), np.dtype([('head', ACQUISITION_HEADER), ('traj', vector), ('data', vector)]))
    table['head'] = np.array(heads)
    table['traj'] = [np.zeros(0, np.float32)] * len(heads)
    for place, line in enumerate(lines):
        table['data'][place] = line
    with h5py.File(path, 'w') as file:
        group = file.create_group('dataset')
        group.create_dataset(
            'xml', data=np.array([xml.encode()], object), dtype=h5py.special_dtype(vlen=bytes)
        )
        group.create_dataset('data', data=table)
    sizes = (pixel, pixel, thickness_mm)
    slice_of = np.array([int(head['idx']['slice']) for head in heads])
    return [
        image_affine(heads[np.flatnonzero(slice_of == n)[-1]], sizes, (nx, ny)) for n in range(len(slices))
    ]
