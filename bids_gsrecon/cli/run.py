"""The BIDS-App: parse, plan, build, run, and always report.

Exit codes: 0 all went well; 1 a participant or a report failed; 2 wrong arguments; 70 nothing to do, or the
workflow could not be built; 130 interrupted.

What computes is a child of this process (`bids_gsrecon.cli.engine`), so that there is someone left to say what happened
when it is killed.
"""

from __future__ import annotations

import sys
import time

from bids_gsrecon.cli.messages import say
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.processes import interrupt_on_signals

INTERRUPTED = 130


def main(arguments=None) -> int:
    """Run the app; see the module for the exit codes."""
    from bids_gsrecon.cli.parser import parse_args

    started = time.time()
    interrupt_on_signals()
    try:
        config = parse_args(arguments)
        from bids_gsrecon.cli.execute import prepare_environment

        prepare_environment(config)
        if config.execution.analysis_level == 'group' and not config.method.m2asr_train:
            from bids_gsrecon.cli.group import run_group

            return run_group(config)
        if config.execution.reports_only:
            return run_reports_only(config, started)
        from bids_gsrecon.cli.supervise import supervise

        return supervise(config, started)
    except InputError as error:
        say(f'error: {error}', error=True)
        return 2
    except KeyboardInterrupt:
        say('interrupted: run the same command again, it goes on where it stopped', error=True)
        return INTERRUPTED
    except Exception as error:
        if '-v' in map(str, arguments or sys.argv):
            raise
        say(f'internal error ({type(error).__name__}: {error}): run again with -v for details', error=True)
        return 1


def run_reports_only(config: Config, started: float) -> int:
    """Assemble the reports again from the figures that are there."""
    from bids_gsrecon.cli.finish import conclude
    from bids_gsrecon.cli.outcome import OK, SKIPPED, Outcome, last_outcomes

    known = last_outcomes(config.output_dir)
    outcomes = []
    for label in config.execution.participant_label:
        has_figures = any((config.output_dir / f'sub-{label}' / 'figures').glob('sub-*'))
        outcomes.append(known.get(label) or Outcome(label, OK if has_figures else SKIPPED))
    citation = config.output_dir / 'logs' / 'CITATION.md'
    boilerplate = citation.read_text() if citation.is_file() else ''
    return conclude(config, outcomes, boilerplate, started)


if __name__ == '__main__':
    sys.exit(main())
