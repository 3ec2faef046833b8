"""How what is known of a file crosses between the processes, and how it is checked on arrival."""

from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ConfigDict

STRICT: "ConfigDict" = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's configuration of the dataclasses that cross from a reader, which itself needs none."""

_PLAIN = str, float, int, tuple, NoneType


def as_fields(source: object) -> dict[str, Any]:
    """A dataclass and those in it as JSON objects, without its path. (``asdict`` copies deeply.)"""
    return {
        name: value if isinstance(value, _PLAIN) else as_fields(value)
        for name, value in vars(source).items()
        if name != "path"
    }
