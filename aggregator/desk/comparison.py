"""Two runs side by side: what their contracts differ in, and what became of each."""

from typing import Any

from aggregator.desk_api import RunView
from shared.contract import RunContract
from shared.frozen import Frozen


class Difference(Frozen):
    """A field of the contract that the two runs have differently; None where one has no such."""

    field: str
    a: Any = None
    b: Any = None


class Comparison(Frozen):
    """Two runs, whole, and the fields their contracts differ in."""

    a: RunView
    b: RunView
    differences: tuple[Difference, ...]


def compared(a: RunView, b: RunView) -> Comparison:
    """The two runs with their differences, in the contract's order."""
    return Comparison(a=a, b=b, differences=differences(a.contract, b.contract))


def differences(a: RunContract, b: RunContract) -> tuple[Difference, ...]:
    """The fields, by their dotted names, in which two contracts differ."""
    first, second = fields_of(a), fields_of(b)
    return tuple(
        Difference(field=name, a=first.get(name), b=second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name) or (name in first) != (name in second)
    )


def fields_of(contract: RunContract) -> dict[str, Any]:
    """Every field of a contract by its dotted name; a list is one value."""
    return dict(_flat(contract.model_dump(mode="json")))


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, one in value.items():
        inner = _flat(one, f"{prefix}{name}.") if isinstance(one, dict) else []
        found += inner or [(f"{prefix}{name}", one)]
    return found
