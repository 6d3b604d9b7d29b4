import json
from pathlib import Path

import numpy as np
from PIL import Image

from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import save_volume
from tests.phantoms import head


def test_reportlets_of_a_contrast_flip_with_the_reference(tmp_path, monkeypatch):
    from bids_gsrecon.interfaces.reportlets import HarmonizeReportlets, ReferenceReportlets

    monkeypatch.chdir(tmp_path)
    t1w, t2w, mask, _ = head((26, 28, 24))
    thick = thick_slices(t2w, axis=1, factor=4)
    motion = np.eye(4)
    motion[0, 3] = 2.0
    files = {
        'reference': save_volume(tmp_path / 't1w.nii.gz', t1w.data, t1w.affine),
        'target': save_volume(tmp_path / 't2w.nii.gz', thick.data, np.linalg.inv(motion) @ thick.affine),
        'result': save_volume(tmp_path / 'result.nii.gz', t2w.data, t2w.affine),
        'mask': save_volume(tmp_path / 'mask.nii.gz', mask, t1w.affine, dtype=np.uint8),
        'uncertainty': save_volume(tmp_path / 'u.nii.gz', mask * 3.0, t1w.affine),
        'residual': save_volume(tmp_path / 'r.nii.gz', np.zeros(thick.data.shape), thick.affine),
    }
    files = {name: str(path) for name, path in files.items()}
    sidecar = tmp_path / 'figures.json'
    sidecar.write_text(json.dumps({'FiguresOfMerit': {'slice_residual_percent': 1.0}}))
    contrast = HarmonizeReportlets(
        **files, target_to_reference=motion.tolist(), figures=str(sidecar), parameters={'profile': 'box'}
    ).run()
    assert contrast.outputs.parts == [
        'before', 'interpolated', 'after', 'registration', 'uncertainty', 'residual', 'merit',
    ]  # fmt: skip
    assert len(contrast.outputs.out_files) == 7
    merit = json.loads(Path(contrast.outputs.merit).read_text())
    assert merit['figures'] == {'slice_residual_percent': 1.0}
    assert merit['input_shape'] == [26, 7, 24] and merit['parameters'] == {'profile': 'box'}
    session = ReferenceReportlets(
        reference=files['reference'], mask=files['mask'], summary={'method': 'harmonize'}
    ).run()
    assert session.outputs.parts == ['reference', 'mask', 'summary']
    pictures = [
        contrast.outputs.before,
        contrast.outputs.interpolated,
        contrast.outputs.after,
        session.outputs.reference,
    ]
    assert len({Image.open(path).size for path in pictures}) == 1
    # The motion was undone: before and after show the same head.
    before, after = (np.asarray(Image.open(p), dtype=float).ravel() for p in (pictures[0], pictures[2]))
    assert np.corrcoef(before, after)[0, 1] > 0.9
    # The same motion from a file gives the same picture.
    from bids_gsrecon.interfaces.registration import save_itk_transform

    save_itk_transform(tmp_path / 'motion.txt', motion)
    kept = Path(contrast.outputs.before).read_bytes()
    again = HarmonizeReportlets(**files, transform=str(tmp_path / 'motion.txt')).run()
    assert Path(again.outputs.before).read_bytes() == kept
