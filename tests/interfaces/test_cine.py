"""The nodes of ``--recon cine`` and their pictures."""

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.dynamic import load_cine
from bids_gsrecon.interfaces.cine import ReconstructCine
from bids_gsrecon.interfaces.cine_reportlets import CineReportlets, figures_of_merit
from bids_gsrecon.interfaces.kspace_files import kspace_files, kspace_participants
from bids_gsrecon.reports import cine_figures
from bids_gsrecon.reports.html import collect_sessions, write_participant_report
from tests.cine_cases import fake_cine, write_kspace


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Two slices, fully sampled; nodes run in a folder of their own."""
    work = tmp_path / 'work'
    work.mkdir()
    monkeypatch.chdir(work)
    return write_kspace(tmp_path, slices=2, acceleration=1.0)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method: these tests are about the nodes."""
    from bids_gsrecon.recon.cine import method

    calls = []

    def reconstruct(kspace, options, *, seed=0, progress=None):
        calls.append({'acceleration': kspace.acceleration, 'options': options, 'seed': seed})
        return fake_cine(kspace, options)

    monkeypatch.setattr(method, 'reconstruct_cine', reconstruct)
    return calls


def run(path, **inputs):
    return ReconstructCine(in_file=str(path), **inputs).run().outputs


def test_what_the_node_writes(case, fake):
    done = run(case, options={'iterations': 7}, seed=3, n_threads=1)
    assert [call['seed'] for call in fake] == [3, 3]
    assert (fake[0]['options'].iterations, fake[0]['options'].n_threads) == (7, 1)
    magnitude, phase = nib.load(done.magnitude), nib.load(done.phase)
    assert magnitude.shape == phase.shape == (32, 25, 2, 5)
    assert magnitude.header.get_zooms()[3] == pytest.approx(0.04)
    assert np.abs(phase.get_fdata()).max() <= np.pi + 1e-6
    motion = nib.load(done.motion).get_fdata()
    assert (
        motion.shape == (32, 25, 2, 10) and np.abs(motion[..., ::2]).max() > 0 and not motion[..., 1::2].any()
    )
    for path in (done.determinant, done.eigenvalueratio):
        assert nib.load(path).shape == magnitude.shape
    assert Path(done.gif).read_bytes()[:3] == b'GIF'
    assert len(load_cine(done.model)[0]) == 2
    metadata = json.loads(Path(done.metadata_file).read_text())
    assert metadata['Verdict'] == 'check' and metadata['Reasons'][0].startswith('slice 0: chi^2')
    assert [one['chi2'] for one in metadata['Slices']] == [1.7, 1.7]
    assert metadata['CineOptions']['iterations'] == 7 and 'n_threads' not in metadata['CineOptions']
    assert 'Seconds' not in json.dumps(metadata), 'two runs are the same'


def test_regions_are_measured_over_time(case, fake, tmp_path):
    magnitude = nib.load(run(case).magnitude)
    labels = np.zeros(magnitude.shape[:3], np.uint8)
    labels[14:18, 11:14, 0], labels[14:18, 11:14, 1] = 1, 2
    nib.save(nib.Nifti1Image(labels, magnitude.affine), tmp_path / 'roi.nii.gz')
    done = run(case, regions=str(tmp_path / 'roi.nii.gz'))
    rows = [line.split('\t') for line in Path(done.roi).read_text().splitlines()]
    assert rows[0] == ['label', 'frame', 'time_ms', 'mean'] and len(rows) == 1 + 2 * 5
    expected = magnitude.get_fdata()[14:18, 11:14, 1, 3].mean()
    assert float(rows[9][3]) == pytest.approx(expected, rel=1e-4) and rows[9][:3] == ['2', '3', '120']
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / 'roi.nii.gz')
    with pytest.raises(InputError, match='not on the grid'):
        run(case, regions=str(tmp_path / 'roi.nii.gz'))


def test_full_data_are_undersampled(case, fake):
    done = run(case, retro=[3.0])
    assert [round(call['acceleration']) for call in fake] == [1, 1, 3, 3]
    rows = [line.split('\t') for line in Path(done.retro).read_text().splitlines()]
    assert rows[0] == ['slice', 'R', 'ssim', 'psnr', 'chi2', 'verdict'] and len(rows) == 3
    assert rows[1][:2] == ['0', '3'] and 0 < float(rows[1][2]) < 1


def test_pictures_and_the_page(case, fake, tmp_path):
    done = run(case, retro=[3.0])
    pictures = CineReportlets(
        result=done.magnitude, gif=done.gif, metadata_file=done.metadata_file, summary={'method': 'cine'}
    ).run()
    assert pictures.outputs.parts == ['movie', 'profile', 'chi2', 'merit', 'summary']
    assert Image.open(pictures.outputs.movie).n_frames == 5
    merit = json.loads(Path(pictures.outputs.merit).read_text())
    assert merit['verdict'] == 'check' and merit['output_shape'] == [32, 25, 2]
    assert merit['input_text'] == '4 coils, R = 1.0, 5 frames of 40 ms'
    assert [table['title'] for table in merit['tables']] == ['Slices', 'Fully sampled data, undersampled']
    assert [row[:3] for row in merit['tables'][0]['rows']] == [[0, 'check', '1.7'], [1, 'check', '1.7']]
    figures = tmp_path / 'out' / 'sub-01' / 'figures'
    figures.mkdir(parents=True)
    for path, part in zip(pictures.outputs.out_files, pictures.outputs.parts):
        (figures / f'sub-01_desc-{part}_cine{Path(path).suffix}').write_bytes(Path(path).read_bytes())
    page = write_participant_report(tmp_path / 'out', '01').read_text()
    for words in ('data:image/gif;base64,', 'A line over time', 'chi^2 of every slice', 'something moves'):
        assert words in page
    assert 'look closely at cine' in page


@pytest.mark.parametrize(
    ('verdict', 'state', 'said'),
    [
        ('trust', 'good', 'nothing stands out'),
        ('check', 'check', 'look closely at cine'),
        ('do not use', 'bad', 'do not use cine'),
    ],
)
def test_the_verdict_of_the_method_is_that_of_the_page(tmp_path, verdict, state, said):
    figures = tmp_path / 'sub-01' / 'figures'
    figures.mkdir(parents=True)
    merit = {'verdict': verdict, 'reasons': ['a reason'], 'figures': {'chi2': 9.0, 'excluded_percent': 90.0}}
    (figures / 'sub-01_desc-merit_cine.json').write_text(json.dumps(merit))
    (scan,) = collect_sessions(figures)[0].scans
    assert scan.verdict == (state, ['a reason']) and scan.badge == verdict
    page = write_participant_report(tmp_path, '01').read_text()
    assert said in page and f'<span class="badge {state}">{verdict}</span>' in page


def test_the_worst_chi2_is_the_one_farthest_from_one():
    known = {'Acceleration': 4.0, 'Slices': [{'chi2': 1.2}, {'chi2': 0.3}, {'chi2': 2.0}]}
    assert figures_of_merit(known)['chi2'] == 0.3
    known['Slices'][2]['chi2'] = 4.0
    assert figures_of_merit(known)['chi2'] == 4.0


def test_the_line_is_where_the_heart_beats():
    series = np.ones((2, 6, 20, 16), np.float32)
    series[:, ::2, 8:12, 11] = 3.0
    assert cine_figures.line_of_most_change(series[0]) == 11
    picture = np.asarray(Image.open(io.BytesIO(cine_figures.profile_montage(series, (2.0, 2.0), 0.04))))
    columns = picture[40:320, 420:1140, 0].astype(float).sum(0)  # of the first slice
    assert np.sum(np.abs(np.diff(columns)) > 1000) == 11, 'six frames, twice'


def test_chi2_of_every_slice_is_drawn():
    svg = cine_figures.chi2_plot([1.0, 5.0, float('inf')])
    assert svg == cine_figures.chi2_plot([1.0, 5.0, float('inf')]) and b'<svg' in svg
    assert svg != cine_figures.chi2_plot([1.0, 1.5, float('inf')])


def test_raw_data_are_found_by_participant_and_session(tmp_path):
    first = write_kspace(tmp_path, '01', session='b')
    second = write_kspace(tmp_path, '01')
    (second.parent / 'sub-01_cine.json').write_text('{}')
    (second.parent / 'sub-01_scout.h5').write_bytes(b'')
    (tmp_path / 'sourcedata' / 'sub-02' / 'cmr').mkdir(parents=True)
    assert kspace_files(tmp_path, '01') == [(second, None), (first, 'b')]
    assert kspace_files(tmp_path, '01', ['b']) == [(first, 'b')]
    assert kspace_participants(tmp_path) == ['01']
