import json
import subprocess

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.metrics import evaluate
from bids_gsrecon.interfaces.demo import make_demo
from bids_gsrecon.interfaces.io import load_mask, load_volume
from tests.helpers import require_program


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp('demo') / 'data'
    assert make_demo(directory, resolution_mm=2.5) is True
    return directory


def files(root):
    return {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}


def test_is_kept_when_made_again_and_never_replaces_something_else(demo, tmp_path):
    before = (demo / 'sub-01/anat/sub-01_T1w.nii.gz').stat().st_mtime_ns
    assert make_demo(demo, resolution_mm=2.5) is False
    assert (demo / 'sub-01/anat/sub-01_T1w.nii.gz').stat().st_mtime_ns == before
    with pytest.raises(InputError, match='not empty'):
        make_demo(demo, resolution_mm=3)
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError):
        make_demo(tmp_path / 'file' / 'demo')
    for options in ({'resolution_mm': 9}, {'n_subjects': 0}):
        with pytest.raises(InputError):
            make_demo(tmp_path / 'new', **options)
    assert not (tmp_path / 'new').exists()


def test_lesions_show_on_t2w_and_flair_but_not_on_t1w(demo):
    truth = demo / 'derivatives/truth/sub-01/anat'
    lesion = load_volume(truth / 'sub-01_space-T1w_label-lesion_mask.nii.gz').data > 0
    mask = load_mask(truth / 'sub-01_space-T1w_desc-brain_mask.nii.gz')
    t1w = load_volume(demo / 'sub-01/anat/sub-01_T1w.nii.gz')
    from scipy import ndimage

    shell = ndimage.binary_dilation(lesion, iterations=3) & ~ndimage.binary_dilation(lesion) & mask
    contrast = {}
    for name, image in (
        ('T1w', t1w),
        ('T2w', load_volume(truth / 'sub-01_space-T1w_desc-truth_T2w.nii.gz')),
        ('FLAIR', load_volume(truth / 'sub-01_space-T1w_desc-truth_FLAIR.nii.gz')),
    ):
        contrast[name] = (image.data[lesion].mean() - image.data[shell].mean()) / image.data[mask].std()
    assert lesion.sum() > 20
    assert contrast['T2w'] > 0.8 and contrast['FLAIR'] > 0.8
    assert abs(contrast['T1w']) < 0.5 * contrast['T2w'] and contrast['T1w'] > -0.3


@pytest.mark.parametrize(('suffix', 'axis'), [('T2w', 2), ('FLAIR', 1)])
def test_headers_and_saved_motion_bring_the_slices_onto_the_truth(demo, suffix, axis):
    truth = demo / 'derivatives/truth/sub-01/anat'
    image = load_volume(demo / f'sub-01/anat/sub-01_{suffix}.nii.gz')
    sidecar = json.loads((demo / f'sub-01/anat/sub-01_{suffix}.json').read_text())
    np.testing.assert_allclose(image.lattice.voxel_sizes_mm[axis], sidecar['SpacingBetweenSlices'], rtol=1e-4)
    assert image.lattice.voxel_sizes_mm.argmax() == axis
    isotropic = load_volume(truth / f'sub-01_space-T1w_desc-truth_{suffix}.nii.gz')
    mask = load_mask(truth / 'sub-01_space-T1w_desc-brain_mask.nii.gz')
    motion = np.array(
        json.loads((truth / f'sub-01_space-T1w_desc-truth_{suffix}.json').read_text())['TargetToReferenceRAS']
    )
    right = evaluate(Volume(image.data, image.lattice.moved(motion)), isotropic, mask)['ncc']
    wrong = evaluate(Volume(image.data, image.lattice.moved(np.linalg.inv(motion))), isotropic, mask)['ncc']
    assert right > wrong and right > 0.6


def test_same_seed_same_data_and_subjects_differ(tmp_path):
    make_demo(tmp_path / 'a', resolution_mm=4, n_subjects=2, seed=5)
    make_demo(tmp_path / 'b', resolution_mm=4, n_subjects=1, seed=5)
    read = {
        key: np.asarray(nib.load(tmp_path / key[0] / f'{key[1]}/anat/{key[1]}_T2w.nii.gz').dataobj)
        for key in (('a', 'sub-01'), ('b', 'sub-01'), ('a', 'sub-02'))
    }
    assert np.array_equal(read['a', 'sub-01'], read['b', 'sub-01'])
    assert read['a', 'sub-01'].shape != read['a', 'sub-02'].shape or not np.array_equal(
        read['a', 'sub-01'], read['a', 'sub-02']
    )


def test_passes_the_bids_validator(demo):
    validator = require_program('bids-validator-deno')
    for root in (demo, demo / 'derivatives/truth'):
        done = subprocess.run([validator, str(root)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
