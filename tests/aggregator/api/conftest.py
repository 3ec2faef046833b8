"""An aggregator's home with two versions of a small dataset."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.api import create_app
from aggregator.release import publish
from shared.contract import RunContract
from shared.release.keys import read_private_key, write_key_pair

with warnings.catch_warnings():
    # Starlette's test client warns on import of what it imports itself.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

FILES = {"README.md": "# größe\n".encode(), "pairs.safetensors": bytes(range(256)) * 2000}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "keys").mkdir(parents=True)
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    key = read_private_key(folder / "keys" / "release.key")
    contract = RunContract(name="ct-demo")
    for extra in ({}, {"second.txt": b"second"}):
        publish(home=folder, contract=contract, files={**FILES, **extra}, key=key)
    return folder


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(home), raise_server_exceptions=False) as opened:
        yield opened
