"""The preflight's findings as a table: Check | Problem | How to fix."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from site_agent.preflight.findings import Finding, Verdict

STYLES: dict[Verdict, str] = {
    "good": "green",
    "warning": "yellow",
    "failed": "red",
    "unjudged": "magenta",
}


def as_table(findings: Sequence[Finding]) -> Table:
    """A row a check; what is good has nothing to fix."""
    table = Table("Check", "Problem", "How to fix", box=box.SIMPLE_HEAD, show_lines=False)
    for finding in findings:
        word = "" if finding.verdict == "failed" else f"{finding.verdict}: "
        table.add_row(
            Text(finding.check, style=STYLES[finding.verdict]),
            Text(f"{word}{finding.problem}"),
            Text(finding.fix),
        )
    return table
