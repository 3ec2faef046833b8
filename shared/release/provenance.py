"""``provenance.json``: how a release came about, as an in-toto Statement v1.

The subject are the data files by SHA-256. The predicate is of a type of our own and not SLSA's:
SLSA requires a ``builder.id`` that names a trusted platform, and its claim is about that platform.
A run has none, and what readers ask of it (contract, rounds, sites, prior, utility) has no place
there.
Specification: https://github.com/in-toto/attestation/tree/main/spec/v1
"""

import json
from collections.abc import Mapping
from typing import Any

from shared.release.manifest import sha256

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:fedstill:provenance:2"


def statement(predicate: Mapping[str, Any], subject: Mapping[str, bytes]) -> dict[str, Any]:
    """The statement that ``predicate`` is how ``subject``, content by name, came about."""
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": sha256(content)}}
            for name, content in sorted(subject.items())
        ],
        "predicateType": PREDICATE,
        "predicate": dict(predicate),
    }


def read_predicate(content: bytes) -> dict[str, Any]:
    """What a release's ``provenance.json`` says; raises ``ValueError`` where it is none.

    Releases of before were the predicate alone, and stay readable.
    """
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(document, dict) and "_type" in document:
        if (document["_type"], document.get("predicateType")) != (STATEMENT, PREDICATE):
            raise ValueError("a statement of another kind")
        document = document.get("predicate")
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document
