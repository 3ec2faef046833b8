"""How a reader's answers are checked when they arrive."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ConfigDict

STRICT: "ConfigDict" = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's configuration of the dataclasses that cross from a reader, which itself needs none."""
