"""The settings of one run: plain dataclasses that travel as TOML between the app's processes.

There is no global state: the parser fills a `Config`, the child process that builds the graph reads it from
the work directory, and every ``init_*_wf`` receives what it needs as arguments.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_gsrecon.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib


@dataclass
class Execution:
    """What to run on, where to write, and how the run behaves."""

    bids_dir: str = ''
    output_dir: str = ''
    analysis_level: str = 'participant'
    work_dir: str = ''
    participant_label: list[str] = field(default_factory=list)
    unknown_participants: list[str] = field(default_factory=list)
    busy_participants: dict[str, str] = field(default_factory=dict)  # another run is at them: who
    session_label: list[str] = field(default_factory=list)
    derivatives: dict[str, str] = field(default_factory=dict)
    bids_filter_file: str = ''
    bids_database_dir: str = ''
    skip_bids_validation: bool = False
    output_spaces: list[str] = field(default_factory=list)
    random_seed: int = 0
    sloppy: bool = False
    low_mem: bool = False
    clean_workdir: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    write_graph: bool = False
    verbose: int = 0
    run_uuid: str = ''
    command: str = ''


@dataclass
class Resources:
    """Processors, memory and the nipype plugin."""

    nprocs: int = 1
    omp_nthreads: int = 1
    memory_gb: float = 4.0
    uses_gpu: bool = False  # found out when the graph is built: nodes then take turns at it
    plugin: str = ''
    plugin_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Method:
    """The reconstruction: which method, on which reference, with which options."""

    recon: str = 'auto'
    reference: str = 'T1w'
    reference_chosen: bool = False  # the user named it: a thick reference is then accepted
    output_resolution_mm: float = 0.0  # 0: the default of the method
    device: str = 'auto'
    brain_template: str = 'auto'
    slice_profile: str = 'auto'
    harmonize: dict[str, Any] = field(default_factory=dict)  # fields of HarmonizeOptions that were set
    superres: dict[str, Any] = field(default_factory=dict)  # fields of SuperresOptions that were set
    svr: dict[str, Any] = field(default_factory=dict)  # fields of SvrOptions that were set
    cine: dict[str, Any] = field(default_factory=dict)  # fields of CineOptions that were set
    cine_retro: list[float] = field(default_factory=list)  # factors by which full data are undersampled
    svr_bias_correction: bool = True
    svr_denoise: bool = False
    svr_slice_order: str = ''  # empty: by SliceTiming, else interleaved
    svr_template: str = ''  # image, or folder of templates by age
    m2asr: dict[str, Any] = field(default_factory=dict)  # fields of TrainingOptions that were set
    m2asr_train: str = ''  # network, or pairs only
    m2asr_weights: str = ''  # to apply; with m2asr_train where to write them, empty: in the output folder
    m2asr_contrasts: list[str] = field(
        default_factory=list
    )  # empty: those of the weights, else T2w and FLAIR
    m2asr_split: str = ''  # table of who is held out; empty: beside the weights
    m2asr_held_out: float = 0.15


@dataclass
class Config:
    """All settings of one run."""

    execution: Execution = field(default_factory=Execution)
    resources: Resources = field(default_factory=Resources)
    method: Method = field(default_factory=Method)

    @property
    def bids_dir(self) -> Path:
        return Path(self.execution.bids_dir)

    @property
    def output_dir(self) -> Path:
        return Path(self.execution.output_dir)

    @property
    def work_dir(self) -> Path:
        return Path(self.execution.work_dir)

    @property
    def log_dir(self) -> Path:
        """``<output>/logs/<run_uuid>``: parallel jobs on one output folder never share it."""
        return self.output_dir / 'logs' / self.execution.run_uuid

    @property
    def run_dir(self) -> Path:
        """``<work>/<run_uuid>``: the config and the graph of this run."""
        return self.work_dir / self.execution.run_uuid

    def to_toml(self, path) -> Path:
        """Write the settings to ``path`` (atomically)."""
        import tomli_w

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}')
        temporary.write_bytes(tomli_w.dumps(dataclasses.asdict(self)).encode())
        os.replace(temporary, path)
        return path

    @classmethod
    def from_toml(cls, path) -> Config:
        """Read settings written by `to_toml` (or by hand: missing keys keep their defaults).

        Raises
        ------
        InputError
            Unreadable file, unknown section or key.
        """
        sections = read_sections(path)
        return cls(**{name: _SECTIONS[name](**values) for name, values in sections.items()})


_SECTIONS = {'execution': Execution, 'resources': Resources, 'method': Method}


def read_sections(path) -> dict[str, dict[str, Any]]:
    """The checked sections of a TOML configuration file, only the keys it sets."""
    path = Path(path)
    try:
        sections = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f'{path} is not a readable TOML configuration file ({error}).') from error
    for name, values in sections.items():
        if name not in _SECTIONS or not isinstance(values, dict):
            raise InputError(f'{path} has an unknown section [{name}]: use one of {", ".join(_SECTIONS)}.')
        known = {item.name for item in dataclasses.fields(_SECTIONS[name])}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f'{path} has an unknown key {unknown[0]!r} in [{name}]: remove or correct it.')
    return sections
