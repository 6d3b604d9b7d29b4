"""The interface of `tests.toy_method`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_gsrecon.interfaces.io import load_volume, save_volume
from tests.toy_method import wait


class _InputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    factor = traits.Float(1.0, usedefault=True)
    waits = traits.Bool(False, usedefault=True, nohash=True)


class _OutputSpec(TraitedSpec):
    out_file = File(exists=True)


class Scale(SimpleInterface):
    """The image times a number."""

    input_spec = _InputSpec
    output_spec = _OutputSpec

    def _run_interface(self, runtime):
        volume = load_volume(self.inputs.in_file)
        if self.inputs.waits:
            if os.environ.get('TOY_DEAF'):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            wait()
            if os.environ.get('TOY_RAISES') == 'MemoryError':
                raise MemoryError
        path = Path(runtime.cwd) / 'image.nii.gz'
        self._results['out_file'] = str(save_volume(path, volume.data * self.inputs.factor, volume.affine))
        return runtime
