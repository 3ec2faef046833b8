"""A home with two runs, a token of each kind, and a browser that has signed in."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.access.tokens import Tokens
from aggregator.api import create_app
from aggregator.catalog import Catalog
from aggregator.home import AggregatorHome, create_home
from aggregator.runs import prepare_run
from shared.contract import RunContract

with warnings.catch_warnings():
    # Starlette's test client warns on import of what it imports itself.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

FIRST, SECOND = RunContract(name="first"), RunContract(name="second", seed=2)


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    made = create_home(tmp_path / "home", {"api_requests_a_minute": 0})
    for contract in (FIRST, SECOND):
        prepare_run(made, contract, sites=["hospital-a", "hospital-b"], public=None)
    return made


@pytest.fixture
def tokens(home: AggregatorHome) -> dict[str, str]:
    """A token of each scope, by scope."""
    catalog = Catalog(home.catalog)
    made = Tokens(catalog.database)
    found = {
        scope: made.create(f"dr-{scope.partition(':')[0]}", scopes=[scope])[0]
        for scope in ("launch:run", "admin", "read:dataset")
    }
    catalog.close()
    return found


@pytest.fixture
def client(home: AggregatorHome) -> Iterator[TestClient]:
    """A browser, as far as its header goes; nobody has signed in."""
    app = create_app(home.root)
    headers = {"Accept": "text/html,*/*;q=0.8"}
    with TestClient(app, headers=headers, follow_redirects=False) as opened:
        yield opened


@pytest.fixture
def desk(client: TestClient, tokens: dict[str, str]) -> TestClient:
    """The same, signed in with the scope ``launch:run``."""
    answer = client.post("/desk/login", data={"token": tokens["launch:run"]})
    assert answer.status_code == 303
    return client


def csrf_of(page: str) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found, "a form of the page carries its session's number"
    return found[1]
