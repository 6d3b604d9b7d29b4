"""Raw data to white hybrid space: geometry, noise, partial echoes, averages, bad files."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.cine_sampling import variable_density_lines
from bids_gsrecon.imaging.cine_simulate import simulate_phantom
from bids_gsrecon.imaging.ismrmrd_files import read_extent, read_raw
from bids_gsrecon.imaging.ismrmrd_write import write_cine
from bids_gsrecon.imaging.kspace import central_lines, cine_slices, retrospective
from bids_gsrecon.imaging.sense import centred_ifft


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    simulated = simulate_phantom((41, 32), 4, n_coils=5, acceleration=2, seed=1)
    path = tmp_path_factory.mktemp('raw') / 'case.h5'
    write_cine(path, [simulated], fov_mm=300.0, frame_ms=55.0)
    return path, simulated


def edit(path, folder, change_head=None, change_xml=None, keep=None):
    """A copy of a file with changed headers."""
    copy = folder / 'edited.h5'
    with h5py.File(path) as source, h5py.File(copy, 'w') as target:
        table = source['dataset/data'][:]
        if keep is not None:
            table = table[keep(table)]
        if change_head is not None:
            heads = table['head'].copy()
            change_head(heads)
            table['head'] = heads
        xml = source['dataset/xml'][0].decode()
        xml = change_xml(xml) if change_xml else xml
        target.create_dataset('dataset/data', data=table, dtype=source['dataset/data'].dtype)
        target.create_dataset(
            'dataset/xml', data=np.array([xml.encode()], object), dtype=h5py.special_dtype(vlen=bytes)
        )
    return copy


def test_extent_is_that_of_the_data_without_reading_them(case, tmp_path):
    path, simulated = case
    extent = read_extent(path)
    assert (extent.n_slices, extent.n_frames, extent.n_coils, extent.n_sets) == (1, 4, 5, 1)
    assert extent.n_samples == 82 and extent.n_lines == simulated.mask.sum() + 1
    assert extent.acceleration == pytest.approx(cine_slices(read_raw(path))[0].acceleration)
    with pytest.raises(InputError, match='spiral trajectory'):
        read_extent(edit(path, tmp_path, change_xml=lambda xml: xml.replace('cartesian', 'spiral')))


def test_round_trip(case):
    path, simulated = case
    (one,) = cine_slices(read_raw(path))
    assert one.hybrid.shape == (4, 5, 41, 32)
    assert np.array_equal(one.mask, simulated.mask)
    assert one.frame_ms == 55.0
    assert one.noise.source == 'noise scan' and not one.notes
    assert one.scale == pytest.approx(simulated.sigma, rel=0.05)
    assert one.acceleration == pytest.approx(2.0)
    np.testing.assert_allclose(one.voxel_sizes_mm, (300 / 41, 300 / 41, 8))
    # Unitary up to whitening: back in the coils of the file, the data are those that were simulated.
    back = np.einsum('cd,tdxy->tcxy', one.to_file, one.hybrid) * one.scale
    expected = centred_ifft(simulated.kspace, 2) * simulated.mask[:, None, None]
    assert np.abs(back - expected).max() < 0.02 * np.abs(expected).max()


def test_the_noise_is_white_and_of_unit_size(case, tmp_path):
    path, simulated = case
    (one,) = cine_slices(read_raw(path))
    clean = centred_ifft(np.where(simulated.mask[:, None, None], simulated.kspace, 0), 2)
    whitened = np.einsum('dc,tcxy->tdxy', np.linalg.pinv(one.to_file * one.scale), clean)
    assert np.abs(one.hybrid - whitened).max() < 1e-2 * np.abs(whitened).max()
    empty = np.abs(one.hybrid[:, :, 0, :])[:, :, [0, 1, -1]]
    assert 0.5 < np.sqrt(np.mean(empty[empty > 0] ** 2) / 2) < 2.0


def test_geometry(case, tmp_path):
    path, _ = case
    direction = np.array([[0, 0.6, 0.8], [1, 0, 0], [0, 0.8, -0.6]])

    def turn(heads):
        heads['read_dir'], heads['phase_dir'], heads['slice_dir'] = direction
        heads['position'] = (10, 20, 30)

    (one,) = cine_slices(read_raw(edit(path, tmp_path, turn)))
    to_ras = np.diag([-1, -1, 1])
    np.testing.assert_allclose(
        one.affine[:3, :3] / np.array(one.voxel_sizes_mm), to_ras @ direction.T, atol=1e-6
    )
    np.testing.assert_allclose(one.affine @ (41 // 2, 32 // 2, 0, 1), (-10, -20, 30, 1), atol=1e-5)


def test_partial_echo_reverse_and_discarded_samples(case, tmp_path):
    path, _ = case
    (whole,) = cine_slices(read_raw(path))
    raw = read_raw(path)
    heads = raw.heads.copy()
    heads['center_sample'] -= 20
    heads['discard_post'] = 3
    heads['flags'][::2] |= np.uint64(1 << 21)
    samples = np.pad(raw.samples[:, :, 20:], ((0, 0), (0, 0), (0, 3)), constant_values=1e3)
    samples[::2] = samples[::2, :, ::-1]
    (partial,) = cine_slices(replace(raw, heads=heads, samples=samples))
    error = np.abs(partial.hybrid - whole.hybrid).mean() / np.abs(whole.hybrid).mean()
    assert error < 0.5
    acquired = partial.weights[partial.weights > 0]
    assert acquired[0] == pytest.approx(np.sqrt(82 / 62), rel=1e-5)


def test_averages_weigh_more(case):
    path, _ = case
    raw = read_raw(path)
    heads = raw.heads[:1].copy()
    heads['idx']['average'] = 1
    twice = replace(
        raw, heads=np.concatenate([raw.heads, heads]), samples=np.concatenate([raw.samples, raw.samples[:1]])
    )
    (one,), (same,) = cine_slices(raw), cine_slices(twice)
    assert sorted(np.unique(same.weights).tolist()) == pytest.approx([0, 1, np.sqrt(2)])
    np.testing.assert_allclose(np.abs(one.hybrid), np.abs(same.hybrid), rtol=0.02, atol=0.2)


def test_a_noise_scan_in_other_units_is_not_believed(case):
    path, simulated = case
    raw = read_raw(path)
    (one,) = cine_slices(replace(raw, noise=2 * raw.noise))
    assert one.noise.source == 'readout oversampling'
    assert one.scale == pytest.approx(simulated.sigma, rel=0.05)
    assert any(note.startswith('the noise scan says 2') for note in one.notes)
    (none,) = cine_slices(replace(raw, noise=None))
    assert none.scale == pytest.approx(simulated.sigma, rel=0.05) and not none.notes


def test_a_dead_coil_is_left_out_and_told(case):
    path, _ = case
    raw = read_raw(path)
    samples, noise = raw.samples.copy(), raw.noise.copy()
    samples[:, 2], noise[2] = 0, 0
    (one,) = cine_slices(replace(raw, samples=samples, noise=noise))
    assert one.to_file.shape[0] == 5 and np.abs(one.to_file[2]).max() < 1e-6
    assert any('1 of 5 coils show no signal' in note for note in one.notes)


def test_wild_lines_are_left_out(case):
    path, _ = case
    raw = read_raw(path)
    samples = raw.samples.copy()
    samples[5] *= 30
    (one,) = cine_slices(replace(raw, samples=samples))
    assert (~one.mask & cine_slices(raw)[0].mask).sum() == 1
    assert any('1 lines differ wildly' in note for note in one.notes)


def test_retrospective_undersampling_needs_full_data(case):
    (one,) = cine_slices(read_raw(case[0]))
    with pytest.raises(ValueError, match='retrospective undersampling needs full data'):
        retrospective(one, 4, variable_density_lines)
    full = replace(one, weights=np.ones_like(one.weights))
    fewer = retrospective(full, 4, variable_density_lines)
    assert (
        fewer.acceleration == pytest.approx(4)
        and not fewer.hybrid[~np.broadcast_to(fewer.mask[:, None, None], fewer.hybrid.shape)].any()
    )


def test_pattern():
    mask = variable_density_lines(96, 20, 6)
    assert (mask.sum(1) == 6).all()
    assert mask.any(0)[42:54].all() and mask.any(0).mean() > 0.5
    assert len({tuple(row) for row in mask.tolist()}) > 15
    assert variable_density_lines(5, 2, 5).all()
    with pytest.raises(ValueError, match='1 to 5 lines'):
        variable_density_lines(5, 2, 6)


def test_central_lines():
    acquired = np.ones(10, bool)
    assert central_lines(acquired, 24) == (0, 10)
    assert central_lines(acquired, 4) == (3, 7)
    acquired[3] = False
    assert central_lines(acquired, 24) == (4, 6)
    acquired[5] = False
    assert central_lines(acquired, 24) == (5, 5)


def without(tag):
    def change(xml):
        start, end = xml.index(f'<{tag}>'), xml.index(f'</{tag}>') + len(tag) + 3
        return xml[:start] + xml[end:]

    return change


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(change_xml=lambda x: x.replace('cartesian', 'radial')),
            'has a radial trajectory: only Cartesian',
        ),
        (dict(change_xml=without('kspace_encoding_step_1')), 'has no encoding limits'),
        (dict(change_xml=without('encodedSpace')), 'has an incomplete header'),
        (dict(change_xml=lambda x: x[:-20]), 'has a header that is no XML'),
        (dict(change_xml=lambda x: x.replace('<z>1</z>', '<z>4</z>')), 'is a 3D acquisition'),
        (dict(keep=lambda t: t['head']['flags'] != 0), 'holds no image lines'),
    ],
)
def test_bad_headers(case, tmp_path, change, message):
    path = edit(case[0], tmp_path, **change)
    with pytest.raises(InputError, match=message) as error:
        read_raw(path)
    assert str(path) in str(error.value)


def drop_centre(table):
    return np.abs(table['head']['idx']['kspace_encode_step_1'].astype(int) - 16) > 1


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(keep=drop_centre), 'no calibration lines'),
        (
            dict(keep=lambda t: (t['head']['idx']['phase'] != 2) | (np.arange(len(t)) % 40 == 0)),
            'lines in frame',
        ),
        (dict(change_xml=lambda x: x.replace('<maximum>31<', '<maximum>20<')), 'beyond its encoding limits'),
    ],
)
def test_data_that_are_not_enough(case, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        cine_slices(read_raw(edit(case[0], tmp_path, **change)))


def test_one_coil(case):
    raw = read_raw(case[0])
    with pytest.raises(ValueError, match='one coil'):
        cine_slices(replace(raw, samples=raw.samples[:, :1], noise=None))


def test_files_that_are_none(case, tmp_path):
    broken = tmp_path / 'broken.h5'
    broken.write_bytes(case[0].read_bytes()[:20000])
    other = tmp_path / 'other.h5'
    with h5py.File(other, 'w') as file:
        file['x'] = 1
    text = tmp_path / 'text.h5'
    text.write_text('nothing')
    for path, message in (
        (broken, 'truncated'),
        (other, 'not ISMRMRD'),
        (text, 'cannot be read'),
        (tmp_path / 'no', 'exist'),
    ):
        with pytest.raises(InputError, match=message):
            read_raw(path)


def test_real_samples(case, tmp_path):
    copy = tmp_path / 'real.h5'
    with h5py.File(case[0]) as source, h5py.File(copy, 'w') as target:
        table = source['dataset/data'][:]
        for i, line in enumerate(table['data']):
            table['data'][i] = line[::2].copy()
        target.create_dataset('dataset/data', data=table, dtype=source['dataset/data'].dtype)
        source.copy('dataset/xml', target['dataset'])
    with pytest.raises(InputError, match='real samples'):
        read_raw(copy)


def test_reads_what_the_ismrmrd_package_writes(tmp_path):
    """The package's own classes write a file like its example generator's: Shepp-Logan, noise scan, 2x oversampled."""
    ismrmrd = pytest.importorskip('ismrmrd')
    xsd, (nx, ny, nc) = ismrmrd.xsd, (32, 24, 4)
    x, y = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in (2 * nx, ny)], indexing='ij')
    disc = ((2 * x - 0.1) ** 2 + y**2 < 0.3**2).astype(float)
    coils = np.stack(
        [np.exp(-((2 * x - a) ** 2) - (y - b) ** 2) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    )
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(disc * coils, axes=(1, 2)), norm='ortho'), axes=(1, 2)
    )
    space = lambda n: xsd.encodingSpaceType(  # noqa: E731
        matrixSize=xsd.matrixSizeType(x=n, y=ny, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=10.0 * n, y=240.0, z=6.0),
    )
    limit = lambda n: xsd.limitType(minimum=0, maximum=n - 1, center=n // 2)  # noqa: E731
    header = xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=128000000),
        encoding=[
            xsd.encodingType(
                trajectory=xsd.trajectoryType.CARTESIAN, encodedSpace=space(2 * nx), reconSpace=space(nx),
                encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_0=limit(2 * nx), kspace_encoding_step_1=limit(ny)),
            )
        ],
    )  # fmt: skip
    path = tmp_path / 'package.h5'
    dataset = ismrmrd.Dataset(str(path), 'dataset', create_if_needed=True)
    dataset.write_xml_header(ismrmrd.xsd.ToXML(header))
    rng = np.random.default_rng(0)
    noise = lambda *s: 0.01 * (rng.normal(size=s) + 1j * rng.normal(size=s))  # noqa: E731
    scan = ismrmrd.Acquisition.from_array(noise(nc, 2 * nx).astype(np.complex64))
    scan.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    dataset.append_acquisition(scan)
    for repetition in range(3):
        for line in range(ny):
            one = ismrmrd.Acquisition.from_array(
                (kspace[:, :, line] + noise(nc, 2 * nx)).astype(np.complex64)
            )
            one.idx.kspace_encode_step_1, one.idx.repetition, one.center_sample = line, repetition, nx
            one.read_dir[:], one.phase_dir[:], one.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
            dataset.append_acquisition(one)
    dataset.close()
    (one,) = cine_slices(read_raw(path))
    assert one.hybrid.shape[0] == 3 and one.hybrid.shape[2:] == (nx, ny) and one.mask.all()
    assert one.noise.source == 'noise scan' and one.scale == pytest.approx(0.01, rel=0.1)
    image = np.abs(np.einsum('cd,tdxy->tcxy', one.to_file * one.scale, centred_ifft(one.hybrid, 3))).mean(0)
    expected = np.abs(disc * coils)[:, nx // 2 : nx // 2 + nx]
    assert np.abs(image - expected).mean() < 0.03
