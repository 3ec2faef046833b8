"""A home with datasets of each kind, whose cards, agreement and reason were written by an enemy."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.access.tokens import Tokens
from aggregator.api import create_app
from aggregator.catalog import Catalog
from aggregator.release import publish
from shared.contract import RunContract
from shared.release.keys import read_private_key, write_key_pair

with warnings.catch_warnings():
    # Starlette's test client warns on import of what it imports itself.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

HOSTILE = "<script>planted()</script><img src=x onerror=planted()> & \"quoted\" 'too'"
CARD = f"""---
license: cc-by-4.0
---
# A card {HOSTILE}

A first paragraph. {HOSTILE}

## What it is not

[web](https://example.org/a?b=1&c=2) [script](javascript:planted()) [data](data:text/html,planted)
[file](pairs.safetensors) [elsewhere](../../../etc/passwd)
![sheet of elsewhere](https://elsewhere.example/track.png) ![other](other.png)

| task | PSNR |
|:--|--:|
| {HOSTILE.replace("|", "")} | 30.1 |

## What it is worth

In the card alone.

## Privacy

The card on privacy.
"""
PAIRS = b"\0" * 3000
FIGURES = {"psnr": {"mean": 31.7, "std": 0.1, "n": 5}, "ssim": {"mean": 0.83, "std": 0.01, "n": 5}}
UTILITY: dict[str, Any] = {
    "rows": {
        name: {**FIGURES, "psnr": {"mean": mean, "std": 0.1, "n": 5}}
        for name, mean in {"input": 24.1, "prior_textured": 30.9, "distilled": 31.7}.items()
    },
    "best_null": "prior_textured",
    "gain_over_best_null": 0.8,
    "gain_interval": [0.6, 1.0],
    "worth_of_hospital_data": 1.5,
    "worth_interval": [1.2, 1.8],
    "share_recovered": 0.53,
    "evaluation": "20 patients",
}
FILES = {
    "README.md": CARD.encode(),
    "PRIVACY.md": b"# Privacy\n\nThe file on privacy.\n",
    "provenance.json": json.dumps({"predicate": {"utility": UTILITY}}).encode(),
    "pairs.safetensors": PAIRS,
    "contact-sheet.png": b"\x89PNG",
    "other.png": b"\x89PNG",
}
AGREEMENT = f"1. Use it for research. {HOSTILE}\n2. Identify nobody.\n"
REASON = f"noise {HOSTILE}"


def make_home(folder: Path) -> Path:
    """Public (two versions, the first withdrawn), gated and private datasets, and 45 others."""
    (folder / "keys").mkdir(parents=True)
    (folder / "aggregator.toml").write_text("api_requests_a_minute = 0\n")
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    key = read_private_key(folder / "keys" / "release.key")
    catalog = Catalog(folder / "catalog.sqlite")
    for name in ("gated", "private"):
        catalog.configure(
            "fedstill", name, visibility=name, agreement=AGREEMENT if name == "gated" else None
        )
    for name in ("public", "gated", "private"):
        publish(home=folder, contract=RunContract(name=name), files=FILES, key=key)
    second = {**FILES, "second.txt": b"second"}
    publish(home=folder, contract=RunContract(name="public"), files=second, key=key)
    catalog.withdraw("fedstill", "public", 1, REASON)
    for number in range(45):
        catalog.publish(
            namespace="fedstill",
            name=f"many-{number:02d}",
            digest=f"{number:064x}",
            summary={"task": f"task {HOSTILE}" if number == 7 else "mr-sr"},
            files=lambda _: [],
        )
    catalog.close()
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("pages") / "home")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    """A browser, as far as its header goes."""
    app = create_app(home)
    with TestClient(app, headers={"Accept": "text/html,*/*;q=0.8"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def admin(home: Path) -> dict[str, str]:
    """The header of a token that opens everything."""
    catalog = Catalog(home / "catalog.sqlite")
    secret, _ = Tokens(catalog.database).create("admin", scopes=["admin"])
    catalog.close()
    return {"Authorization": f"Bearer {secret}"}
