"""Which package may import which: the hospital's code and the aggregator's never meet but once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "shared": {"site_agent", "aggregator", "deploy"},
    "site_agent": {"aggregator", "deploy"},
    "aggregator": {"site_agent", "deploy"},
}
ALLOWED = {Path("aggregator/simulate.py"): {"site_agent"}}
"""The federation in one process, for research and tests."""


def imported(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_import_downwards_alone(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        path = file.relative_to(ROOT)
        wrong = imported(file.read_text("utf-8")) & FORBIDDEN[package] - ALLOWED.get(path, set())
        assert not wrong, f"{path} imports {wrong}"


def test_the_look_at_imports_finds_a_hidden_one() -> None:
    source = "def f():\n    from site_agent.cohort import Cohort\n"
    assert imported(source) == {"site_agent"}
