"""Who has a home: one `aggregator up` at a time, or one command that must not meet it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aggregator.home import AggregatorHome

LOCK = "up.lock"
LOOKS_WITHIN_S = 0.5
"""Whoever looks whether a home is free holds it for that moment."""


class OccupiedError(RuntimeError):
    """A home that somebody else has."""


@contextmanager
def occupied(home: AggregatorHome) -> Iterator[None]:
    """Holds the home: two SuperLinks on one database would damage it. Raises ``OccupiedError``."""
    descriptor = os.open(home.root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOOKS_WITHIN_S
        while not _try(descriptor):
            if time.monotonic() >= deadline:
                raise OccupiedError(f"`aggregator up` runs on {home.root} already")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def is_up(home: AggregatorHome) -> bool:
    """Whether `aggregator up` runs on the home."""
    try:
        descriptor = os.open(home.root / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor)
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
