"""A spool, and a listener on a free port of loopback."""

import gc
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from site_agent.importer.settings import ListenSettings
from site_agent.importer.spool import Spool

OpenSpool = Callable[..., Spool]


@pytest.fixture
def open_spool(tmp_path: Path) -> OpenSpool:
    def opened(*, quota_bytes: int = 10**8, max_object_bytes: int = 10**7) -> Spool:
        return Spool(
            tmp_path / "spool",
            key=b"k" * 32,
            quota_bytes=quota_bytes,
            max_object_bytes=max_object_bytes,
        )

    return opened


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def listening(free_port):
    """Starts a listener on a spool: ``with listening(spool) as (port, said)``."""
    from site_agent.importer.listener import Listener

    @contextmanager
    def started(spool: Spool, **settings: object) -> Iterator[tuple[int, list[str]]]:
        said: list[str] = []
        wanted = ListenSettings.model_validate({"callers": ["PACS"], "port": free_port, **settings})
        with Listener(wanted, spool, say=said.append):
            yield free_port, said

    yield started
    # pynetdicom leaves sockets whose peer went away to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
