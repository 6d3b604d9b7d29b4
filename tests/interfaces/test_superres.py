"""The node of ``--recon superres`` and its pictures."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.interfaces.reportlets import SuperresReportlets
from bids_gsrecon.interfaces.superres import SuperResolve
from bids_gsrecon.interfaces.superres_checks import check_memory, check_overlap, is_fine_already
from tests.phantoms import head

FAST = {'iterations': 3, 'in_plane_learning': False, 'scale_learning': False, 'device': 'cpu'}


@pytest.fixture
def thick(tmp_path):
    _, t2w, _, _ = head((24, 26, 20))
    volume = thick_slices(t2w, axis=2, factor=4)
    return save_volume(tmp_path / 'T2w.nii.gz', volume.data, volume.affine)


def node(path, **changes):
    inputs = {'in_file': str(path), 'source': '/bids/sub-01_T2w.nii.gz', 'slice_axis': 2}
    inputs |= {'slice_thickness_mm': 3.0, 'output_mm': 1.0, 'options': FAST}
    return SuperResolve(**inputs | changes)


def test_node_and_pictures(thick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = node(thick).run().outputs
    image = nib.load(done.out_file)
    assert image.shape == (24, 26, 20)
    for path in (done.out_amplitude, done.out_relaxation_proxy, done.out_mask):
        np.testing.assert_allclose(nib.load(path).affine, image.affine)
    assert nib.load(done.out_residual).shape == nib.load(thick).shape
    metadata = json.loads(Path(done.metadata_file).read_text())
    assert metadata['SliceThickness'] == 3.0 and metadata['SliceProfile'] == 'box'
    assert metadata['SuperresOptions']['iterations'] == 3
    assert json.loads(Path(done.image_metadata_file).read_text()) == {
        'SkullStripped': metadata['SkullStripped']
    }
    assert not [name for name in metadata['FiguresOfMerit'] if 'seconds' in name], 'two runs are the same'
    drawn = SuperresReportlets(
        target=str(thick),
        result=done.out_file,
        mask=done.out_mask,
        amplitude=done.out_amplitude,
        relaxation_proxy=done.out_relaxation_proxy,
        residual=done.out_residual,
        figures=done.metadata_file,
        parameters={'voxel_profile': 'auto'},
        summary={'method': 'superres'},
    ).run()
    assert drawn.outputs.parts == [
        'before', 'interpolated', 'after', 'residual', 'support', 'amplitude', 'relaxationproxy', 'merit',
        'summary',
    ]  # fmt: skip
    pictures = [drawn.outputs.before, drawn.outputs.interpolated, drawn.outputs.after, drawn.outputs.support]
    assert len({Image.open(path).size for path in pictures}) == 1
    merit = json.loads(Path(drawn.outputs.merit).read_text())
    assert merit['figures'] == metadata['FiguresOfMerit']
    assert (merit['input_shape'], merit['output_shape']) == ([24, 26, 5], [24, 26, 20])


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'output_mm': 4.0}, 'fine as the output'),
        ({'memory_limit_gb': 0.5}, 'limit here is 0.5 GB'),
    ],
)
def test_what_cannot_be_done_names_the_file_of_the_user(thick, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        node(thick, **changes).run()
    assert str(error.value).startswith('/bids/sub-01_T2w.nii.gz')


def test_memory_counts_what_is_reconstructed_only():
    image = Lattice((100, 100, 20), np.diag([1.0, 1.0, 5.0, 1.0]))
    output = image.resampled(0.25)
    mask = np.zeros(image.shape, bool)
    mask[:2, :2, :2] = True
    check_memory('a.nii', image, mask, output, 4.0)
    with pytest.raises(InputError, match='a.nii: an output of 400 x 400 x 400 voxels'):
        check_memory('a.nii', image, np.ones(image.shape, bool), output, 4.0)
    check_memory('a.nii', image, np.ones(image.shape, bool), output, 0.0)  # no limit known


def test_fine_already_and_overlap():
    image = Lattice((10, 10, 10), np.diag([1.0, 1.0, 1.2, 1.0]))
    assert is_fine_already(image, image.resampled(1.0)), 'nearly isotropic'
    assert not is_fine_already(image, image.resampled(0.6))
    mask = np.ones(image.shape, bool)
    check_overlap('a.nii', image, mask, image.resampled(0.5), 'b.nii')
    away = np.eye(4)
    away[0, 3] = 100
    with pytest.raises(InputError, match='b.nii does not overlap a.nii'):
        check_overlap('a.nii', image, mask, image.moved(away), 'b.nii')
