import json
from pathlib import Path

import pytest

from bids_gsrecon import __version__
from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.config import Config
from tests.bids_datasets import healthy, write_description


@pytest.fixture
def dataset(tmp_path):
    return healthy(tmp_path / 'bids', labels=('01', '02'))


@pytest.fixture
def base(dataset, tmp_path):
    return [dataset, tmp_path / 'out', 'participant', '-w', tmp_path / 'work']


def fails(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_args(arguments)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.count('\n') == 1, 'one sentence, no usage text'
    return text


def test_defaults(base, dataset, tmp_path):
    config = parse_args(base)
    assert config.bids_dir == dataset
    assert config.output_dir == tmp_path / 'out'
    assert config.execution.participant_label == ['01', '02']
    assert config.execution.random_seed == 0
    assert config.method.recon == 'auto'
    assert config.method.reference == 'T1w'
    assert not config.method.reference_chosen
    assert config.resources.nprocs >= 1
    assert 1 <= config.resources.omp_nthreads <= config.resources.nprocs
    assert config.resources.memory_gb > 0
    assert config.method.harmonize == {}
    assert config.method.superres == {}
    assert config.method.svr == {}
    assert config.method.svr_bias_correction and not config.method.svr_denoise


@pytest.mark.parametrize(
    ('arguments', 'section', 'name', 'value'),
    [
        (['--participant-label', 'sub-01'], 'execution', 'participant_label', ['01']),
        (['--participant_label', '02', '01'], 'execution', 'participant_label', ['01', '02']),
        (['--skip-bids-validation'], 'execution', 'skip_bids_validation', True),
        (['--skip_bids_validation'], 'execution', 'skip_bids_validation', True),
        (['--low-mem'], 'execution', 'low_mem', True),
        (['--sloppy'], 'execution', 'sloppy', True),
        (['--clean-workdir'], 'execution', 'clean_workdir', True),
        (['--random-seed', '7'], 'execution', 'random_seed', 7),
        (['--reports-only'], 'execution', 'reports_only', True),
        (['--boilerplate_only'], 'execution', 'boilerplate_only', True),
        (['--stop-on-first-crash'], 'execution', 'stop_on_first_crash', True),
        (['--resource-monitor'], 'execution', 'resource_monitor', True),
        (['--write-graph'], 'execution', 'write_graph', True),
        (['--output-spaces', 'T1w'], 'execution', 'output_spaces', ['T1w']),
        (['-vv'], 'execution', 'verbose', 2),
        (['--nprocs', '3'], 'resources', 'nprocs', 3),
        (['--nthreads', '3'], 'resources', 'nprocs', 3),
        (['--n_cpus', '3'], 'resources', 'nprocs', 3),
        (['--nprocs', '2', '--omp-nthreads', '9'], 'resources', 'omp_nthreads', 2),
        (['--mem', '2G'], 'resources', 'memory_gb', 2.0),
        (['--mem_mb', '2048'], 'resources', 'memory_gb', 2.0),
        (['--mem=1.5T'], 'resources', 'memory_gb', 1536.0),
        (['--mem', '1048576K'], 'resources', 'memory_gb', 1.0),
        (['--recon', 'harmonize'], 'method', 'recon', 'harmonize'),
        (['--reference', 'FLAIR'], 'method', 'reference', 'FLAIR'),
        (['--reference', 'T1w'], 'method', 'reference_chosen', True),
        (['--output-resolution', '1.5'], 'method', 'output_resolution_mm', 1.5),
        (['--device', 'cpu'], 'method', 'device', 'cpu'),
        (['--slice_profile', 'gaussian'], 'method', 'slice_profile', 'gaussian'),
        (['--relax-geometry'], 'method', 'harmonize', {'relax_geometry': True}),
        (['--no-uncertainty'], 'method', 'harmonize', {'uncertainty': False}),
        (['--gaussians-per-voxel', '0.5'], 'method', 'harmonize', {'gaussians_per_voxel': 0.5}),
        (['--no_in_plane_learning'], 'method', 'harmonize', {'in_plane_learning': False}),
        (['--no_in_plane_learning'], 'method', 'superres', {'in_plane_learning': False}),
        (['--no-svr-robust'], 'method', 'svr', {'robust': False}),
        (['--svr_denoise'], 'method', 'svr_denoise', True),
        (['--no-svr-bias-correction'], 'method', 'svr_bias_correction', False),
        (['--svr-slice-order', 'descending'], 'method', 'svr_slice_order', 'descending'),
        (['--superres-model', 'physics'], 'method', 'superres', {'model': 'physics'}),
        (['--superres_iterations', '9'], 'method', 'superres', {'iterations': 9}),
        (['--no-scale-learning'], 'method', 'superres', {'scale_learning': False}),
        (['--recon', 'superres'], 'method', 'recon', 'superres'),
        (['--slice-profile', 'point'], 'method', 'slice_profile', 'point'),
    ],
)
def test_every_option_arrives(base, arguments, section, name, value):
    config = parse_args([*base, *arguments])
    assert getattr(getattr(config, section), name) == value


def test_notrack_is_accepted_and_changes_nothing(base):
    plain, quiet = parse_args(base), parse_args([*base, '--notrack'])
    quiet.execution.run_uuid, quiet.execution.command = plain.execution.run_uuid, plain.execution.command
    assert quiet == plain


def test_derivatives_with_and_without_package(base, tmp_path):
    for name in ('masks', 'fmriprep'):
        (tmp_path / name).mkdir()
    config = parse_args([*base, '-d', tmp_path / 'masks', f'prep={tmp_path / "fmriprep"}'])
    expected = {'masks': str(tmp_path / 'masks'), 'prep': str(tmp_path / 'fmriprep')}
    assert config.execution.derivatives == expected


def test_bids_filter_file_and_database(base, tmp_path):
    filters = tmp_path / 'filters.json'
    filters.write_text(json.dumps({'t1w': {'acquisition': None}}))
    config = parse_args([*base, '--bids-filter-file', filters, '--bids-database-dir', tmp_path / 'db'])
    assert config.execution.bids_filter_file == str(filters)
    assert config.execution.bids_database_dir == str(tmp_path / 'db')


@pytest.mark.parametrize('option', ['--use-plugin', '--nipype-plugin-file'])
def test_plugin_file(base, tmp_path, option):
    file = tmp_path / 'plugin.yml'
    file.write_text('plugin: SLURM\nplugin_args:\n  sbatch_args: --time 10\n  n_procs: 5\n')
    resources = parse_args([*base, option, file]).resources
    assert (resources.plugin, resources.nprocs) == ('SLURM', 5)
    assert resources.plugin_args['sbatch_args'] == '--time 10'


def test_config_file_is_overridden_by_the_command_line(base, tmp_path):
    file = tmp_path / 'settings.toml'
    file.write_text(
        '[execution]\nrandom_seed = 5\n[resources]\nnprocs = 3\n[method.harmonize]\nuncertainty = false\n'
    )
    config = parse_args([*base, '--config-file', file, '--random-seed', '6'])
    assert config.execution.random_seed == 6
    assert config.resources.nprocs == 3
    assert config.method.harmonize == {'uncertainty': False}


def test_config_survives_toml(base, tmp_path):
    config = parse_args([*base, '--relax-geometry', '--output-resolution', '2', '--mem', '3G'])
    assert Config.from_toml(config.to_toml(tmp_path / 'x' / 'config.toml')) == config


def test_sloppy_is_overridden_by_explicit_options(base):
    config = parse_args([*base, '--sloppy', '--scaffold-iterations', '11'])
    assert config.method.harmonize['scaffold_iterations'] == 11
    assert config.method.harmonize['gaussians_per_voxel'] < 0.33
    assert config.method.superres['scale_learning'] is False
    chosen = parse_args([*base, '--sloppy', '--scale-learning', '--superres-iterations', '3']).method.superres
    assert (chosen['scale_learning'], chosen['iterations']) == (True, 3)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(['--version'])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f'bids_gsrecon {__version__}'


def test_without_weights_m2asr_says_how_to_get_them(base, capsys):
    line = fails([*base, '--recon', 'm2asr'], capsys)
    assert (
        '--weights FILE' in line and 'group --recon m2asr --train' in line and 'gsrecon m2asr train' in line
    )
    assert parse_args([*base, '--recon', 'm2asr', '--reports-only']).method.recon == 'm2asr'


def test_settings_of_a_training(base):
    bids, out, _, *rest = base
    training = [bids, out, 'group', *rest, '--recon', 'm2asr', '--train']
    method = parse_args(
        [*training, '--m2asr-size', 'small', '--m2asr-max-minutes', '5', '--weights', 'x.h5']
    ).method
    assert method.m2asr == {'size': 'small', 'max_minutes': 5.0} and method.m2asr_train == 'network'
    assert Path(method.m2asr_weights).is_absolute()
    quick = parse_args(
        [*training, 'pairs', '--sloppy', '--m2asr-held-out', '0.3', '--m2asr-split', 's.tsv']
    ).method
    assert quick.m2asr['max_steps'] < 100 and quick.m2asr_held_out == 0.3 and quick.m2asr_train == 'pairs'
    assert Path(quick.m2asr_split).is_absolute()


@pytest.mark.parametrize(
    ('level', 'arguments', 'said'),
    [
        ('participant', ['--recon', 'm2asr', '--train'], '--train belongs to the group level'),
        ('group', ['--train'], '--train belongs to the group level of m2asr'),
        ('group', ['--recon', 'm2asr', '--train', '--weights', 'x.pt'], 'does not end in .h5'),
        ('group', ['--recon', 'm2asr', '--train', '--participant-label', '99'], 'no participant sub-99'),
        ('group', ['--recon', 'm2asr', '--train', 'everything'], 'everything'),
        ('participant', ['--weights', 'x.h5'], '--weights belongs to m2asr'),
        (
            'participant',
            ['--recon', 'm2asr', '--weights', '/no/such/net.h5'],
            '/no/such/net.h5 does not exist',
        ),
        ('participant', ['--recon', 'm2asr', '--weights', __file__], 'test_parser.py'),
        ('participant', ['--m2asr-synthetic-fraction', '2'], 'from 0 to 1'),
    ],
)
def test_bad_arguments_of_m2asr(base, capsys, level, arguments, said):
    bids, out, _, *rest = base
    assert said in fails([bids, out, level, *rest, *arguments], capsys)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--participant-label', '99'], 'no participant sub-99'),
        (['--session-label', 'x'], 'ses-x'),
        (['--mem', 'lots'], '16G'),
        (['--nprocs', '0'], 'not a positive whole number'),
        (['--output-resolution', '-1'], 'positive'),
        (['--output-spaces', 'MNI152NLin2009cAsym'], '--output-spaces'),
        (['--recon', 'magic'], 'magic'),
        (['-d', '/no/such/folder'], '/no/such/folder'),
        (['--bids-filter-file', '/no/such/file'], '/no/such/file'),
        (['--config-file', '/no/such/file'], '/no/such/file'),
        (['--use-plugin', '/no/such/file'], '/no/such/file'),
        (['--brain-template', '/no/such/file'], '/no/such/file'),
        (['--svr-template', '/no/such/file'], '/no/such/file'),
        (['--svr-slice-order', 'backwards'], 'backwards'),
        (['--unknown-option'], '--unknown-option'),
    ],
)
def test_bad_arguments(base, capsys, arguments, said):
    assert said in fails([*base, *arguments], capsys)


def test_one_known_participant_goes_on_beside_an_unknown(base):
    execution = parse_args([*base, '--participant-label', '01', '99']).execution
    assert (execution.participant_label, execution.unknown_participants) == (['01'], ['99'])


def test_output_may_not_be_the_input_nor_lie_in_it(dataset, tmp_path, capsys):
    work = ['-w', tmp_path / 'work']
    assert 'derivatives' in fails([dataset, dataset, 'participant', *work], capsys)
    assert 'derivatives' in fails([dataset, dataset / 'out', 'participant', *work], capsys)
    config = parse_args([dataset, dataset / 'derivatives' / 'app', 'participant', *work])
    assert config.output_dir == dataset / 'derivatives' / 'app'
    assert not (dataset / 'out').exists()


def test_work_folder_may_not_lie_in_the_input(dataset, tmp_path, capsys):
    assert '-w' in fails([dataset, tmp_path / 'out', 'participant', '-w', dataset / 'work'], capsys)


def test_output_must_be_writable(dataset, tmp_path, capsys):
    (tmp_path / 'file').write_text('')  # no folder can be made below a file, not even by root
    text = fails([dataset, tmp_path / 'file' / 'out', 'participant', '-w', tmp_path / 'work'], capsys)
    assert 'cannot be written' in text


def test_bad_datasets(tmp_path, capsys):
    work = ['-w', tmp_path / 'work']
    assert 'not a folder' in fails([tmp_path / 'none', tmp_path / 'out', 'participant', *work], capsys)
    empty = write_description(tmp_path / 'empty')
    assert 'no sub-' in fails([empty, tmp_path / 'out', 'participant', *work], capsys)
