"""Signed heads of datasets: made when asked for, one a minute at most."""

import threading
import time
from datetime import UTC, datetime, timedelta

from aggregator.catalog import Head as Published
from aggregator.publisher_keys import PublisherKeys
from shared.release.head import Head, SignedHead, moment, sign_head
from shared.release.keys import read_private_key

FRESH_S = 60.0
MAX_KEPT = 4096


class Heads:
    """Signs what the catalog says is published, with the head key; ``days`` until it expires."""

    def __init__(self, keys: PublisherKeys, *, days: int) -> None:
        self.keys = keys
        self.days = days
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, int, SignedHead]] = {}

    def signed(self, namespace: str, name: str, published: Published) -> SignedHead:
        """The signed head of a dataset; raises ``LocalError`` where there is no head key."""
        path = self.keys.private("head")
        now = time.monotonic()
        with self._lock:
            made, inode, signed = self._kept.get((namespace, name), (0.0, 0, None))
            current = path.stat().st_ino if path.exists() else 0
            if (
                signed is not None
                and now - made < FRESH_S
                and inode == current  # the key was not rotated meanwhile
                and signed.head.sequence == published.sequence
            ):
                return signed
            issued = datetime.now(UTC)
            newest = published.newest
            head = Head(
                namespace=namespace,
                name=name,
                sequence=published.sequence,
                number=newest.number if newest else 0,
                manifest_sha256=newest.digest if newest else None,
                withdrawn=published.withdrawn,
                issued_at=moment(issued),
                expires_at=moment(issued + timedelta(days=self.days)),
            )
            signed = sign_head(head, read_private_key(path))
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[(namespace, name)] = (now, current, signed)
            return signed
