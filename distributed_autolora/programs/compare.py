"""Compares ways of fine-tuning: AutoLoRa without a search against searched baselines, or another of the paper's tables.

Finished runs are kept: the same command resumes an interrupted comparison. See docs/comparing.md.
"""

from __future__ import annotations

from distributed_autolora.cli import parse_flags, typed_command
from distributed_autolora.config import RunConfig, output_home
from distributed_autolora.orchestration.studies.request import CompareFlags, study_name, study_request

WHEN_INTERRUPTED = (
    "Finished runs are kept; the same command resumes with the others; with --report-only it reports the finished ones."
)


def main() -> None:
    """Reads the command line, and makes, shows or reports a study."""
    flags = parse_flags(CompareFlags, str(__doc__))
    if flags.write_hyperparameters is not None:
        from distributed_autolora.studies import hyperparameters_page

        flags.write_hyperparameters.write_text(hyperparameters_page())
        return
    if flags.report_only:
        from distributed_autolora.orchestration.studies.compare import report_only

        report_only(output_home(RunConfig(output=flags.output)), study_name(flags))
        return
    request = study_request(flags, typed_command())
    if flags.dry_run:
        from distributed_autolora.orchestration.studies.dry_run import dry_run

        print(dry_run(request))
        return
    from distributed_autolora.orchestration.studies.compare import compare

    compare(request)
