"""What a look at the data found, printed for people."""

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table

from one4all_lc.cli.common import note, notes

if TYPE_CHECKING:
    from one4all_lc.training.checking import DataReport, Finding

SHOWN = 3
"""Lines that are shown of each kind of finding; `train --check --json` has all."""


def note_report(report: "DataReport") -> None:
    """Print rows and lengths by split on standard error, and the first lines of each finding."""
    table = Table("split", "rows", "median tokens", "95 %", "most", "tokens", "of answers")
    for split, lengths in report.lengths.items():
        table.add_row(split, *(f"{value:,}" for value in vars(lengths).values()))
    if table.row_count:
        notes.print(table)
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        kinds[finding.kind].append(finding)
    for findings in kinds.values():
        for finding in findings[:SHOWN]:
            note(("REFUSED: " if finding.refused else "") + finding.message)
        if len(findings) > SHOWN:
            note(f"... and {len(findings) - SHOWN:,} more of this kind ({findings[0].kind})")
