"""The base of everything that parties agree on: immutable models and their canonical JSON."""

from typing import Annotated, Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Slug = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
"""A name that is safe in a path, a URL and a log line."""


class Frozen(BaseModel):
    """Base of every message and contract part: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical_json(value: Any) -> bytes:
    """RFC 8785 canonical JSON of ``value``."""
    return rfc8785.dumps(value)


def explain(error: ValidationError) -> str:
    """One line a field: its dotted name and what is wrong, never the offending document."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'contract'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )
