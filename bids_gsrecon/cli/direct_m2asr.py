"""Slices with finer pixels by a trained network that looks at another contrast (GaussM2ASR).

gsrecon m2asr train --pair T1W T2W --pair T1W T2W ... -o net.h5 --size tiny --max-minutes 10
gsrecon m2asr apply --weights net.h5 --reference T1W --target T2W_COARSE -o T2W_FINE

Images of a pair lie on one grid, both sharp (or --register rigid: the reference is brought to the target's slices).
The target of apply shows the same slices and field of view as its reference with larger pixels, by any factors.
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.method_options import add_m2asr_training, add_seed_and_threads

SUMMARY = 'slices with finer pixels by a trained network and another contrast'

INTERRUPTED = 'interrupted: run the same command again, it goes on where it stopped.'
TRAIN_TEXT = """\
Train a network on pairs of registered sharp images. Written beside WEIGHTS.h5:
  WEIGHTS_card.md, .json     what it was trained on, scores on held-out subjects, what to beware of
  WEIGHTS_split.tsv          who is held out; kept, and used again by the next training
  WEIGHTS_checkpoint.pt      while it trains: the same command goes on from there after an interruption
  WEIGHTS_slices             while it trains: prepared slices, which are read as they are drawn
Under torchrun (torchrun --nproc-per-node N -m bids_gsrecon.cli.direct m2asr train ...) several devices share the work.
"""
APPLY_TEXT = """\
Make the slices of an image finer in plane. Written beside OUT.nii.gz:
  OUT.json    network, factors, figures of merit, warnings, verdict
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon m2asr``."""
    kinds = parser.add_subparsers(dest='kind', metavar='train|apply', required=True)
    _add_train(_subparser(kinds, 'train', 'train a network on pairs of images', TRAIN_TEXT))
    _add_apply(_subparser(kinds, 'apply', 'make an image finer by a trained network', APPLY_TEXT))


def _subparser(kinds, name: str, text: str, description: str) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = kinds.add_parser(name, help=text, description=description, formatter_class=form)
    parser.add_argument(
        '-v',
        '--verbose',
        action='store_true',
        default=argparse.SUPPRESS,
        help='show the traceback of an error',
    )
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--pair',
        nargs=2,
        action='append',
        metavar=('REFERENCE', 'TARGET'),
        help='a sharp target and its reference; once for every pair',
    )
    parser.add_argument(
        '--pairs',
        nargs='+',
        metavar='FOLDER|FILE',
        help='in place of --pair: pairs that bids_gsrecon made (group --recon m2asr --train pairs)',
    )
    parser.add_argument(
        '-o', '--output', metavar='WEIGHTS', required=True, help='file to write (.h5 is added to a bare name)'
    )
    add_m2asr_training(parser.add_argument_group('training'))
    data = parser.add_argument_group('data')
    _add_axis(data, 'the targets')
    data.add_argument(
        '--labels',
        nargs='+',
        metavar='MAP',
        help='tissue labels (integers, 0 outside) of any heads: contrasts are made up of them, with --synthetic-fraction '
        '(default: of the pairs themselves)',
    )
    data.add_argument(
        '--register',
        choices=('header', 'rigid'),
        default='header',
        help='images of a pair must lie on one grid (default), or register each reference to its target first',
    )
    _add_common(parser)


def _add_apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--weights', metavar='WEIGHTS', help='what gsrecon m2asr train wrote')
    parser.add_argument(
        '--reference', metavar='REF', required=True, help='sharp image: its grid is the output grid'
    )
    parser.add_argument(
        '--target',
        metavar='LR',
        required=True,
        help='image with larger pixels, same slices and field of view',
    )
    parser.add_argument('-o', '--output', metavar='OUT', required=True, help='image to write (.nii.gz, .nii)')
    _add_axis(parser, 'REF')
    _add_common(parser)


def _add_axis(parser, of: str) -> None:
    parser.add_argument(
        '--axis',
        type=int,
        choices=(0, 1, 2),
        metavar='K',
        help=f'stored axis across slices of {of} (default: found)',
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where to compute (default: auto)'
    )
    add_seed_and_threads(parser)


def run(args: argparse.Namespace) -> str:
    """Train or apply; the verdict line."""
    if args.device == 'cuda':
        from bids_gsrecon.cli.checks import check_cuda

        check_cuda()
    return _train(args) if args.kind == 'train' else _apply(args)


def _train(args: argparse.Namespace) -> str:
    import time

    from bids_gsrecon.cli.m2asr_training import is_main_process, locked, score_text, weights_path

    started = time.monotonic()
    try:
        with locked(weights_path(args.output)):
            inputs, card = _trained(args)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(INTERRUPTED) from error
    if not is_main_process():
        return ''
    seconds, held_out = time.monotonic() - started, len(inputs.options.validation_subjects)
    score = score_text(card)
    return (
        f'gsrecon m2asr: ok, size {inputs.options.size} trained on {len(inputs.pairs)} pair(s), {held_out} subject(s) held '
        f'out, {card.get("steps", 0)} steps in {seconds:.0f} s{"; " + score if score else ""} -> {inputs.files.weights}'
    )


def _trained(args: argparse.Namespace):
    """What was trained on, and the card of the network."""
    from bids_gsrecon.cli.m2asr_files import read_training
    from bids_gsrecon.cli.m2asr_training import is_main_process, train_and_write
    from bids_gsrecon.cli.progress import ProgressBar

    inputs = read_training(args)
    for warning in inputs.warnings:
        _note(warning)
    with ProgressBar() as progress:
        model = train_and_write(
            inputs.pairs,
            inputs.options,
            inputs.files,
            data=inputs.data,
            digest=inputs.digest,
            store=inputs.store,
            labels=inputs.labels,
            progress=progress if is_main_process() else None,
        )
    return inputs, model.card


def _apply(args: argparse.Namespace) -> str:
    import time

    from bids_gsrecon.cli.m2asr_files import read_application, write_application
    from bids_gsrecon.cli.progress import ProgressBar
    from bids_gsrecon.errors import about

    started = time.monotonic()
    inputs = read_application(args)
    from bids_gsrecon.interfaces.m2asr_outputs import apply_network

    with ProgressBar() as progress, about(args.target):
        made = apply_network(
            inputs.model,
            args.weights,
            inputs.reference,
            inputs.target,
            slice_axis=inputs.slice_axis,
            mask=inputs.mask,
            contrast=inputs.contrast,
            reference_contrast=inputs.reference_contrast,
            n_threads=args.threads or 0,
            device=args.device,
            progress=progress,
        )
    write_application(args, inputs, made)
    record = made.record
    for warning in record['Warnings']:
        _note(warning)
    factors = ' x '.join(f'{factor:.3g}' for factor in made.applied.scale)
    seconds = time.monotonic() - started
    return f'gsrecon m2asr: {record["Verdict"]}, pixels {factors} times finer in {seconds:.0f} s -> {args.output}'


def _note(warning: str) -> None:
    import sys

    from bids_gsrecon.cli.m2asr_training import is_main_process

    if is_main_process():
        print(f'gsrecon m2asr: note: {warning.rstrip(".")}.', file=sys.stderr)
