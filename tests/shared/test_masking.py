import math
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from shared.contract import Anchor, Probes, RunContract
from shared.frozen import canonical_json
from shared.masking import (
    Session,
    coordinate_bound,
    decode_contribution,
    decode_fixed,
    encode_contribution,
    encode_fixed,
    is_genuine,
    opened_sum,
    own_mask,
    pairwise_mask,
    sign_offer,
    step_of,
)
from shared.messages import MAX_PATIENTS, Offer

DIGEST, REQUEST = "ab" * 32, "cd" * 32


class Party:
    """A member with its keys, for one attempt."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signing_key = Ed25519PrivateKey.generate()
        self.private_key = X25519PrivateKey.generate()
        self.seed = np.random.default_rng().bytes(32)
        self.offer = sign_offer(
            self.signing_key,
            contract_digest=DIGEST,
            round=1,
            attempt=1,
            name=name,
            public_key=self.private_key.public_key().public_bytes_raw().hex(),
        )


def parties(count: int) -> list[Party]:
    return [Party(f"site-{number:02d}") for number in range(count)]


def session(those: list[Party], **changes: object) -> Session:
    names = tuple(sorted(one.name for one in those))
    agreed = Session(
        contract_digest=DIGEST,
        round=1,
        attempt=1,
        kind="gradients",
        request_digest=REQUEST,
        participants=names,
    )
    return agreed.model_copy(update=changes)


def masked(fixed: np.ndarray, one: Party, those: list[Party], agreed: Session) -> np.ndarray:
    offers = [other.offer for other in those]
    pairwise = pairwise_mask(
        one.private_key, name=one.name, offers=offers, session=agreed, count=len(fixed)
    )
    return fixed + pairwise + own_mask(one.seed, name=one.name, session=agreed, count=len(fixed))


@pytest.mark.parametrize("members", range(3, 21))
def test_the_sum_is_exact_to_the_step(members: int) -> None:
    those, bound = parties(members), 50.0
    agreed = session(those)
    rng = np.random.default_rng(members)
    numbers = rng.uniform(-bound, bound, (members, 257))
    weights = rng.integers(1, MAX_PATIENTS, members)
    total = np.zeros(258, np.uint64)
    for row, weight, one in zip(numbers, weights, those, strict=True):
        fixed = encode_contribution(row, float(weight), members=members, bound=bound)
        total += masked(fixed, one, those, agreed)
    opened = opened_sum(total, seeds={one.name: one.seed for one in those}, session=agreed)
    numerators, weight = decode_contribution(opened, members=members, bound=bound)
    assert weight == weights.sum()
    # In fractions, beside which float64 would round.
    step = Fraction(step_of(members=members, bound=bound))
    for integer, column in zip(opened.view(np.int64), numbers.T, strict=False):
        error = int(integer) * step - sum(Fraction(float(one)) for one in column)
        assert abs(error) <= members * step / 2
    np.testing.assert_allclose(numerators, numbers.sum(0), rtol=0, atol=1e-12)


def test_one_seed_short_the_sum_is_noise() -> None:
    those = parties(4)
    agreed = session(those)
    total = sum(masked(np.zeros(64, np.uint64), one, those, agreed) for one in those)
    seeds = {one.name: one.seed for one in those}
    assert not opened_sum(total, seeds=seeds, session=agreed).any()
    del seeds["site-02"]
    assert np.abs(opened_sum(total, seeds=seeds, session=agreed).view(np.int64)).max() > 2**58


@given(
    members=st.integers(3, 64),
    exponent=st.integers(-200, 200),
    mantissa=st.floats(0.5, 1.0),
    signs=st.lists(st.sampled_from([-1.0, 0.3, 1.0]), min_size=64, max_size=64),
)
def test_no_sum_of_numbers_within_the_bound_wraps(
    members: int, exponent: int, mantissa: float, signs: list[float]
) -> None:
    bound = math.ldexp(mantissa, exponent)
    step = step_of(members=members, bound=bound)
    numbers = [sign * bound for sign in signs[:members]]
    total = np.zeros(1, np.uint64)
    for number in numbers:
        total += encode_fixed(np.array([number]), step=step)
    exact = sum(round(number / step) for number in numbers)
    assert abs(exact) < 2**63
    assert int(total.view(np.int64)[0]) == exact
    assert math.frexp(step)[0] == 0.5, "a power of two: dividing by it rounds nothing"


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan, 1e-310])
def test_where_no_step_can_be_there_is_none(bound: float) -> None:
    with pytest.raises(OverflowError):
        step_of(members=3, bound=bound)


@pytest.mark.parametrize(
    ("number", "weight"),
    [(1.01, 5.0), (-1.01, 5.0), (math.nan, 5.0), (math.inf, 5.0), (1.0, 10_001.0), (1.0, math.nan)],
)
def test_a_number_beyond_its_bound_is_not_encoded(number: float, weight: float) -> None:
    with pytest.raises(OverflowError):
        encode_contribution(np.array([0.0, number]), weight, members=3, bound=1.0)
    with pytest.raises(OverflowError):
        encode_fixed(np.array([number * 2.0**70]), step=1e-3)


def test_fixed_point_keeps_signs_and_rounds_to_the_step() -> None:
    values = np.array([-1.5, -0.26, 0.0, 0.26, 7.0])
    assert decode_fixed(encode_fixed(values, step=0.5), step=0.5).tolist() == [
        -1.5,
        -0.5,
        0,
        0.5,
        7,
    ]


def test_the_bound_leaves_room_for_every_patient_and_far_below_what_a_float32_tells() -> None:
    contract = RunContract(name="x", probes=Probes(clip_norm=0.05), anchor=Anchor(clip_norm=3))
    bound = coordinate_bound(contract, "gradients", rows=4)
    assert bound == pytest.approx(10_000 * 0.05 * 2)
    assert step_of(members=20, bound=bound) / 15 < 0.05 * 2.0**-24
    assert coordinate_bound(contract, "local-steps", rows=1) == 30_000


def test_masks_follow_the_published_primitives() -> None:
    """The stream of one pair and of one seed, computed here from the primitives themselves."""
    those = parties(3)
    agreed = session(those)
    one, two = those[:2]
    document = {
        "contract_digest": DIGEST,
        "round": 1,
        "attempt": 1,
        "kind": "gradients",
        "request_digest": REQUEST,
        "participants": ["site-00", "site-01", "site-02"],
        "purpose": "fedstill mask 1",
    }

    def stream(secret: bytes, names: list[str]) -> np.ndarray:
        info = canonical_json({**document, "names": names})
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
        zeros = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(80))
        return np.array(
            [int.from_bytes(zeros[8 * n : 8 * n + 8], "little") for n in range(10)], np.uint64
        )

    secret = two.private_key.exchange(one.private_key.public_key())
    expected = stream(secret, ["site-00", "site-01"])
    arguments = {"offers": [one.offer, two.offer], "session": agreed, "count": 10}
    first = pairwise_mask(one.private_key, name=one.name, **arguments)
    second = pairwise_mask(two.private_key, name=two.name, **arguments)
    assert (first == expected).all(), "the smaller name adds"
    assert not (first + second).any(), "the other subtracts"
    own = own_mask(one.seed, name=one.name, session=agreed, count=10)
    assert (own == stream(one.seed, ["site-00"])).all()


@pytest.mark.parametrize(
    "change",
    [
        {"contract_digest": "00" * 32},
        {"round": 2},
        {"attempt": 2},
        {"kind": "local-steps"},
        {"request_digest": "00" * 32},
        {"participants": ("site-00", "site-01", "site-02", "site-03")},
    ],
)
def test_masks_of_another_session_do_not_cancel(change: dict[str, object]) -> None:
    those = parties(3)
    zeros = np.zeros(4, np.uint64)
    sessions = [session(those), session(those), session(those, **change)]
    total = sum(
        masked(zeros, one, those, agreed) for one, agreed in zip(those, sessions, strict=True)
    )
    seeds = {one.name: one.seed for one in those}
    assert opened_sum(total, seeds=seeds, session=session(those)).any()


def test_an_offer_is_genuine_for_its_attempt_alone() -> None:
    (one, other) = parties(2)
    member = one.signing_key.public_key().public_bytes_raw().hex()
    stranger = other.signing_key.public_key().public_bytes_raw().hex()
    about = {"contract_digest": DIGEST, "round": 1, "attempt": 1}
    assert is_genuine(one.offer, member, **about)
    assert not is_genuine(one.offer, stranger, **about)
    for change in ({"contract_digest": REQUEST}, {"round": 2}, {"attempt": 2}):
        assert not is_genuine(one.offer, member, **about | change)
    for field, value in [("name", "site-09"), ("public_key", other.offer.public_key)]:
        assert not is_genuine(one.offer.model_copy(update={field: value}), member, **about)
    assert not is_genuine(one.offer.model_copy(update={"signature": "0" * 128}), member, **about)


def test_a_key_that_makes_every_secret_the_same_is_refused() -> None:
    those = parties(3)
    degenerate = Offer(name="site-01", public_key="00" * 32, signature="0" * 128)
    with pytest.raises(ValueError, match="shared key"):
        pairwise_mask(
            those[0].private_key,
            name="site-00",
            offers=[those[0].offer, degenerate],
            session=session(those),
            count=1,
        )


def chi_square(numbers: np.ndarray) -> float:
    """Of the bytes against a uniform distribution; mean 255, standard deviation 22.6."""
    counts = np.bincount(np.frombuffer(numbers.tobytes(), np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_a_masked_summary_looks_uniform_and_an_unmasked_one_does_not() -> None:
    those = parties(3)
    agreed = session(those)
    numbers = np.random.default_rng(0).normal(0, 1e-3, 40_000)
    fixed = encode_contribution(numbers, 20.0, members=3, bound=500.0)
    threshold = 255 + 7 * math.sqrt(2 * 255)  # one in 10^9
    assert chi_square(masked(fixed, those[0], those, agreed)) < threshold
    # What each of the two kinds of masks does alone, and what is there without.
    own = own_mask(those[0].seed, name="site-00", session=agreed, count=len(fixed))
    assert chi_square(fixed + own) < threshold
    assert chi_square(fixed) > 100 * threshold
    # Position by position too: the highest byte tells a sign first.
    highest = masked(fixed, those[1], those, agreed).view(np.uint8).reshape(-1, 8)[:, 7]
    assert chi_square(highest) < threshold
