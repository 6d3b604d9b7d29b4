"""What the nodes that compute have in common, whatever their method."""

from __future__ import annotations

from dataclasses import asdict

from nipype.interfaces.base import BaseInterfaceInputSpec, isdefined, traits


class MethodInputSpec(BaseInterfaceInputSpec):
    options = traits.Dict(desc="fields of the method's options that differ from their defaults")
    seed = traits.Int(0, usedefault=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='occupies a GPU slot of MultiProc')


def options_of(inputs, kind):
    """The options (a dataclass ``kind``) that the inputs of a node stand for."""
    fields = dict(inputs.options) if isdefined(inputs.options) else {}
    return kind(**fields, n_threads=inputs.n_threads)


def recorded(options) -> dict:
    """Options for a sidecar: without the threads, which change no result."""
    return {name: value for name, value in asdict(options).items() if name != 'n_threads'}
