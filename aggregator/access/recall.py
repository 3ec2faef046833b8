"""Answers of the database kept while it does not change, so that few requests ask it.

SQLite tells that another connection has committed (``PRAGMA data_version``): what is kept is as
fresh as what is asked. PostgreSQL does not: there an answer is kept for half a second at most, and
not past the end of a second, up to which a grant to the edge proxy may last.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from aggregator.database import Database

Answer = TypeVar("Answer")
KEPT_S = 0.5
MAX_ANSWERS = 4096


class Recall:
    """Answers by key, all forgotten when the database changes."""

    def __init__(self, database: Database) -> None:
        self._file = (
            database.engine.url.database if database.engine.dialect.name == "sqlite" else None
        )
        self._watch: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._stamp = -1
        self._answers: dict[Hashable, Any] = {}

    def knows(self, *keys: Hashable) -> bool:
        """Whether the answers to all are kept and fresh."""
        with self._lock:
            answers = self._fresh()
        return all(key in answers for key in keys)

    def answer(self, key: Hashable, find: Callable[[], Answer]) -> Answer:
        """What ``find`` answers, or answered since the database last changed."""
        with self._lock:
            answers = self._fresh()
        if key in answers:
            return cast(Answer, answers[key])
        found = find()
        # Into what was fresh before it was asked: a change since then has thrown that away.
        with self._lock:
            if len(answers) >= MAX_ANSWERS:
                answers.clear()
            answers[key] = found
        return found

    def close(self) -> None:
        """Stops watching."""
        with self._lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _fresh(self) -> dict[Hashable, Any]:
        stamp = self._now()
        if stamp != self._stamp:
            self._stamp, self._answers = stamp, {}
        return self._answers

    def _now(self) -> int:
        if self._file is None:
            return int(time.time() / KEPT_S)
        if self._watch is None:
            self._watch = sqlite3.connect(
                self._file, check_same_thread=False, isolation_level=None, timeout=30.0
            )
        return int(self._watch.execute("PRAGMA data_version").fetchone()[0])
