"""Options of the methods: named once, for the BIDS-App and for the file-level program."""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import positive_float, positive_int, seed_number, share

# The choices are repeated here because a command line must not load the numerics; a test compares them.
SUPERRES_MODELS = ('auto', 'physics')
CINE_MODELS = ('auto', 'free')
M2ASR_SIZES = ('tiny', 'small', 'medium', 'paper')
VOXEL_PROFILES = ('auto', 'cell', 'box', 'gaussian', 'point')
SLICE_ORDERS = ('interleaved', 'interleaved-second', 'interleaved-reversed', 'ascending', 'descending')
SLICE_PROFILE_HELP = (
    'how a slice weighs its tissue: box, gaussian, for superres also cell (the voxel) or point (its centre) '
    '(default: auto, box)'
)
SLICE_ORDER_HELP = (
    'order of acquisition (default: SliceTiming of the .json beside the stack, else interleaved: '
    'every second slice, then the others)'
)
TEMPLATE_HELP = 'turn the volume (rigidly) to this image, or to the one of a folder of atlases by age'
# Fields of HarmonizeOptions and SuperresOptions that can be switched on and off.
HARMONIZE_SWITCHES = {
    'relax_geometry': 'let each contrast move the scaffold (default: no)',
    'uncertainty': 'write a map of the expected error (default: yes)',
}
SUPERRES_SWITCHES = {
    'scale_learning': 'learn finer detail from what the image adds to its own coarser copy (default: yes)',
    'self_similarity': 'let places that look alike help each other (default: yes)',
}
SHARED_SWITCHES = {
    'in_plane_learning': 'learn missing detail of thick slices from their own planes (default: yes)',
    'detail_gaussians': 'additional Gaussians where the others cannot show it (default: yes)',
}
# Fields of Method, then fields of SvrOptions.
SVR_STEPS = {
    'svr_bias_correction': 'correct the bias field of every stack with N4 (default: yes)',
    'svr_denoise': 'denoise every slice by non-local means first (default: no)',
}
SVR_SWITCHES = {
    'svr_slice_motion': 'move every slice by itself, not whole stacks only (default: yes)',
    'svr_robust': 'let slices that contradict all others count less (default: yes)',
}
# Fields of CineOptions.
CINE_SWITCHES = {'cine_periodic': 'the last frame of a beat is followed by the first (default: yes)'}
HARMONIZE_FIELDS = (
    'gaussians_per_voxel',
    'scaffold_iterations',
    'guidance_strength',
    'guidance_bandwidth',
    *SHARED_SWITCHES,
    *HARMONIZE_SWITCHES,
)
SUPERRES_FIELDS = {
    'superres_model': 'model',
    'superres_iterations': 'iterations',
    **{name: name for name in (*SHARED_SWITCHES, *SUPERRES_SWITCHES)},
}
HARMONIZE_SLOPPY = {'gaussians_per_voxel': 0.15, 'scaffold_iterations': 6, 'in_plane_learning': False}
SVR_FIELDS = {name: name.removeprefix('svr_') for name in SVR_SWITCHES}
SVR_SLOPPY = {'joint_steps': 2}
SUPERRES_SLOPPY = {'iterations': 6, **dict.fromkeys((*SHARED_SWITCHES, *SUPERRES_SWITCHES), False)}


CINE_FIELDS = {name: name.removeprefix('cine_') for name in ('cine_model', 'cine_iterations', *CINE_SWITCHES)}
CINE_SLOPPY = {'iterations': 10, 'fall_back': False}


M2ASR_FIELDS = {
    f'm2asr_{name}': name
    for name in ('size', 'max_minutes', 'max_steps', 'checkpoint_minutes', 'synthetic_fraction')
}
M2ASR_SLOPPY = {'max_steps': 20}


def add_switches(group, switches: dict[str, str]) -> None:
    """``--name`` and ``--no-name`` for every switch; None unless given."""
    for name, text in switches.items():
        group.add_argument(
            f'--{name.replace("_", "-")}', action=argparse.BooleanOptionalAction, default=None, help=text
        )


def add_superres_model(group, prefix: str = '') -> None:
    """Model and number of steps of superres; ``prefix`` where other methods have such options too."""
    group.add_argument(
        f'--{prefix}model',
        choices=SUPERRES_MODELS,
        help='physics: the published model alone; auto (default): with what the image teaches about itself',
    )
    group.add_argument(
        f'--{prefix}iterations', type=positive_int, metavar='N', help='steps on the geometry of the Gaussians'
    )


def add_cine_model(group, prefix: str = '') -> None:
    """Model and number of steps of cine, and the trial on full data; ``prefix`` as above."""
    group.add_argument(
        f'--{prefix}model',
        choices=CINE_MODELS,
        help='auto: few temporal modes, adapted by chi^2 (default); free: every frame by itself, as published',
    )
    group.add_argument(
        f'--{prefix}iterations', type=positive_int, metavar='N', help='steps (default: 120; free: 7500)'
    )
    group.add_argument(
        '--retro-R',
        type=positive_float,
        nargs='+',
        metavar='R',
        help='also undersample fully sampled data by R, and compare',
    )


def add_m2asr_training(group, prefix: str = '') -> None:
    """How a network is trained; ``prefix`` where other methods have such options too."""
    group.add_argument(
        f'--{prefix}size',
        choices=M2ASR_SIZES,
        help='of the network: tiny (default; minutes on a laptop) to paper (as published; days on a GPU)',
    )
    group.add_argument(
        f'--{prefix}max-minutes',
        type=positive_float,
        metavar='M',
        help='train for so long (default: the steps of the size)',
    )
    group.add_argument(f'--{prefix}max-steps', type=positive_int, metavar='N', help='train for so many steps')
    group.add_argument(
        f'--{prefix}checkpoint-minutes',
        type=positive_float,
        metavar='M',
        help='time between checkpoints, from which an interrupted training goes on (default: 5)',
    )
    group.add_argument(
        f'--{prefix}synthetic-fraction',
        type=share,
        metavar='X',
        help='share of the pairs whose contrasts are made up, against surprises by other sequences (default: 0)',
    )
    group.add_argument(
        f'--{prefix}split',
        metavar='TSV',
        help='table of who is held out (participant_id, split: training or validation); who is in it keeps the role, '
        'others are added (default: beside the weights)',
    )
    group.add_argument(
        f'--{prefix}held-out',
        type=share,
        metavar='X',
        help='share of the subjects that is held out to score the network (default: 0.15)',
    )


def add_slice_geometry(group, image: str, *, several: bool = False) -> None:
    """Slices of single files; ``image``: what the images are called in the help; ``several``: one each."""
    group.add_argument(
        '--slice-axis',
        type=int,
        choices=(0, 1, 2),
        metavar='K',
        help='stored axis across slices (default: coarsest)',
    )
    group.add_argument(
        '--thickness',
        type=positive_float,
        metavar='MM',
        nargs='+' if several else None,
        help=f'slice thickness{", one or one for each" if several else ""} (default: SliceThickness of the .json '
        f'beside {image}, else the slice spacing)',
    )


def add_seed_and_threads(parser: argparse.ArgumentParser) -> None:
    """Of every method on single files."""
    parser.add_argument(
        '--random-seed', type=seed_number, default=0, metavar='N', help='same seed, same result'
    )
    parser.add_argument(
        '--threads', type=positive_int, metavar='N', help='processor cores to use (default: all)'
    )


def add_methods(parser: argparse.ArgumentParser) -> None:
    """The groups of the BIDS-App."""
    shared = parser.add_argument_group('Options of several methods')
    shared.add_argument('--slice-profile', choices=VOXEL_PROFILES, help=SLICE_PROFILE_HELP)
    add_switches(shared, SHARED_SWITCHES)
    harmonize = parser.add_argument_group('Options of --recon harmonize')
    harmonize.add_argument(
        '--gaussians-per-voxel', type=positive_float, metavar='X', help='density of the scaffold'
    )
    harmonize.add_argument(
        '--scaffold-iterations', type=positive_int, metavar='N', help='steps of scaffold learning'
    )
    harmonize.add_argument(
        '--guidance-strength', type=positive_float, metavar='X', help='weight of the reference'
    )
    harmonize.add_argument(
        '--guidance-bandwidth', type=positive_float, metavar='X', help='contrast the guidance ignores'
    )
    add_switches(harmonize, HARMONIZE_SWITCHES)
    superres = parser.add_argument_group('Options of --recon superres')
    add_superres_model(superres, 'superres-')
    add_switches(superres, SUPERRES_SWITCHES)
    svr = parser.add_argument_group('Options of --recon svr')
    add_switches(svr, SVR_STEPS | SVR_SWITCHES)
    svr.add_argument('--svr-slice-order', choices=SLICE_ORDERS, help=SLICE_ORDER_HELP)
    svr.add_argument(
        '--svr-template',
        metavar='IMAGE|FOLDER',
        help=f'{TEMPLATE_HELP} (gestational_age in weeks, of participants.tsv or sub-*_sessions.tsv)',
    )
    cine = parser.add_argument_group('Options of --recon cine')
    add_cine_model(cine, 'cine-')
    add_switches(cine, CINE_SWITCHES)
    m2asr = parser.add_argument_group('Options of --recon m2asr')
    m2asr.add_argument(
        '--weights',
        metavar='FILE',
        help='participant level: the trained network to apply; group level with --train: where to write it (default: '
        'OUTPUT_DIR/m2asr/m2asr-SIZE.h5)',
    )
    m2asr.add_argument(
        '--train',
        nargs='?',
        choices=('network', 'pairs'),
        const='network',
        help='group level: train a network on the participants (reference and sharp T2w, FLAIR, ...); pairs: only '
        'make what it is trained on (WORK_DIR/m2asr_pairs)',
    )
    m2asr.add_argument(
        '--m2asr-contrasts',
        nargs='+',
        metavar='SUFFIX',
        help='contrasts to train on (default: T2w FLAIR), or to make finer (default: those of the weights)',
    )
    add_m2asr_training(m2asr, 'm2asr-')


def harmonize_fields(given) -> dict:
    """Fields of HarmonizeOptions that the command line of the BIDS-App sets."""
    return _fields(given, {name: name for name in HARMONIZE_FIELDS})


def superres_fields(given) -> dict:
    """Fields of SuperresOptions that the command line of the BIDS-App sets."""
    return _fields(given, SUPERRES_FIELDS)


def svr_fields(given) -> dict:
    """Fields of SvrOptions that the command line of the BIDS-App sets."""
    return _fields(given, SVR_FIELDS)


def cine_fields(given) -> dict:
    """Fields of CineOptions that the command line of the BIDS-App sets."""
    return _fields(given, CINE_FIELDS)


def m2asr_fields(given) -> dict:
    """Fields of TrainingOptions that the command line of the BIDS-App sets."""
    return _fields(given, M2ASR_FIELDS)


def _fields(given, names: dict[str, str]) -> dict:
    return {field: getattr(given, name) for name, field in names.items() if getattr(given, name) is not None}
