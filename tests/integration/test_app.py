"""The whole app in processes of its own, on brains of 20 voxels: minutes, not seconds."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.imaging.ismrmrd_files import read_raw
from bids_gsrecon.imaging.kspace import cine_slices
from bids_gsrecon.interfaces.registration import load_itk_transform
from tests.bids_datasets import (
    affine,
    brain,
    healthy,
    write_description,
    write_image,
    write_t1w,
    write_thick,
)
from tests.cine_cases import write_kspace
from tests.helpers import require_program
from tests.moving_datasets import write_moving

pytestmark = pytest.mark.integration
FAST = ['--sloppy', '--scaffold-iterations', '2', '--skip-bids-validation', '--mem', '6G']


def command(root, *arguments, out='out', work='work', level='participant'):
    paths = [root / 'bids', root / out, level, '-w', root / work]
    return [sys.executable, '-m', 'bids_gsrecon', *map(str, [*paths, *FAST, *arguments])]


def run(root, *arguments, **kwargs):
    return subprocess.run(command(root, *arguments, **kwargs), capture_output=True, text=True, timeout=600)


def results(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob('sub-*/**/*.nii.gz'))
    }


def last_status(folder):
    path = max(folder.glob('logs/*/status.json'), key=lambda item: item.stat().st_mtime)
    return json.loads(path.read_text())


def validator_errors(folder):
    arguments = [require_program('bids-validator-deno'), str(folder), '--format', 'json']
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    issues = json.loads(done.stdout)['issues']['issues']
    return [issue for issue in issues if issue['severity'] == 'error']


@pytest.fixture(scope='module')
def app(tmp_path_factory):
    """A run on one healthy participant and three broken ones; (folder, finished process)."""
    root = tmp_path_factory.mktemp('app')
    bids = healthy(root / 'bids', labels=('01', '02', '03'))
    path = bids / 'sub-02' / 'anat' / 'sub-02_T2w.nii.gz'
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)
    path = bids / 'sub-03' / 'anat' / 'sub-03_T2w.nii.gz'
    image = nib.load(path)
    away = image.affine.copy()
    away[:3, 3] += 500
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), away), path)
    write_thick(bids, '04')
    write_thick(bids, '04', 'FLAIR')
    return root, run(root, '--nprocs', '2', '--omp-nthreads', '1', '-d', f'x={bids}')


def test_the_others_go_on_and_every_error_is_one_sentence(app):
    root, done = app
    assert done.returncode == 1, done.stderr
    status = last_status(root / 'out')
    assert status['exit_code'] == 1
    people = status['participants']
    assert [people[label]['status'] for label in ('01', '02', '03', '04')] == [
        'ok',
        'failed',
        'failed',
        'failed',
    ]
    assert people['01']['errors'] == []
    for label, said in (('02', 'NaN'), ('03', 'does not overlap'), ('04', 'no T1w')):
        assert len(people[label]['errors']) == 1
        sentence = people[label]['errors'][0]
        assert said in sentence
        assert f'sub-{label}' in sentence
        assert sentence in done.stderr
        page = (root / 'out' / f'sub-{label}.html').read_text()
        assert said in page
    assert 'Traceback' not in done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == status['verdict']
    assert 'sub-02, sub-03, sub-04' in status['verdict']


def test_what_could_be_done_was_done_and_nothing_is_half_written(app):
    out = app[0] / 'out'
    found = results(out)
    for label in ('01', '02', '03'):
        assert f'sub-{label}/anat/sub-{label}_space-T1w_res-iso_desc-sr_FLAIR.nii.gz' in found
    assert 'sub-01/anat/sub-01_space-T1w_res-iso_desc-sr_T2w.nii.gz' in found
    assert 'sub-02/anat/sub-02_space-T1w_res-iso_desc-sr_T2w.nii.gz' not in found
    assert 'sub-03/anat/sub-03_space-T1w_res-iso_desc-sr_T2w.nii.gz' not in found
    assert not list(out.rglob('.tmp-*'))


def test_results_are_on_the_grid_of_the_t1w_and_carry_their_metadata(app):
    root, _ = app
    anat = root / 'out' / 'sub-01' / 'anat'
    t1w = nib.load(root / 'bids' / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz')
    stem = 'sub-01_space-T1w_res-iso_desc-sr_T2w'
    image = nib.load(anat / f'{stem}.nii.gz')
    assert image.shape == t1w.shape
    np.testing.assert_allclose(image.affine, t1w.affine, atol=1e-5)
    assert np.isfinite(image.get_fdata()).all()
    brain = nib.load(anat / 'sub-01_desc-brain_mask.nii.gz').get_fdata() > 0
    assert np.corrcoef(image.get_fdata()[brain], t1w.get_fdata()[brain])[0, 1] < 0.9, 'it is not the T1w'
    sidecar = json.loads((anat / f'{stem}.json').read_text())
    assert {'SkullStripped', 'Resolution', 'SpatialReference', 'Sources', 'HarmonizeOptions'} <= set(sidecar)
    assert sidecar['Sources'][0] == 'bids:raw:sub-01/anat/sub-01_T2w.nii.gz'
    assert sidecar['SliceThickness'] == 8.0
    motion = load_itk_transform(anat / 'sub-01_from-T2w_to-T1w_mode-image_xfm.txt')
    np.testing.assert_allclose(motion, sidecar['TargetToReferenceRAS'], atol=1e-9)
    description = json.loads((root / 'out' / 'dataset_description.json').read_text())
    assert description['GeneratedBy'][0]['Name'] == 'bids_gsrecon'
    assert 'raw' in description['DatasetLinks']


def test_the_bids_validator_accepts_the_output(app):
    assert validator_errors(app[0] / 'out') == []


def test_a_second_run_reuses_everything(app):
    root, _ = app
    node = root / 'work' / 'bids_gsrecon_wf' / 'sub_01_wf' / 'session_wf'
    kept = [*node.rglob('scaffold.h5'), *node.rglob('image.nii.gz'), *node.rglob('desc-after.png')]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 5
    found = results(root / 'out')
    shutil.rmtree(root / 'out' / 'sub-01')
    done = run(root, '--participant-label', '01')
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert results(root / 'out') == found


def test_killed_in_the_middle_it_goes_on_to_the_same_result(app):
    root, _ = app
    folders = {'out': 'out-killed', 'work': 'work-killed'}
    arguments = ['--participant-label', '01', '--nprocs', '1']
    process = subprocess.Popen(
        command(root, *arguments, **folders),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    learned = root / 'work-killed' / 'bids_gsrecon_wf' / 'sub_01_wf' / 'session_wf' / 'learn_scaffold'
    deadline = time.monotonic() + 300
    while not (learned / 'result_learn_scaffold.pklz').exists():
        assert process.poll() is None, 'it must not end before it is killed'
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    scaffold = (learned / 'scaffold.h5').stat().st_mtime_ns
    done = run(root, *arguments, **folders)
    assert done.returncode == 0, done.stderr
    assert (learned / 'scaffold.h5').stat().st_mtime_ns == scaffold, 'what was done is not done again'
    ours = results(root / 'out-killed')
    assert ours == {
        name: digest for name, digest in results(root / 'out').items() if name.startswith('sub-01')
    }


def test_terminated_it_ends_at_once_and_says_so(app):
    root, _ = app
    arguments = ['--participant-label', '01', '--nprocs', '2', '--omp-nthreads', '1']
    folders = {'out': 'out-ended', 'work': 'work-ended'}
    process = subprocess.Popen(
        command(root, *arguments, **folders), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list(root.glob('work-ended/bids_gsrecon_wf/**/check_reference/*.pklz')):
        assert process.poll() is None
        time.sleep(0.05)
    started = time.monotonic()
    process.terminate()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert time.monotonic() - started < 60
    status = last_status(root / 'out-ended')
    assert status['exit_code'] == 130
    assert 'INTERRUPTED' in status['verdict']
    assert status['participants']['01']['status'] == 'failed'
    assert 'run the same command again' in text
    assert 'Traceback' not in text


def test_reports_group_and_boilerplate_without_computing(app):
    root, _ = app
    page = root / 'out' / 'sub-02.html'
    page.unlink()
    done = run(root, '--reports-only', '--participant-label', '02')
    assert done.returncode == 1, 'its failure is not forgotten'
    assert 'NaN' in page.read_text()
    group = run(root, level='group')
    assert group.returncode == 0, group.stderr
    assert len((root / 'out' / 'group_merit.tsv').read_text().splitlines()) == 5
    (root / 'out' / 'logs' / 'CITATION.md').unlink()
    done = run(root, '--boilerplate-only')
    assert done.returncode == 0, done.stderr
    assert 'AtlasGS' in (root / 'out' / 'logs' / 'CITATION.md').read_text()


def test_nothing_to_do_is_exit_code_70(tmp_path):
    root = Path(tmp_path)
    healthy(root / 'bids', labels=())
    write_t1w(root / 'bids', '01')
    done = run(root)
    assert done.returncode == 70, done.stderr
    assert last_status(root / 'out')['participants']['01']['status'] == 'nothing to do'


def test_wrong_arguments_are_exit_code_2_and_write_nothing(tmp_path):
    healthy(tmp_path / 'bids')
    done = run(tmp_path, '--participant-label', '99')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert not list(tmp_path.glob('out/*'))
    assert run(tmp_path, '--recon', 'grappa').returncode == 2


def test_a_lone_thick_scan_is_super_resolved(tmp_path):
    bids = write_description(tmp_path / 'bids')
    thick = write_thick(bids, '01', metadata={'SliceThickness': 6.0})
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert '--recon superres (a lone anisotropic scan (T2w)): 1 image(s)' in done.stdout
    assert 'slices of 6 mm every 8 mm, with gaps' in done.stdout
    out = tmp_path / 'out'
    stem = 'sub-01/anat/sub-01_res-iso_desc'
    assert list(results(out)) == [
        f'{stem}-amplitude_T2w.nii.gz',
        f'{stem}-relaxationproxy_T2w.nii.gz',
        f'{stem}-sr_T2w.nii.gz',
        f'{stem}-supportT2w_mask.nii.gz',
    ]
    image = nib.load(out / f'{stem}-sr_T2w.nii.gz')
    np.testing.assert_allclose(image.header.get_zooms(), 4)
    assert image.shape == (20, 20, 20) and nib.load(thick).shape == (20, 20, 10)
    sidecar = json.loads((out / f'{stem}-sr_T2w.json').read_text())
    assert sidecar['Sources'] == ['bids:raw:sub-01/anat/sub-01_T2w.nii.gz']
    assert sidecar['SliceThickness'] == 6.0 and 'SpatialReference' not in sidecar
    page = (out / 'sub-01.html').read_text()
    assert 'Relaxation proxy' in page and 'Acquired' in page and '2603.09621' in page
    assert validator_errors(out) == []


def test_superres_of_every_kind_of_image_leaves_broken_and_fine_ones(tmp_path):
    bids = healthy(tmp_path / 'bids')
    data = np.repeat(brain((20, 20, 10), (4, 4, 8))[..., None], 3, axis=3)
    for kind, suffix in (('dwi', 'dir-AP_dwi'), ('perf', 'asl')):
        write_image(bids / 'sub-01' / kind / f'sub-01_{suffix}.nii.gz', data, affine((4, 4, 8)))
    (bids / 'sub-01' / 'dwi' / 'sub-01_dir-AP_dwi.bval').write_text('0 1000 5\n')
    data[5, 5, 5] = np.nan
    write_image(bids / 'sub-01' / 'anat' / 'sub-01_PDw.nii.gz', data[..., 0], affine((4, 4, 8)))
    done = run(tmp_path, '--recon', 'superres', '--nprocs', '2', '--omp-nthreads', '1')
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 1 and 'sub-01_PDw.nii.gz holds NaN' in errors[0]
    assert 'sub-01_T1w.nii.gz is left out' in done.stdout
    made = {path.rsplit('_', 1)[1] for path in results(tmp_path / 'out') if '_desc-sr_' in path}
    assert made == {'T2w.nii.gz', 'FLAIR.nii.gz', 'dwi.nii.gz', 'asl.nii.gz'}
    assert validator_errors(tmp_path / 'out') == []


def test_moving_stacks_become_a_volume_and_broken_ones_fail_alone(tmp_path):
    bids = write_description(tmp_path / 'bids')
    write_moving(bids, '01', session='a', masks=tmp_path / 'masks', void_share=0.1)
    truncated = write_moving(bids, '02', n_stacks=2)[1]
    truncated.write_bytes(truncated.read_bytes()[:2000])
    lost = write_moving(bids, '03', n_stacks=2)[0]
    image = nib.load(lost)
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), lost)
    arguments = ['--recon', 'svr', '--output-resolution', '2', '-d', tmp_path / 'masks']
    done = run(tmp_path, *arguments, '--nprocs', '2', '--omp-nthreads', '1')
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 2
    assert truncated.name in errors[0] and 'truncated' in errors[0]
    assert lost.name in errors[1] and 'NaN' in errors[1]
    people = last_status(tmp_path / 'out')['participants']
    assert [people[label]['status'] for label in ('01', '02', '03')] == ['ok', 'failed', 'failed']
    out = tmp_path / 'out'
    stem = 'sub-01/ses-a/anat/sub-01_ses-a_rec-svr_desc'
    assert [name for name in results(out) if '/anat/' in name] == [
        f'{stem}-brain_mask.nii.gz',
        f'{stem}-coverage_T2w.nii.gz',
        f'{stem}-recon_T2w.nii.gz',
        f'{stem}-uncertainty_T2w.nii.gz',
    ]
    sidecar = json.loads((out / f'{stem}-recon_T2w.json').read_text())
    assert sidecar['SkullStripped'] and sidecar['FiguresOfMerit']['ncc_mean'] > 0.6
    assert sidecar['Sources'][0] == 'bids:raw:sub-01/ses-a/anat/sub-01_ses-a_run-1_T2w.nii.gz'
    columns = (out / f'{stem}-slices_T2w.tsv').read_text().splitlines()[0].split('\t')
    assert list(json.loads((out / f'{stem}-slices_T2w.json').read_text())) == columns
    poses = out / 'sub-01' / 'ses-a' / 'svr' / 'sub-01_ses-a_rec-svr_T2w'
    assert len(list(poses.glob('*.tfm'))) == sidecar['FiguresOfMerit']['slices']
    assert len(list(poses.glob('stack-*_simulated.nii.gz'))) == 3
    page = (out / 'sub-01.html').read_text()
    for words in (
        'Motion of every slice',
        'Mean of stacks',
        'Excluded slices',
        '2603.00145',
        'image/svg+xml',
    ):
        assert words in page
    assert validator_errors(out) == []


def test_kspace_becomes_series_and_broken_files_fail_alone(tmp_path):
    bids = write_description(tmp_path / 'bids')
    write_kspace(bids, session='a', entities='_run-1', slices=2)
    truncated = write_kspace(bids, session='a', entities='_run-2')
    truncated.write_bytes(truncated.read_bytes()[:9000])
    lost = write_kspace(bids, session='a', entities='_run-3')
    with h5py.File(lost, 'r+') as file:  # what only the node sees
        table = file['dataset/data'][:]
        table['data'][5][:] = np.nan
        file['dataset/data'][...] = table
    write_kspace(bids, '02', acceleration=1.0)
    drawn = tmp_path / 'drawn' / 'sub-02' / 'cine' / 'sub-02_desc-roi_dseg.nii.gz'
    grid = cine_slices(read_raw(bids / 'sourcedata' / 'sub-02' / 'cmr' / 'sub-02_cine.h5'))[0].affine
    labels = np.zeros((32, 25, 1), np.uint8)
    labels[12:20, 9:15] = 1
    write_image(drawn, labels, grid)
    arguments = ['--retro-R', '3', '-d', tmp_path / 'drawn', '--nprocs', '2', '--omp-nthreads', '1']
    done = run(tmp_path, *arguments)
    assert done.returncode == 1, done.stderr
    assert 'sub-02: --recon cine (no isotropic T1w' in done.stdout
    errors = [line for line in done.stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 2
    assert truncated.name in errors[0] and 'truncated' in errors[0]
    assert lost.name in errors[1] and 'NaN' in errors[1]
    out = tmp_path / 'out'
    people = last_status(out)['participants']
    for label, stem in (('01', 'sub-01_ses-a_run-1'), ('02', 'sub-02')):
        (said,) = people[label]['verdicts']
        assert said.startswith(f'{stem}_cine: ') and f'bids_gsrecon: {said}\n' in done.stdout
    assert [people[label]['status'] for label in ('01', '02')] == ['failed', 'ok']
    made = results(out)
    first = 'sub-01/ses-a/cine/sub-01_ses-a_run-1_part-mag_desc-recon_cine.nii.gz'
    assert first in made and not any('run-2' in name or 'run-3' in name for name in made)
    image = nib.load(out / first)
    assert image.shape == (32, 25, 2, 5) and image.header.get_zooms()[3] == pytest.approx(0.04)
    second = out / 'sub-02' / 'cine'
    sidecar = json.loads((second / 'sub-02_part-mag_desc-recon_cine.json').read_text())
    assert sidecar['Verdict'] in ('trust', 'check', 'do not use')
    assert sidecar['Sources'][0] == 'bids:raw:sourcedata/sub-02/cmr/sub-02_cine.h5'
    assert len((second / 'sub-02_desc-roi_cine.tsv').read_text().splitlines()) == 6
    assert len((second / 'sub-02_desc-retro_cine.tsv').read_text().splitlines()) == 2
    assert Image.open(second / 'sub-02_desc-recon_cine.gif').n_frames == 5
    page = (out / 'sub-02.html').read_text()
    for words in ('data:image/gif', 'A line over time', sidecar['Verdict'], 'ESPIRiT', 'undersampled'):
        assert words in page
    assert validator_errors(out) == []


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        'import sys\nfrom bids_gsrecon.cli.run import main\n'
        'try:\n    main(["--help"])\nexcept SystemExit as stop:\n    assert stop.code == 0\n'
        'heavy = {"torch", "numba", "nipype", "bids", "ants", "matplotlib", "scipy"} & set(sys.modules)\n'
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)


def test_a_network_is_trained_on_a_cohort_and_applied_to_another_participant(tmp_path):
    bids = write_description(tmp_path / 'bids')
    for label in ('01', '02', '03'):
        write_t1w(bids, label, sizes=(1.25, 1.25, 1.25))
        pixel = 2.5 if label == '03' else 1.25
        shape, sizes = (round(80 / pixel), round(80 / pixel), 16), (pixel, pixel, 5.0)
        image = bids / f'sub-{label}' / 'anat' / f'sub-{label}_T2w.nii.gz'
        write_image(image, brain(shape, sizes, -1.0), affine(sizes), metadata={'SliceThickness': 5.0})
    common = ['--recon', 'm2asr', '--nprocs', '2', '--omp-nthreads', '1']
    people = ['--participant-label', '01', '02']
    done = run(tmp_path, *common, '--train', *people, level='group')
    assert done.returncode == 0, done.stderr
    assert 'SUCCESS: tiny trained on 2 pair(s), 1 participant(s) held out, 20 steps' in done.stdout
    out = tmp_path / 'out'
    card = json.loads((out / 'm2asr' / 'm2asr-tiny_card.json').read_text())
    assert card['contrasts'] == ['T2w'] and set(card['scores']) == {'1.5', '2', '3', '4'}
    assert len(list((tmp_path / 'work' / 'm2asr_pairs').iterdir())) == 2
    assert not list((tmp_path / 'work' / 'bids_gsrecon_wf').glob('sub_*'))
    done = run(tmp_path, *common, '--participant-label', '03')
    assert done.returncode == 2 and 'group --recon m2asr --train' in done.stderr
    weights = out / 'm2asr' / 'm2asr-tiny.h5'
    done = run(tmp_path, *common, '--participant-label', '03', '--weights', weights)
    assert done.returncode == 0, done.stderr
    stem = 'sub-03/anat/sub-03_res-inplane_desc-sr_T2w'
    assert list(results(out)) == [f'{stem}.nii.gz']
    image = nib.load(out / f'{stem}.nii.gz')
    assert image.shape == (64, 64, 16)
    np.testing.assert_allclose(image.header.get_zooms(), (1.25, 1.25, 5.0))
    sidecar = json.loads((out / f'{stem}.json').read_text())
    assert sidecar['Sources'][:2] == [
        f'bids:raw:sub-03/anat/sub-03_{suffix}.nii.gz' for suffix in ('T2w', 'T1w')
    ]
    assert sidecar['InPlaneFactors'] == [2.0, 2.0] and sidecar['Network']['steps'] == 20
    assert sidecar['FiguresOfMerit']['own_gain_db'] > -3
    assert f'{Path(stem).name}: {sidecar["Verdict"]}' in done.stdout
    page = (out / 'sub-03.html').read_text()
    for words in ('Gain on itself', 'What the network added', 'Anatomy Guidance', 'Registration check'):
        assert words in page
    truncated = tmp_path / 'cut.h5'
    truncated.write_bytes(weights.read_bytes()[:5000])
    done = run(tmp_path, *common, '--participant-label', '03', '--weights', truncated)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'cut.h5' in done.stderr
    assert validator_errors(out) == []
