import gzip

from bids_gsrecon.cli.workdir import remove_broken_nodes


def node(folder, **files):
    folder.mkdir(parents=True)
    content = {'result_x.pklz': gzip.compress(b'x'), 'image.nii.gz': gzip.compress(b'image' * 1000), **files}
    for name, data in content.items():
        (folder / name.replace('_h5', '.h5')).write_bytes(data)
    return folder


def test_nodes_with_empty_or_truncated_files_are_computed_again(tmp_path):
    whole = node(tmp_path / 'wf' / 'whole', field_h5=b'\x89HDF\r\n\x1a\n...')
    broken = [
        node(tmp_path / 'wf' / 'a', **{'result_x.pklz': b''}),
        node(tmp_path / 'wf' / 'b', **{'image.nii.gz': gzip.compress(b'image' * 1000)[:-20]}),
        node(tmp_path / 'wf' / 'c', field_h5=b'\0' * 100),
    ]
    assert sorted(remove_broken_nodes(tmp_path / 'wf')) == broken
    assert whole.is_dir() and not any(folder.exists() for folder in broken)


def test_no_folder_is_no_problem(tmp_path):
    assert remove_broken_nodes(tmp_path / 'none') == []
