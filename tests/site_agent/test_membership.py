import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.contract import Anchor, Member, Probes, RunContract
from shared.masking import (
    Session,
    coordinate_bound,
    decode_contribution,
    is_genuine,
    opened_sum,
    sign_offer,
)
from shared.messages import KeyQueryHeader, OpenQueryHeader, ProbeHeader, RefusalCode, decode
from site_agent.incidents import RefusedError
from site_agent.membership import Membership

NAMES = ("site-a", "site-b", "site-c", "site-d")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 5 + b"--") for name in NAMES}
PUBLIC = {name: key.public_key().public_bytes_raw().hex() for name, key in KEYS.items()}
CONTRACT = RunContract(
    name="ct",
    granularity="federation",
    anchor=Anchor(rounds=2),
    probes=Probes(requests=2),
    members=tuple(Member(name=name, signing_key=PUBLIC[name]) for name in NAMES),
)
DIGEST, REQUEST = CONTRACT.digest(), "cd" * 32


@pytest.fixture
def site(tmp_path):
    """``site(name)``: a member with a folder of its own."""

    def make(name="site-a", *, peers=()):
        return Membership(tmp_path / name, name, KEYS[name], peers)

    return make


def key_query(*, contract=CONTRACT, round=1, attempt=1):
    return KeyQueryHeader(
        contract=contract, contract_digest=contract.digest(), round=round, attempt=attempt
    )


def open_query(*, round=1, attempt=1):
    return OpenQueryHeader(contract_digest=DIGEST, round=round, attempt=attempt)


def offer_of(member, **about):
    return decode(member.offer(key_query(**about))).header.offer


def request(offers, *, contract=CONTRACT, round=1, attempt=1):
    return ProbeHeader(
        contract=contract,
        contract_digest=contract.digest(),
        round=round,
        attempt=attempt,
        kind="gradients",
        network="student",
        offers=tuple(offers),
    )


def code(step, *arguments, **keywords):
    with pytest.raises(RefusedError) as refused:
        step(*arguments, **keywords)
    return refused.value.code


def stored(member, round=1):
    return json.loads((member.folder / DIGEST / f"{round:05d}.attempt.json").read_text())


def answered(member, asked, values=(1.0, -2.0), weight=5.0):
    """The member's masked numbers, its answer kept."""
    member.refuse_attempt(asked)
    masked = member.mask(asked, REQUEST, np.array(values), weight, rows=1)
    member.answered(asked)
    return masked


def seed_of(member, **about):
    return bytes.fromhex(decode(member.opening(open_query(**about))).header.seed)


def test_members_that_follow_the_protocol_add_up(site):
    members = [site(name) for name in NAMES]
    asked = request(offer_of(member) for member in members)
    total = sum(
        answered(member, asked, values=(number, -2.0 * number), weight=5.0 * number)
        for number, member in enumerate(members, start=1)
    )
    seeds = {member.name: seed_of(member) for member in members}
    opened = opened_sum(total, seeds=seeds, session=Session.of(asked, REQUEST))
    bound = coordinate_bound(CONTRACT, "gradients", rows=1)
    numerators, weight = decode_contribution(opened, members=4, bound=bound)
    assert (numerators.tolist(), weight) == ([10.0, -20.0], 50.0)


def test_every_answer_is_the_same_to_the_byte_also_after_a_restart(site):
    first = site().offer(key_query())
    assert site().offer(key_query()) == first
    asked = request([offer_of(site(name)) for name in NAMES])
    answered(site(), asked)
    assert site().offer(key_query()) == first, "also after it has answered"
    opening = site().opening(open_query())
    assert site().opening(open_query()) == opening
    assert site().offer(key_query()) == first, "and after it has opened"


def test_an_offer_is_signed_and_every_attempt_and_round_has_a_fresh_one(site):
    offers = [offer_of(site(), round=r, attempt=a) for r, a in [(1, 1), (1, 2), (2, 1), (1, 3)]]
    assert len({offer.public_key for offer in offers}) == 4
    about = {"contract_digest": DIGEST, "round": 1, "attempt": 2}
    assert is_genuine(offers[1], PUBLIC["site-a"], **about)


def test_keys_and_seeds_are_kept_private_and_no_longer_than_they_are_needed(site):
    member = site()
    asked = request([offer_of(site(name)) for name in NAMES])
    file = member.folder / DIGEST / "00001.attempt.json"
    assert file.stat().st_mode & 0o777 == 0o600
    private_key = stored(member)["private_key"]
    member.refuse_attempt(asked)
    member.mask(asked, REQUEST, np.zeros(2), 5.0, rows=1)
    # Until the answer is kept the key stays: a crash in between computes the answer anew.
    assert stored(member)["private_key"] == private_key
    again = member.mask(asked, REQUEST, np.zeros(2), 5.0, rows=1)
    assert again.shape == (3,)
    member.answered(asked)
    seed = stored(member)["seed"]
    assert private_key not in file.read_text()
    member.offer(key_query(attempt=2))
    assert seed not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_leaves_is_on_the_disk_before_it_does(site, monkeypatch):
    def fail(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    member = site()
    asked = request([offer_of(site(name)) for name in NAMES])
    monkeypatch.setattr("site_agent.membership.write_durably", fail)
    with pytest.raises(OSError, match="No space"):
        member.offer(key_query(round=2))
    with pytest.raises(OSError, match="No space"):
        member.mask(asked, REQUEST, np.zeros(2), 5.0, rows=1)
    monkeypatch.undo()
    answered(member, asked)
    monkeypatch.setattr("site_agent.membership.write_durably", fail)
    with pytest.raises(OSError, match="No space"):
        member.opening(open_query())


def test_an_earlier_attempt_is_over_once_a_later_one_has_begun(site):
    member = site()
    first = request([offer_of(site(name)) for name in NAMES])
    answered(member, first)
    member.offer(key_query(attempt=2))
    assert code(member.offer, key_query(attempt=1)) is RefusalCode.ROUND_REUSED
    assert code(member.refuse_attempt, first) is RefusalCode.ROUND_REUSED
    assert code(member.opening, open_query(attempt=1)) is RefusalCode.ROUND_REUSED


def test_a_round_is_opened_once_in_one_attempt(site):
    member = site()
    answered(member, request([offer_of(site(name)) for name in NAMES]))
    member.opening(open_query())
    for attempt in (2, 3):
        assert code(member.offer, key_query(attempt=attempt)) is RefusalCode.ROUND_REUSED
        assert code(member.opening, open_query(attempt=attempt)) is RefusalCode.BAD_MEMBERS
    assert offer_of(member, round=2), "another round is another matter"


def test_nothing_is_opened_that_was_not_answered(site):
    member = site()
    assert code(member.opening, open_query()) is RefusalCode.BAD_MEMBERS
    asked = request([offer_of(site(name)) for name in NAMES])
    assert code(member.opening, open_query()) is RefusalCode.BAD_MEMBERS
    member.mask(asked, REQUEST, np.zeros(2), 5.0, rows=1)  # and the answer is not kept yet
    assert code(member.opening, open_query()) is RefusalCode.BAD_MEMBERS


def test_a_key_is_never_used_for_a_second_answer(site):
    asked = request([offer_of(site(name)) for name in NAMES])
    answered(site(), asked)
    with pytest.raises(RuntimeError, match="answered"):
        site().mask(asked, "ef" * 32, np.zeros(2), 5.0, rows=1)


def forged(offer, **changes):
    return offer.model_copy(update=changes)


def test_offers_that_are_not_exactly_those_of_members_are_refused(site):
    member = site()
    a, b, c, d = (offer_of(site(name)) for name in NAMES)
    strange = Ed25519PrivateKey.generate()
    public_key = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    about = {"contract_digest": DIGEST, "round": 1, "attempt": 1, "public_key": public_key}
    other_round = offer_of(site("site-b"), round=2)
    later = offer_of(site("site-c"), attempt=2)
    wrong = {
        "too few": [a, b],
        "none": [],
        "one twice": [a, b, b],
        "its own is missing": [b, c, d],
        "its own is altered": [forged(a, public_key=b.public_key), b, c],
        "its own of another key": [sign_offer(KEYS["site-a"], name="site-a", **about), b, c],
        "swapped keys": [
            a,
            forged(b, public_key=c.public_key),
            forged(c, public_key=b.public_key),
        ],
        "another name": [a, b, forged(c, name="site-d")],
        "of no member": [a, b, sign_offer(strange, name="site-x", **about)],
        "signed by a stranger": [a, b, sign_offer(strange, name="site-c", **about)],
        "of another round": [a, other_round, c],
        "of another attempt": [a, b, later],
        "no signature": [a, b, forged(c, signature="0" * 128)],
    }
    for name, offers in wrong.items():
        assert code(member.refuse_attempt, request(offers)) is RefusalCode.BAD_MEMBERS, name
    member.refuse_attempt(request([c, a, b]))  # the control: three that are right, in any order


def test_a_degenerate_key_of_a_member_is_refused(site):
    about = {"contract_digest": DIGEST, "round": 1, "attempt": 1, "public_key": "00" * 32}
    offers = [offer_of(site(name)) for name in ("site-a", "site-b")]
    asked = request([*offers, sign_offer(KEYS["site-c"], name="site-c", **about)])
    member = site()
    member.refuse_attempt(asked)
    assert code(member.mask, asked, REQUEST, np.zeros(2), 5.0, rows=1) is RefusalCode.BAD_MEMBERS


def with_members(*members):
    return CONTRACT.model_copy(update={"members": members})


def test_a_contract_without_this_site_or_with_too_few_members_is_refused(site):
    a, b, c, d = CONTRACT.members
    wrong = [
        with_members(),
        with_members(a, b),
        with_members(b, c, d),
        with_members(a.model_copy(update={"signing_key": "11" * 32}), b, c),
        CONTRACT.model_copy(update={"granularity": "cohort", "members": ()}),
    ]
    for contract in wrong:
        assert code(site().offer, key_query(contract=contract)) is RefusalCode.BAD_MEMBERS
        if contract.granularity == "federation":
            asked = request([], contract=contract)
            assert code(site().refuse_attempt, asked) is RefusalCode.BAD_MEMBERS


def test_pinned_peers_are_the_only_ones_it_adds_up_with(site):
    pinned = [PUBLIC[name] for name in ("site-b", "site-c")]
    strict = site(peers=pinned)
    assert code(strict.offer, key_query()) is RefusalCode.POLICY, "site-d is not pinned"
    three = with_members(*CONTRACT.members[:3])
    assert offer_of(strict, contract=three)
    assert offer_of(site(peers=[*pinned, PUBLIC["site-d"]]))
    # Pinned after the key was offered: the request is refused then.
    asked = request([offer_of(site(name)) for name in NAMES])
    assert code(strict.refuse_attempt, asked) is RefusalCode.POLICY


def test_a_summary_without_a_key_asked_before_is_refused(site):
    offers = [offer_of(site(name)) for name in NAMES]
    fresh = Membership(site().folder.with_name("empty"), "site-a", KEYS["site-a"], ())
    assert code(fresh.refuse_attempt, request(offers)) is RefusalCode.BAD_MEMBERS
    later = request(offers, attempt=2)
    assert code(site().refuse_attempt, later) is RefusalCode.BAD_MEMBERS


def test_a_damaged_file_stops_the_attempt_and_is_not_quoted(site):
    member = site()
    member.offer(key_query())
    (member.folder / DIGEST / "00001.attempt.json").write_text('{"seed": "CANARY"}')
    with pytest.raises(RuntimeError, match="damaged") as raised:
        member.offer(key_query(attempt=2))
    assert "CANARY" not in str(raised.value)
