"""BIDS file names and the sink that writes derivatives: one copy, atomically, with its sidecar."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_gsrecon.atomic import write_atomically, write_text
from bids_gsrecon.errors import InputError

# The order of the BIDS schema (bids-validator-deno 3 checks it).
ENTITY_ORDER = [
    'sub',
    'tpl',
    'ses',
    'cohort',
    'sample',
    'task',
    'tracksys',
    'acq',
    'nuc',
    'voi',
    'ce',
    'trc',
    'stain',
    'rec',
    'dir',
    'run',
    'mod',
    'echo',
    'flip',
    'inv',
    'mt',
    'part',
    'proc',
    'hemi',
    'space',
    'split',
    'recording',
    'chunk',
    'atlas',
    'seg',
    'scale',
    'res',
    'den',
    'label',
    'desc',
    'from',
    'to',
    'mode',
]
DATATYPES = ('anat', 'dwi', 'perf', 'func', 'fmap', 'pet', 'figures')


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name taken apart; labels stay as written (``run-01`` keeps its zero).

    Attributes
    ----------
    entities
        Short key to label, e.g. ``{'sub': '01', 'acq': 'ax'}``.
    suffix
        E.g. ``T2w``.
    datatype
        Folder, e.g. ``anat``.
    """

    entities: dict[str, str]
    suffix: str
    datatype: str

    @classmethod
    def parse(cls, path) -> BidsName:
        """Take a path apart; the folder above the file is its datatype."""
        path = Path(path)
        *pairs, suffix = path.name.split('.')[0].split('_')
        entities = dict(pair.split('-', 1) for pair in pairs if '-' in pair)
        return cls(entities, suffix, path.parent.name)

    def replaced(self, *, suffix=None, datatype=None, **entities) -> BidsName:
        """Other entities; the value None removes one."""
        merged = {**self.entities, **entities}
        merged = {key: str(value) for key, value in merged.items() if value is not None}
        return BidsName(merged, suffix or self.suffix, datatype or self.datatype)

    def stem(self) -> str:
        """File name without extension, entities in the order of the BIDS schema."""
        known = [key for key in ENTITY_ORDER if key in self.entities]
        # An entity that this table does not know keeps its place before the derivatives' entities.
        where = next((i for i, key in enumerate(known) if ENTITY_ORDER.index(key) > 22), len(known))
        keys = known[:where] + [key for key in self.entities if key not in ENTITY_ORDER] + known[where:]
        return '_'.join([*(f'{key}-{self.entities[key]}' for key in keys), self.suffix])

    def folder(self) -> Path:
        """``sub-X[/ses-Y]/datatype``; figures of all sessions lie in one folder, as in fMRIPrep."""
        folder = Path(f'sub-{self.entities["sub"]}')
        if 'ses' in self.entities and self.datatype != 'figures':
            folder /= f'ses-{self.entities["ses"]}'
        return folder / self.datatype

    def path(self, extension: str) -> Path:
        """Path below the dataset's root; ``extension`` with its dot."""
        return self.folder() / (self.stem() + extension)

    def node_name(self) -> str:
        """Letters, digits and underscores that tell this file from the participant's others."""
        parts = [key + value for key, value in self.entities.items() if key not in ('sub', 'ses')]
        return re.sub(r'\W', '', '_'.join([*parts, self.suffix]))


def raw_uri(path, bids_dir) -> str:
    """``bids:raw:sub-01/...`` for a file of the input dataset (what ``DatasetLinks`` names ``raw``)."""
    return f'bids:raw:{Path(path).relative_to(bids_dir).as_posix()}'


def same_content(first, second) -> bool:
    """Whether two files hold the same bytes (gzip archives of images are written without a date)."""
    first, second = Path(first), Path(second)
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


class _DerivativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='file to put in place')
    output_dir = traits.Str(mandatory=True, desc='root of the derivative dataset')
    out_path = traits.Str(mandatory=True, desc='path below the root, with extension')
    metadata = traits.Dict(desc='content of the JSON sidecar; none is written if undefined')
    metadata_file = File(exists=True, desc='JSON whose keys are added to the sidecar')
    companions = traits.Dict(
        traits.Str, traits.Str, desc='small text files to write: path below the root, text'
    )


class _DerivativeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the file in the derivative dataset')


class DerivativeSink(SimpleInterface):
    """Put one file (and its sidecar) into the derivative dataset.

    It always runs, so that results come back after the output folder was emptied, but leaves a file alone
    that already has the right content; every file appears by renaming, never half-written.

    Raises
    ------
    InputError
        The folder cannot be written or the disk is full.
    """

    input_spec = _DerivativeInputSpec
    output_spec = _DerivativeOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        root = Path(self.inputs.output_dir)
        source = Path(self.inputs.in_file)
        destination = root / self.inputs.out_path
        if not same_content(source, destination):
            write_atomically(destination, lambda temporary: shutil.copyfile(source, temporary))
        if isdefined(self.inputs.metadata):
            content = dict(self.inputs.metadata)
            if isdefined(self.inputs.metadata_file):
                content.update(json.loads(Path(self.inputs.metadata_file).read_text()))
            stem = destination.name.split('.')[0]
            write_text(destination.with_name(f'{stem}.json'), json.dumps(content, indent=2) + '\n')
        if isdefined(self.inputs.companions):
            for path, text in self.inputs.companions.items():
                write_text(root / path, text)
        self._results['out_file'] = str(destination)
        return runtime


class _PictureInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc='reportlets')
    parts = InputMultiObject(traits.Str, mandatory=True, desc='what each of them shows (desc entity)')
    output_dir = traits.Str(mandatory=True, desc='root of the derivative dataset')
    entities = traits.Dict(traits.Str, traits.Str, mandatory=True, desc='entities of the scan they belong to')
    suffix = traits.Str(mandatory=True, desc='suffix of that scan')


class _PictureOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True), desc='files under sub-X/figures')


class PictureSink(SimpleInterface):
    """Put the reportlets of one scan under ``sub-X/figures``; the report is assembled from there alone."""

    input_spec = _PictureInputSpec
    output_spec = _PictureOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        base = BidsName(dict(self.inputs.entities), self.inputs.suffix, 'figures')
        self._results['out_files'] = []
        for source, part in zip(self.inputs.in_files, self.inputs.parts):
            extension = Path(source).suffix
            destination = Path(self.inputs.output_dir) / base.replaced(desc=part).path(extension)
            if not same_content(source, destination):
                write_atomically(destination, lambda temporary, file=source: shutil.copyfile(file, temporary))
            self._results['out_files'].append(str(destination))
        return runtime


class _FolderInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc='files to put in place')
    output_dir = traits.Str(mandatory=True, desc='root of the derivative dataset')
    out_path = traits.Str(mandatory=True, desc='folder below the root; nothing else lies in it')


class _FolderOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True), desc='the files in the derivative dataset')


class FolderSink(SimpleInterface):
    """Put many files, names kept, into a folder of their own; what an earlier run left there goes."""

    input_spec = _FolderInputSpec
    output_spec = _FolderOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        folder = Path(self.inputs.output_dir) / self.inputs.out_path
        wanted = {Path(source).name: Path(source) for source in self.inputs.in_files}
        for name, source in wanted.items():
            if not same_content(source, folder / name):
                write_atomically(
                    folder / name, lambda temporary, file=source: shutil.copyfile(file, temporary)
                )
        for path in folder.iterdir():
            if path.is_file() and path.name not in wanted:
                path.unlink()
        self._results['out_files'] = [str(folder / name) for name in wanted]
        return runtime


def check_label(text: str) -> str:
    """A BIDS label: letters and digits only.

    Raises
    ------
    InputError
        Anything else.
    """
    if not re.fullmatch(r'[0-9A-Za-z]+', text):
        raise InputError(f'{text!r} is not a BIDS label: use letters and digits only.')
    return text
