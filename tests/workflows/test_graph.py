import hashlib
import json

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.interfaces.bids import BidsName, DerivativeSink, PictureSink
from bids_gsrecon.workflows.boilerplate import read_bibliography, write_boilerplate
from bids_gsrecon.workflows.registry import RECONS, session_builder
from tests.bids_datasets import healthy, sink_paths, write_t1w, write_thick


@pytest.fixture
def make(config):
    return lambda *arguments: build(config(*arguments))


def test_sinks_carry_the_names_of_bids(tmp_path, make):
    root = healthy(tmp_path / 'bids')
    write_thick(root, '01', entities='_acq-ax_run-01')
    paths = sink_paths(make().workflow)
    assert 'sub-01/anat/sub-01_acq-ax_run-01_space-T1w_res-iso_desc-sr_T2w.nii.gz' in paths
    assert 'sub-01/anat/sub-01_acq-ax_run-01_from-T2w_to-T1w_mode-image_xfm.txt' in paths
    assert 'sub-01/anat/sub-01_space-T1w_res-iso_desc-uncertainty_FLAIR.nii.gz' in paths
    assert 'sub-01/anat/sub-01_desc-brain_mask.nii.gz' in paths
    assert 'sub-01/anat/sub-01_desc-preproc_T1w.nii.gz' in paths
    assert 'sub-01/anat/sub-01_desc-scaffold_T1w.h5' in paths
    assert len(paths) == len(set(paths)), 'no two results share a name'


def test_session_without_t1w_keeps_its_own_name(tmp_path, make):
    root = healthy(tmp_path / 'bids', labels=())
    write_t1w(root, '01', session='a')
    for session in 'ab':
        write_thick(root, '01', session=session)
    paths = sink_paths(make().workflow)
    assert 'sub-01/ses-b/anat/sub-01_ses-b_space-T1w_res-iso_desc-sr_T2w.nii.gz' in paths
    assert 'sub-01/ses-a/anat/sub-01_ses-a_desc-preproc_T1w.nii.gz' in paths


def test_options_shape_the_graph(tmp_path, make):
    healthy(tmp_path / 'bids')
    plain = make().workflow
    assert not any('uncertainty' in path for path in sink_paths(make('--no-uncertainty').workflow))
    assert any('uncertainty' in path for path in sink_paths(plain))
    node = 'sub_01_wf.session_wf.T2w_wf.harmonize'
    assert plain.get_node(node).interface.inputs.output_resolution_mm == 0
    coarse = make('--output-resolution', '3', '--random-seed', '9', '--relax-geometry').workflow.get_node(
        node
    )
    assert coarse.interface.inputs.output_resolution_mm == 3
    assert coarse.interface.inputs.seed == 9
    assert coarse.interface.inputs.options['relax_geometry'] is True


def test_low_mem_gives_every_processor_to_one_reconstruction(tmp_path, make):
    healthy(tmp_path / 'bids')
    arguments = ['--nprocs', '4', '--omp-nthreads', '1']
    node = 'sub_01_wf.session_wf.T2w_wf.harmonize'
    assert make(*arguments).workflow.get_node(node).n_procs == 1
    assert make(*arguments, '--low-mem').workflow.get_node(node).n_procs == 4


def test_every_participant_has_its_own_crash_folder(tmp_path, make):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    workflow = make().workflow
    for name in workflow.list_node_names():
        folder = workflow.get_node(name).config['execution']['crashdump_dir']
        assert f'sub-{name[4:6]}' in folder


def test_two_builds_hash_alike(tmp_path, make):
    """The work folder of a run is found again by the next one."""
    healthy(tmp_path / 'bids')
    first, second = make().workflow, make('--nprocs', '3', '--omp-nthreads', '2').workflow
    node = 'sub_01_wf.session_wf.learn_scaffold'
    digests = [w.get_node(node).interface.inputs.get_hashval()[1] for w in (first, second)]
    assert digests[0] == digests[1]


def test_nothing_to_run_gives_no_graph(tmp_path, make):
    root = healthy(tmp_path / 'bids', labels=())
    write_t1w(root, '01')
    assert make().workflow is None


def test_boilerplate_cites_what_the_bibliography_has(tmp_path, make):
    healthy(tmp_path / 'bids')
    text = make().boilerplate
    assert '[@' not in text
    assert '2606.02961' in text
    assert 'N4ITK' in text
    assert '10.3389/fninf.2011.00013' in text
    assert text.count('T1w image served as reference') == 1
    with pytest.raises(KeyError):
        write_boilerplate('As nobody showed [@nobody].')
    assert all(
        any({'title', name} <= set(entry) for name in ('author', 'eprint', 'url'))
        for entry in read_bibliography().values()
    )


def test_registry_builders_exist():
    for recon in RECONS.values():
        assert callable(session_builder(recon.name))


@pytest.mark.parametrize(
    'name',
    [
        'sub-01/anat/sub-01_T1w.nii.gz',
        'sub-01/ses-2/anat/sub-01_ses-2_acq-ax_ce-gad_rec-x_run-01_echo-1_part-mag_space-T1w_chunk-1_res-iso_desc-sr_T2w.nii.gz',
    ],
)
def test_names_round_trip(name):
    assert BidsName.parse(name).path('.nii.gz').as_posix() == name


def test_unknown_entities_stay():
    name = BidsName.parse('sub-01/anat/sub-01_foo-1_run-2_T2w.nii').replaced(space='T1w')
    assert name.stem() == 'sub-01_run-2_foo-1_space-T1w_T2w'


def write_source(tmp_path, content=b'voxels'):
    source = tmp_path / 'source.nii.gz'
    source.write_bytes(content)
    return source


def sink(tmp_path, **inputs):
    interface = DerivativeSink(
        in_file=str(tmp_path / 'source.nii.gz'),
        output_dir=str(tmp_path / 'out'),
        out_path='sub-01/anat/sub-01_T2w.nii.gz',
        **inputs,
    )
    interface.run(cwd=str(tmp_path))
    return tmp_path / 'out' / 'sub-01' / 'anat' / 'sub-01_T2w.nii.gz'


def test_sink_writes_file_sidecar_and_companions(tmp_path):
    write_source(tmp_path)
    extra = tmp_path / 'extra.json'
    extra.write_text('{"B": 2}')
    companions = {'sub-01/anat/sub-01_T2w.bval': '0\n'}
    written = sink(tmp_path, metadata={'A': 1}, metadata_file=str(extra), companions=companions)
    assert written.read_bytes() == b'voxels'
    assert json.loads(written.with_name('sub-01_T2w.json').read_text()) == {'A': 1, 'B': 2}
    assert written.with_name('sub-01_T2w.bval').read_text() == '0\n'
    assert not list(written.parent.glob('.tmp-*'))


def test_sink_leaves_a_right_file_alone_and_replaces_a_wrong_one(tmp_path):
    write_source(tmp_path)
    written = sink(tmp_path)
    before = written.stat().st_mtime_ns, written.stat().st_ino
    assert sink(tmp_path).stat().st_ino == before[1]
    written.write_bytes(b'wrong!')
    assert sink(tmp_path).read_bytes() == b'voxels'
    written.unlink()
    assert sink(tmp_path).read_bytes() == b'voxels'


def test_sink_that_fails_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    from bids_gsrecon.errors import InputError
    from bids_gsrecon.interfaces import bids

    write_source(tmp_path)
    written = sink(tmp_path)
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    write_source(tmp_path, b'newer voxels')

    def full_disk(source, destination):
        from pathlib import Path

        Path(destination).write_bytes(b'newer')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(bids.shutil, 'copyfile', full_disk)
    with pytest.raises(InputError, match='No space left'):
        sink(tmp_path)
    assert hashlib.sha256(written.read_bytes()).hexdigest() == digest
    assert not list(written.parent.glob('.tmp-*'))


def test_pictures_of_all_sessions_lie_in_one_folder(tmp_path):
    for name in ('a.png', 'b.json'):
        (tmp_path / name).write_text(name)
    interface = PictureSink(
        in_files=[str(tmp_path / 'a.png'), str(tmp_path / 'b.json')],
        parts=['before', 'merit'],
        output_dir=str(tmp_path / 'out'),
        entities={'sub': '01', 'ses': '2', 'acq': 'ax'},
        suffix='T2w',
    )
    interface.run(cwd=str(tmp_path))
    names = sorted(path.name for path in (tmp_path / 'out' / 'sub-01' / 'figures').iterdir())
    assert names == ['sub-01_ses-2_acq-ax_desc-before_T2w.png', 'sub-01_ses-2_acq-ax_desc-merit_T2w.json']
