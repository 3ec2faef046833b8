"""The worker's figures for the site's monitoring, on a Unix socket of their own.

The worker has no network to serve metrics on, so it tells the connector, which has. What a
connector knows an aggregator might come to know: figures are counts and a bucket of patients, and a
request that came through Flower never reaches this socket, which answers nothing else.
"""

import time
from pathlib import Path

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from shared.frozen import Frozen
from site_agent.events import Tally
from site_agent.frames import call

QUESTION = b"figures"
TIMEOUT_S = 3.0


class Figures(Frozen):
    """What the worker has done since it began, and what it would work with now."""

    version: str
    started: NonNegativeFloat = Field(description="seconds since 1970")
    policy_valid: bool
    cohort_present: bool
    patients_at_least: NonNegativeInt
    events: dict[str, NonNegativeInt]
    refusals: dict[str, NonNegativeInt]
    answer_bytes: NonNegativeInt
    answer_seconds: NonNegativeFloat


def figures_of(
    tally: Tally, *, version: str, policy_valid: bool, patients_at_least: int, cohort_present: bool
) -> bytes:
    """The encoded answer."""
    figures = Figures(
        version=version,
        started=_STARTED,
        policy_valid=policy_valid,
        cohort_present=cohort_present,
        patients_at_least=patients_at_least,
        **tally.read(),
    )
    return figures.model_dump_json().encode()


def ask_figures(socket_path: Path) -> Figures | None:
    """The figures of the worker that listens there; None where none answers."""
    try:
        return Figures.model_validate_json(call(socket_path, QUESTION, timeout_s=TIMEOUT_S))
    except (OSError, ValidationError):
        return None


_STARTED = time.time()
