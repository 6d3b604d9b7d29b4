"""The command line of the BIDS-App: arguments as fMRIPrep spells them, then the methods' own."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import uuid
from pathlib import Path

from bids_gsrecon import __version__
from bids_gsrecon.cli import checks
from bids_gsrecon.cli.arguments import positive_float, positive_int, seed_number
from bids_gsrecon.cli.method_options import (
    CINE_SLOPPY,
    HARMONIZE_SLOPPY,
    M2ASR_SLOPPY,
    SUPERRES_SLOPPY,
    SVR_SLOPPY,
    add_methods,
    cine_fields,
    harmonize_fields,
    m2asr_fields,
    superres_fields,
    svr_fields,
)
from bids_gsrecon.cli.resources import available_cpus, available_memory_gb, parse_memory_gb
from bids_gsrecon.config import Config, Execution, Method, Resources, read_sections
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.templates import resolve_template
from bids_gsrecon.workflows.registry import RECONS

DESCRIPTION = """\
bids_gsrecon: MRI reconstruction with explicit Gaussians. The participant level brings every contrast of an
exam (thick T2w, FLAIR, DWI, ASL, ...) onto the grid of its isotropic T1w (harmonize), every image by itself to
isotropic voxels (superres), stacks of slices that moved, as of a fetus, to one volume (svr), undersampled k-space of a
beating heart (ISMRMRD, under sourcedata) to a series (cine), or thick slices to finer pixels by a trained network
(m2asr); the group level says what became of all participants, with their figures of merit, in tables and on one page,
or trains that network."""


class _Parser(argparse.ArgumentParser):
    """An option added with dashes is understood with underscores too, as fMRIPrep users type it."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_dashed(argument) for argument in args], namespace)

    def error(self, message):
        """One sentence, exit code 2; the long usage text is left to ``--help``."""
        self.exit(2, f'{self.prog}: error: {message} (see {self.prog} --help)\n')


def _dashed(argument: str) -> str:
    if not argument.startswith('--'):
        return argument
    name, equals, value = argument.partition('=')
    return name.replace('_', '-') + equals + value


def _label(prefix: str):
    return lambda text: text.removeprefix(prefix)


def _memory(text: str) -> float:
    try:
        return parse_memory_gb(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The parser; every option's value is None (or False) unless given, so a config file can fill it."""
    parser = _Parser(
        prog='bids_gsrecon', description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bids_dir', type=Path, help='root folder of a BIDS dataset (with sub-XXXX folders)')
    parser.add_argument('output_dir', type=Path, help='folder for the derivatives and reports')
    parser.add_argument(
        'analysis_level', choices=['participant', 'group'], help='processing stage: participant or group'
    )
    parser.add_argument('--version', action='version', version=f'bids_gsrecon {__version__}')
    parser.add_argument('-v', '--verbose', action='count', help='say more: -v info, -vv debug')
    _add_bids(parser.add_argument_group('Options for filtering BIDS queries'))
    _add_performance(parser.add_argument_group('Options to handle performance'))
    _add_behaviour(parser.add_argument_group('Options to modify what is run'))
    _add_method(parser.add_argument_group('Options of the reconstruction'))
    add_methods(parser)
    return parser


def _add_bids(group):
    group.add_argument(
        '--participant-label',
        nargs='+',
        type=_label('sub-'),
        help='participants to process (sub- may be left out)',
    )
    group.add_argument(
        '--session-label', nargs='+', type=_label('ses-'), help='sessions to process (ses- may be left out)'
    )
    group.add_argument(
        '--bids-filter-file',
        type=Path,
        metavar='FILE',
        help='JSON file of pybids filters per suffix in lower case, as in fMRIPrep: {"t1w": {"acquisition": "mprage"}}',
    )
    group.add_argument(
        '-d',
        '--derivatives',
        nargs='+',
        metavar='[PACKAGE=]PATH',
        help='derivatives to reuse: *_desc-brain_mask.nii.gz and *_desc-scaffold_*.h5 are looked for',
    )
    group.add_argument(
        '--bids-database-dir', type=Path, metavar='PATH', help='folder of a pybids database (made if absent)'
    )
    group.add_argument(
        '--skip-bids-validation', action='store_true', default=None, help='do not run the BIDS validator'
    )


def _add_performance(group):
    group.add_argument(
        '--nprocs',
        '--nthreads',
        '--n-cpus',
        type=positive_int,
        metavar='N',
        help='processors over all nodes',
    )
    group.add_argument('--omp-nthreads', type=positive_int, metavar='N', help='threads of one node')
    group.add_argument(
        '--mem',
        '--mem-mb',
        type=_memory,
        metavar='SIZE',
        help='memory for all nodes: 16G, 16000M (M is default)',
    )
    group.add_argument(
        '--low-mem',
        action='store_true',
        default=None,
        help='one reconstruction at a time, to use less memory',
    )
    group.add_argument(
        '--use-plugin',
        '--nipype-plugin-file',
        type=Path,
        metavar='FILE',
        help='nipype plugin configuration (YAML)',
    )
    group.add_argument(
        '--sloppy', action='store_true', default=None, help='low-quality fast settings: FOR TESTING ONLY'
    )


def _add_behaviour(group):
    flag = {'action': 'store_true', 'default': None}
    group.add_argument(
        '-w', '--work-dir', type=Path, metavar='PATH', help='intermediate results (default: ./work)'
    )
    group.add_argument(
        '--clean-workdir',
        **flag,
        help='start over, and keep no intermediate results of participants that succeed',
    )
    group.add_argument(
        '--random-seed', type=seed_number, metavar='N', help='seed of everything random (default: 0)'
    )
    group.add_argument(
        '--reports-only', **flag, help='only write the reports again, from the existing figures'
    )
    group.add_argument('--boilerplate-only', **flag, help='only write the methods text (logs/CITATION.md)')
    group.add_argument('--stop-on-first-crash', **flag, help='stop everything at the first error')
    group.add_argument('--resource-monitor', **flag, help='record memory and processor use of every node')
    group.add_argument('--write-graph', **flag, help='write the graph of the workflow to logs/<run>/')
    group.add_argument(
        '--config-file', type=Path, metavar='FILE', help='TOML settings; the command line overrides'
    )
    group.add_argument('--notrack', **flag, help='accepted and without effect: nothing is ever sent')


def _add_method(group):
    methods = '; '.join(f'{r.name}: {r.summary}' for r in RECONS.values())
    group.add_argument(
        '--recon',
        choices=['auto', *RECONS],
        help=f'the method (default: auto, from the data). In this version {methods}',
    )
    group.add_argument(
        '--reference',
        metavar='SUFFIX',
        help='contrast on whose grid all others are brought, by its BIDS suffix (default: T1w)',
    )
    group.add_argument(
        '--output-spaces',
        nargs='+',
        metavar='SPACE',
        help='only the native space of the reference: T1w (default)',
    )
    group.add_argument(
        '--output-resolution',
        type=positive_float,
        metavar='MM',
        help='isotropic voxel size of the output (default: the grid of the reference; for superres the finest '
        'voxel size of each image, for svr 0.8; for m2asr the pixel size, default: that of the reference)',
    )
    group.add_argument('--device', choices=['auto', 'cpu', 'cuda'], help='where to compute (default: auto)')
    group.add_argument(
        '--brain-template',
        metavar='NAME',
        help='template for brain masks: auto, a T1w NIfTI file with a mask, or a name (gsrecon fetch-templates)',
    )


# How the settings are called on the command line (argparse dest) and in the sections of the config file.
_EXECUTION = [
    'participant_label',
    'session_label',
    'bids_filter_file',
    'bids_database_dir',
    'skip_bids_validation',
    'sloppy',
    'low_mem',
    'work_dir',
    'clean_workdir',
    'random_seed',
    'reports_only',
    'boilerplate_only',
    'stop_on_first_crash',
    'resource_monitor',
    'write_graph',
    'verbose',
    'output_spaces',
]
_RESOURCES = {'nprocs': 'nprocs', 'omp_nthreads': 'omp_nthreads', 'mem': 'memory_gb'}
_METHOD = {
    'recon': 'recon',
    'reference': 'reference',
    'output_resolution': 'output_resolution_mm',
    'device': 'device',
    'brain_template': 'brain_template',
    'slice_profile': 'slice_profile',
    'retro_R': 'cine_retro',
    'svr_bias_correction': 'svr_bias_correction',
    'svr_denoise': 'svr_denoise',
    'svr_slice_order': 'svr_slice_order',
    'svr_template': 'svr_template',
    'weights': 'm2asr_weights',
    'train': 'm2asr_train',
    'm2asr_contrasts': 'm2asr_contrasts',
    'm2asr_split': 'm2asr_split',
    'm2asr_held_out': 'm2asr_held_out',
}


def parse_args(arguments=None) -> Config:
    """Settings of a run from its command line.

    Raises
    ------
    SystemExit
        With code 2 and one sentence on stderr: a bad argument, dataset, participant or folder.
    """
    arguments = sys.argv[1:] if arguments is None else [str(item) for item in arguments]
    parser = build_parser()
    given = parser.parse_args(arguments)
    try:
        config = _config_from(given)
        config.execution.command = shlex.join(['bids_gsrecon', *arguments])
        _check(config)
    except InputError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    return config


def _config_from(given) -> Config:
    sections = read_sections(given.config_file) if given.config_file else {}
    execution = Execution(**sections.get('execution', {}))
    resources = Resources(
        **{'nprocs': 0, 'omp_nthreads': 0, 'memory_gb': 0.0, **sections.get('resources', {})}
    )
    method = Method(**sections.get('method', {}))
    for name in _EXECUTION:
        value = getattr(given, name)
        if value is not None:
            setattr(execution, name, str(value) if isinstance(value, Path) else value)
    for argument, name in _RESOURCES.items():
        if getattr(given, argument) is not None:
            setattr(resources, name, getattr(given, argument))
    for argument, name in _METHOD.items():
        if getattr(given, argument) is not None:
            setattr(method, name, getattr(given, argument))
    method.reference_chosen = method.reference_chosen or given.reference is not None
    for name, sloppy, fields in (
        ('harmonize', HARMONIZE_SLOPPY, harmonize_fields),
        ('superres', SUPERRES_SLOPPY, superres_fields),
        ('svr', SVR_SLOPPY, svr_fields),
        ('cine', CINE_SLOPPY, cine_fields),
        ('m2asr', M2ASR_SLOPPY, m2asr_fields),
    ):
        quick = sloppy if execution.sloppy else {}
        setattr(method, name, {**quick, **getattr(method, name), **fields(given)})
    # The two folders and the level are always those of this command line; absolute, as children change folder.
    execution.bids_dir = str(given.bids_dir.absolute())
    execution.output_dir = str(given.output_dir.absolute())
    execution.analysis_level = given.analysis_level
    execution.work_dir = str(Path(execution.work_dir or 'work').absolute())
    for name in ('svr_template', 'm2asr_weights', 'm2asr_split'):
        if getattr(method, name):
            setattr(method, name, str(Path(getattr(method, name)).absolute()))
    for name in ('bids_filter_file', 'bids_database_dir'):
        if getattr(execution, name):
            setattr(execution, name, str(Path(getattr(execution, name)).absolute()))
    if given.derivatives is not None:
        execution.derivatives = checks.parse_derivatives(given.derivatives)
    execution.run_uuid = f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4()}'
    if given.use_plugin is not None:
        resources.plugin, resources.plugin_args = _read_plugin_file(
            given.use_plugin, given.nprocs is None, resources
        )
    resources.nprocs = resources.nprocs or available_cpus()
    resources.omp_nthreads = min(resources.omp_nthreads or min(resources.nprocs, 8), resources.nprocs)
    resources.memory_gb = resources.memory_gb or available_memory_gb()
    return Config(execution, resources, method)


def _read_plugin_file(path: Path, read_nprocs: bool, resources: Resources):
    """Plugin and its arguments of a nipype plugin file (YAML, or JSON which is YAML)."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        plugin, plugin_args = str(content['plugin']), dict(content.get('plugin_args') or {})
    except (OSError, yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f'{path} is not a nipype plugin file: it needs a key "plugin" ({error!r}).'
        ) from error
    if read_nprocs and isinstance(plugin_args.get('n_procs'), int):
        resources.nprocs = plugin_args['n_procs']
    if isinstance(plugin_args.get('memory_gb'), (int, float)) and not resources.memory_gb:
        resources.memory_gb = float(plugin_args['memory_gb'])
    return plugin, plugin_args


def _check(config: Config) -> None:
    execution, method = config.execution, config.method
    checks.check_m2asr(config)
    checks.check_folders(config)
    if execution.analysis_level == 'group' and not method.m2asr_train:
        return
    wanted = execution.participant_label
    execution.participant_label, execution.unknown_participants = checks.find_participants(
        config.bids_dir, wanted, with_kspace=method.recon in ('auto', 'cine')
    )
    checks.check_sessions(config)
    if execution.bids_filter_file:
        read_filters(execution.bids_filter_file)
    checks.check_output_spaces(execution.output_spaces, method.reference)
    method.brain_template = resolve_template(method.brain_template)
    if method.svr_template and not Path(method.svr_template).exists():
        raise InputError(f'--svr-template {method.svr_template} is neither an image nor a folder of images.')
    if method.device == 'cuda':
        checks.check_cuda()


def read_filters(path) -> dict[str, dict]:
    """The filters of ``--bids-filter-file``, keys in lower case.

    Raises
    ------
    InputError
        Not a JSON object of objects.
    """
    try:
        filters = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'--bids-filter-file {path} is not readable JSON ({error}).') from error
    if not isinstance(filters, dict) or not all(isinstance(value, dict) for value in filters.values()):
        raise InputError(
            f'--bids-filter-file {path} must hold one JSON object per suffix, e.g. {{"t1w": {{}}}}.'
        )
    return {name.lower(): value for name, value in filters.items()}
