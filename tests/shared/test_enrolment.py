import hashlib
import json

import pytest
from pydantic import ValidationError

from shared.enrolment import Enrolment, Kit

KIT = {
    "site": "st-anna",
    "enrolment": "1" * 64,
    "aggregator": "agg.example.org:443",
    "ca": "PEM",
    "release_key": "2" * 64,
    "coordinators": ["3" * 64],
}


def test_the_digest_is_of_the_keys_and_the_name_alone() -> None:
    one = Enrolment(name="a", flower_public_key="ecdsa KEY", signing_public_key="1" * 64)
    document = {
        "flower_public_key": "ecdsa KEY",
        "name": "a",
        "signing_public_key": "1" * 64,
        "version": 1,
    }
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    assert one.digest() == hashlib.sha256(text.encode()).hexdigest()
    commented = one.model_copy(update={"flower_public_key": "ecdsa  KEY it@host"})
    assert commented.digest() == one.digest()
    for other in ({"name": "b"}, {"flower_public_key": "ecdsa K"}, {"signing_public_key": None}):
        assert one.model_copy(update=other).digest() != one.digest()


@pytest.mark.parametrize(
    "change", [{"aggregator": "agg"}, {"enrolment": "1"}, {"key": "secret"}, {"ca": "x" * 20_000}]
)
def test_what_is_no_kit_is_refused(change: dict[str, str]) -> None:
    Kit.model_validate_json(json.dumps(KIT))
    with pytest.raises(ValidationError):
        Kit.model_validate_json(json.dumps(KIT | change))
