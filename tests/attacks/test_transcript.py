"""An aggregator that keeps everything it ever saw of a secure sum, and tries every combination.

Four sites. Attempt 1 is answered by all, the answer of d too late; attempt 2 by the other three,
who open it. The aggregator then adds and subtracts, in every way with coefficients -1, 0 and 1, the
seven masked answers and the streams of the three seeds it was given. What it learns anything from
is of the size of honest contributions; anything else is uniform over 64 bits, in every coordinate.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.contract import Anchor, Member, Probes, RunContract
from shared.masking import Session, coordinate_bound, own_mask, sign_offer, step_of
from shared.messages import KeyQueryHeader, OpenQueryHeader, ProbeHeader, RefusalCode, decode
from site_agent import membership
from site_agent.incidents import RefusedError
from site_agent.membership import Membership

NAMES = ("a", "b", "c", "d")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 32) for name in NAMES}
CONTRACT = RunContract(
    name="ct",
    granularity="federation",
    anchor=Anchor(rounds=2),
    probes=Probes(requests=2, clip_norm=1.0),
    members=tuple(
        Member(name=name, signing_key=key.public_key().public_bytes_raw().hex())
        for name, key in KEYS.items()
    ),
)
DIGEST = CONTRACT.digest()
LENGTH = 12
WEIGHT = 10.0
REQUESTS = {1: "11" * 32, 2: "22" * 32}


class Transcript:
    """All that passed through the aggregator, and what the sites were asked."""

    def __init__(self, folder: Path) -> None:
        self.members = {name: Membership(folder / name, name, KEYS[name], ()) for name in NAMES}
        generator = np.random.default_rng(1)
        self.numerators = {
            name: WEIGHT * generator.normal(0, 0.3, LENGTH).clip(-1, 1) for name in NAMES
        }
        self.answers: dict[tuple[str, int], np.ndarray] = {}
        self.seeds: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}

    def offers(self, names: tuple[str, ...], attempt: int) -> list:
        query = KeyQueryHeader(contract=CONTRACT, contract_digest=DIGEST, round=1, attempt=attempt)
        return [decode(self.members[name].offer(query)).header.offer for name in names]

    def request(self, names: tuple[str, ...], attempt: int) -> ProbeHeader:
        return ProbeHeader(
            contract=CONTRACT,
            contract_digest=DIGEST,
            round=1,
            attempt=attempt,
            kind="gradients",
            network="student",
            offers=tuple(self.offers(names, attempt)),
        )

    def answer(self, name: str, request: ProbeHeader) -> None:
        member, attempt = self.members[name], request.attempt
        self.sessions[REQUESTS[attempt]] = Session.of(request, REQUESTS[attempt])
        member.refuse_attempt(request)
        self.answers[name, attempt] = member.mask(
            request, REQUESTS[attempt], self.numerators[name], WEIGHT, rows=1
        )
        member.answered(request)

    def open(self, name: str, attempt: int) -> None:
        query = OpenQueryHeader(contract_digest=DIGEST, round=1, attempt=attempt)
        self.seeds[name] = bytes.fromhex(decode(self.members[name].opening(query)).header.seed)

    def pieces(self) -> tuple[list[str], np.ndarray]:
        """Names of what can be combined, and the numbers (pieces, LENGTH); weights left out."""
        named = {f"{name}{attempt}": numbers for (name, attempt), numbers in self.answers.items()}
        for name, seed in self.seeds.items():
            for digest, session in self.sessions.items():
                stream = own_mask(seed, name=name, session=session, count=LENGTH + 1)
                named[f"mask-{name}-{digest[:2]}"] = stream
        return list(named), np.stack([numbers[:LENGTH] for numbers in named.values()])


def with_a_late_answer(folder: Path) -> Transcript:
    """The round as told above."""
    seen = Transcript(folder)
    first = seen.request(NAMES, 1)
    for name in ("a", "b", "c"):
        seen.answer(name, first)
    remaining = ("a", "b", "c")
    second = seen.request(remaining, 2)
    for name in remaining:
        seen.answer(name, second)
    for name in remaining:
        seen.open(name, 2)
    seen.answer("d", first)  # late, and it need not know of attempt 2
    return seen


def combinations(pieces: int) -> Iterator[np.ndarray]:
    """All rows of -1, 0 and 1, but that of zeros alone, in blocks (n, pieces)."""
    place = 3 ** np.arange(pieces)
    for first in range(0, 3**pieces, 3**10):
        numbers = np.arange(first, min(first + 3**10, 3**pieces))
        rows = numbers[:, None] // place % 3 - 1
        yield rows[np.abs(rows).any(axis=1)]


def of_honest_size(seen: Transcript) -> dict[str, np.ndarray]:
    """Every combination that decodes to what contributions can add up to, by its formula."""
    names, pieces = seen.pieces()
    bound = coordinate_bound(CONTRACT, "gradients", rows=1)
    largest = sum(np.abs(one).max() for one in seen.numerators.values())
    found = {}
    for rows in combinations(len(names)):
        combined = (rows.astype(np.uint64) @ pieces).view(np.int64)
        # The step is public: that of three members, or of four.
        for members in (4, 3):
            decoded = combined * step_of(members=members, bound=bound)
            small = (np.abs(decoded) <= 2 * largest).all(axis=1)
            for row, numbers in zip(rows[small], decoded[small], strict=True):
                formula = " ".join(
                    f"{'+' if sign > 0 else '-'}{name}"
                    for sign, name in zip(row, names, strict=True)
                    if sign
                )
                found[formula] = numbers
    return found


def test_of_an_honest_round_only_the_sum_decodes(tmp_path: Path) -> None:
    seen = with_a_late_answer(tmp_path)
    names, _ = seen.pieces()
    assert len(names) == 7 + 6  # each seed's stream, for either attempt
    found = of_honest_size(seen)
    assert len(found) == 2, "the sum, and its negative"
    (formula,) = [one for one in found if one.startswith("+")]
    assert formula == ("+a2 +b2 +c2 -mask-a-22 -mask-b-22 -mask-c-22")
    total = sum(seen.numerators[name] for name in ("a", "b", "c"))
    np.testing.assert_allclose(found[formula], total, atol=1e-9)


def test_without_own_masks_the_late_answer_lays_its_site_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: the same search, and sites that have pairwise masks alone."""
    monkeypatch.setattr(membership, "own_mask", lambda *_, count, **__: np.zeros(count, np.uint64))
    seen = with_a_late_answer(tmp_path)
    found = of_honest_size(seen)
    assert {"+a2 +b2 +c2", "+a1 +b1 +c1 +d1"} <= set(found)
    bound = coordinate_bound(CONTRACT, "gradients", rows=1)
    in_steps_of_three = step_of(members=4, bound=bound) / step_of(members=3, bound=bound)
    of_four = found["+a1 +b1 +c1 +d1"] * in_steps_of_three  # was decoded as of three members
    np.testing.assert_allclose(of_four - found["+a2 +b2 +c2"], seen.numerators["d"], atol=1e-9)


def refused(step: Callable[..., object], *arguments: object) -> RefusalCode:
    with pytest.raises(RefusedError) as reason:
        step(*arguments)
    return reason.value.code


def test_no_site_is_led_to_open_both_of_two_attempts(tmp_path: Path) -> None:
    """All answer attempt 1, and a and b open it; then the others are told that it has failed."""
    seen = Transcript(tmp_path)
    first = seen.request(NAMES, 1)
    for name in NAMES:
        seen.answer(name, first)
    for name in ("a", "b"):
        seen.open(name, 1)
        assert refused(seen.offers, (name,), 2) is RefusalCode.ROUND_REUSED
        assert refused(seen.open, name, 2) is RefusalCode.BAD_MEMBERS
    # Those that are left are too few for a sum without a and b.
    assert refused(seen.answer, "c", seen.request(("c", "d"), 2)) is RefusalCode.BAD_MEMBERS
    for name in ("c", "d"):
        assert refused(seen.open, name, 1) is RefusalCode.ROUND_REUSED
    assert of_honest_size(seen) == {}


def test_keys_of_the_aggregators_own_are_not_taken_for_a_members(tmp_path: Path) -> None:
    seen = Transcript(tmp_path)
    request = seen.request(NAMES, 1)
    private_key, stranger = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    about = {"contract_digest": DIGEST, "round": 1, "attempt": 1, "name": "b"}
    public_key = private_key.public_key().public_bytes_raw().hex()
    a, b, c, d = request.offers
    swapped = {
        "its own key under b's signature": b.model_copy(update={"public_key": public_key}),
        "its own key and signature": sign_offer(stranger, public_key=public_key, **about),
        "the key of c as that of b": b.model_copy(update={"public_key": c.public_key}),
        "b's key of another round": sign_offer(
            KEYS["b"], public_key=public_key, **about | {"round": 2}
        ),
    }
    for name, offer in swapped.items():
        other = request.model_copy(update={"offers": (a, offer, c, d)})
        assert refused(seen.answer, "a", other) is RefusalCode.BAD_MEMBERS, name
    seen.answer("a", request)  # the control


def test_an_offer_is_not_replayed_in_a_later_attempt(tmp_path: Path) -> None:
    seen = Transcript(tmp_path)
    first, second = seen.request(NAMES, 1), seen.request(NAMES, 2)
    replayed = second.model_copy(update={"offers": (*second.offers[:3], first.offers[3])})
    assert refused(seen.answer, "a", replayed) is RefusalCode.BAD_MEMBERS
    assert refused(seen.answer, "a", first) is RefusalCode.ROUND_REUSED
    seen.answer("a", second)  # the control


def test_members_that_were_not_asked_the_same_add_up_to_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights at which nobody has a gradient but d, who gets others: its share would be the sum."""
    seen = Transcript(tmp_path / "chosen")
    request = seen.request(NAMES, 1)
    for name in NAMES:
        if name == "d":
            monkeypatch.setitem(REQUESTS, 1, "99" * 32)
        seen.answer(name, request)
        seen.open(name, 1)
    assert {name[:4] for name in seen.pieces()[0]} == {"a1", "b1", "c1", "d1", "mask"}
    assert len(seen.pieces()[0]) == 4 + 4 * 2, "each seed's stream, for either request"
    assert of_honest_size(seen) == {}
    control = Transcript(tmp_path / "same")
    request = control.request(NAMES, 1)
    for name in NAMES:
        control.answer(name, request)
        control.open(name, 1)
    assert len(of_honest_size(control)) == 2
