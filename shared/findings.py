"""What a check found, of a site or of the aggregator: Check | Problem | How to fix."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Verdict = Literal["good", "warning", "failed", "unjudged"]
STYLES: dict[Verdict, str] = {
    "good": "green",
    "warning": "yellow",
    "failed": "red",
    "unjudged": "magenta",
}


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, what is wrong with it, what to do."""

    check: str
    verdict: Verdict
    problem: str
    """Of a good one: what was found."""
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A check that is still to be run."""

    name: str
    run: Callable[[], Finding]


def good(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "good", found)


def warning(check: str, problem: str, fix: str) -> Finding:
    """It works, and could be better."""
    return Finding(check, "warning", problem, fix)


def failed(check: str, problem: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(check, "failed", problem, fix)


def unjudged(check: str, problem: str, fix: str) -> Finding:
    """It cannot be told before something else is done."""
    return Finding(check, "unjudged", problem, fix)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where a check failed, else 4 where one cannot be judged, else 0."""
    verdicts = {finding.verdict for finding in findings}
    return 1 if "failed" in verdicts else 4 if "unjudged" in verdicts else 0


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


def examine(checks: Iterable[Check], *, as_json: bool) -> int:
    """Runs the checks, prints what they found on stdout, and gives the exit code."""
    findings = []
    with Console(stderr=True).status("") as status:
        for check in checks:
            status.update(f"checking {check.name}")
            findings.append(check.run())
    code = exit_code(findings)
    if as_json:
        document = {"exit_code": code, "checks": [asdict(one) for one in findings]}
        Console(soft_wrap=True, highlight=False).out(json.dumps(document), highlight=False)
    else:
        Console().print(as_table(findings))
    return code
