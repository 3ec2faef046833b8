"""How what is known of a file crosses between the processes, and how it is checked on arrival."""

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ConfigDict

STRICT: "ConfigDict" = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's configuration of the dataclasses that cross from a reader, which itself needs none."""


def as_fields(source: object) -> dict[str, Any]:
    """A dataclass and those in it as JSON objects, without its path. (``asdict`` copies deeply.)"""
    return {
        name: as_fields(value) if is_dataclass(value) else value
        for name, value in vars(source).items()
        if name != "path"
    }
