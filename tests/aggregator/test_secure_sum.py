import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open
from safetensors.numpy import save_file

from aggregator.secure_sum import SecureSum, SecureSumError, Spent, Summed
from shared.contract import Anchor, Member, Probes, RunContract
from shared.masking import decode_contribution, encode_contribution
from shared.messages import (
    KeyQueryHeader,
    Message,
    OpeningHeader,
    OpenQueryHeader,
    ProbeHeader,
    RefusalCode,
    StatusHeader,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
    probe_batch,
    refusal,
)
from site_agent.incidents import RefusedError
from site_agent.membership import Membership

NAMES = ("a", "b", "c", "d")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 32) for name in NAMES}
CONTRACT = RunContract(
    name="ct",
    granularity="federation",
    anchor=Anchor(rounds=2),
    probes=Probes(requests=2, clip_norm=10.0),
    members=tuple(
        Member(name=name, signing_key=key.public_key().public_bytes_raw().hex())
        for name, key in KEYS.items()
    ),
)
WEIGHTS = np.zeros((2, 5), np.float32)
STEPS = {"key-query": "keys", "probe-batch": "masks", "status-query": "roll", "open-query": "open"}


class Site:
    """A member that follows the protocol, as the worker does, with numbers of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        self.member = Membership(self.folder, name, KEYS[name], ())
        number = NAMES.index(name) + 1
        self.mean = np.full((2, 5), number, np.float64) * [1, -1, 0.5, 0, 0.25]
        self.weight = 5.0 * number

    def answer(self, payload: bytes) -> bytes:
        try:
            return self._answer(decode(payload), payload_digest(payload))
        except RefusedError as error:
            return encode(refusal(site=self.name, code=error.code, incident="0" * 12))

    def _answer(self, message: Message, digest: str) -> bytes:
        header = message.header
        if isinstance(header, KeyQueryHeader):
            return self.member.offer(header)
        if isinstance(header, OpenQueryHeader):
            return self.member.opening(header)
        if isinstance(header, ProbeHeader):
            return self._summary(header, digest)
        status = StatusHeader(
            site=self.name, version="1", device="cpu", ready=True, patients_at_least=5, answered=0
        )
        return encode(Message(header=status))

    def _summary(self, header: ProbeHeader, digest: str) -> bytes:
        self.member.refuse_attempt(header)
        kept = self.folder / f"{header.round}-{header.attempt}"
        if not kept.exists():
            masked = self.member.mask(
                header, digest, self.weight * self.mean.ravel(), self.weight, rows=2
            )
            kept.write_bytes(self._sealed(header, digest, masked))
        answer = kept.read_bytes()
        earlier = decode(answer).header
        assert isinstance(earlier, SummaryHeader)
        if earlier.request_digest != digest:
            raise RefusedError(RefusalCode.ROUND_REUSED, "another request")
        self.member.answered(header)
        return answer

    def _sealed(self, header: ProbeHeader, digest: str, masked: np.ndarray) -> bytes:
        summary = SummaryHeader(
            contract_digest=header.contract_digest,
            request_digest=digest,
            round=header.round,
            attempt=header.attempt,
            kind=header.kind,
            site=self.name,
            patients_at_least=5,
            seconds=0.5,
        )
        return encode(Message(header=summary, arrays={"masked": masked}))


class Sites:
    """An exchange; who is down in which step of which attempt is said beforehand."""

    def __init__(self, folder: Path, *, down: Mapping[tuple[str, int], str] | None = None) -> None:
        self.sites = {name: Site(folder, name) for name in NAMES}
        self.down = dict(down or {})
        self.asked: list[tuple[str, int, str]] = []
        self.attempt = 1

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        header = decode(payload).header
        self.attempt = getattr(header, "attempt", self.attempt)
        step = STEPS[header.type]
        self.asked.append((step, self.attempt, "".join(sites)))
        down = self.down.get((step, self.attempt), "")
        return {site: self.sites[site].answer(payload) for site in sites if site not in down}


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, done: int, message: str) -> None:
        self.lines.append(message)


def a_round(
    sites: Any, run: Path, *, round: int = 1, tell: Told | None = None, weights: Any = WEIGHTS
) -> Summed:
    request = probe_batch(
        contract=CONTRACT, round=round, kind="gradients", network="student", weights=weights
    )
    file = run / "secure-sum.safetensors"
    return SecureSum(request, exchange=sites, file=file, tell=tell or Told()).result()


def is_sum_of(summed: Summed, names: str, folder: Path) -> bool:
    those = [Site(folder, name) for name in names]
    weight = sum(one.weight for one in those)
    mean = sum(one.weight * one.mean for one in those) / weight
    same = np.allclose(summed.mean, mean, rtol=1e-6, atol=1e-9)
    return same and summed.weight == weight and summed.sites == tuple(names)


def test_a_round_tells_the_sum_of_all(tmp_path: Path) -> None:
    sites, told = Sites(tmp_path), Told()
    summed = a_round(sites, tmp_path, tell=told)
    assert is_sum_of(summed, "abcd", tmp_path)
    assert summed.mean.dtype == np.float32
    assert summed.seconds == 0.5
    assert sites.asked == [(step, 1, "abcd") for step in ("keys", "masks", "roll", "open")]
    assert told.lines == ["the sum of 4 sites banked"]


@pytest.mark.parametrize(
    ("step", "asked"),
    [
        (
            "keys",
            [("keys", 1, "abcd"), ("masks", 1, "abd"), ("roll", 1, "abd"), ("open", 1, "abd")],
        ),
        (
            "masks",
            [("keys", 1, "abcd"), ("masks", 1, "abcd")]
            + [(step, 2, "abd") for step in ("keys", "masks", "roll", "open")],
        ),
        (
            "roll",
            [("keys", 1, "abcd"), ("masks", 1, "abcd"), ("roll", 1, "abcd")]
            + [(step, 2, "abd") for step in ("keys", "masks", "roll", "open")],
        ),
    ],
)
def test_who_drops_out_before_the_openings_is_left_out(
    tmp_path: Path, step: str, asked: list[tuple[str, int, str]]
) -> None:
    sites, told = Sites(tmp_path, down={(step, 1): "c"}), Told()
    assert is_sum_of(a_round(sites, tmp_path, tell=told), "abd", tmp_path)
    assert sites.asked == asked
    assert told.lines[-1] == "the sum of 3 sites banked (c: no answer)"
    if step != "keys":
        assert told.lines[0] == "attempt 1 given up (c: no answer): once more without"
    # In the next round it is asked again.
    sites.down.clear()
    assert is_sum_of(a_round(sites, tmp_path, round=2), "abcd", tmp_path)


def test_who_drops_out_of_the_openings_is_waited_for(tmp_path: Path) -> None:
    sites = Sites(tmp_path, down={("open", 1): "c"})
    for _ in range(2):
        with pytest.raises(
            SecureSumError, match=r"round 1: .* then c: no answer; .* when the site"
        ):
            a_round(sites, tmp_path)
    assert sites.asked[-1] == ("open", 1, "c"), "the others have opened"
    sites.down.clear()
    assert is_sum_of(a_round(sites, tmp_path), "abcd", tmp_path)
    # Nor would the others take part in a sum without it.
    query = KeyQueryHeader(contract=CONTRACT, contract_digest=CONTRACT.digest(), round=1, attempt=2)
    refused = decode(sites.sites["a"].answer(encode(Message(header=query)))).header
    assert refused.type == "refusal"


def test_several_drop_outs_and_attempts_without_end(tmp_path: Path) -> None:
    down = {("masks", 1): "a", ("masks", 2): "b"}
    with pytest.raises(SecureSumError, match=r"2 sites remain, and a secure sum needs 3 \(a: no"):
        a_round(Sites(tmp_path, down=down), tmp_path)
    # Launched again with b back: attempt 2, where it was.
    sites = Sites(tmp_path)
    assert is_sum_of(a_round(sites, tmp_path), "bcd", tmp_path)
    assert {attempt for _, attempt, _ in sites.asked} == {2}


def test_attempts_that_are_spent_are_said_to_be(tmp_path: Path) -> None:
    standing = {
        "contract_digest": CONTRACT.digest(),
        "round": 1,
        "attempt": 3,
        "sites": list(NAMES),
    }
    save_file(
        {"total": np.zeros(0, np.uint64)},
        tmp_path / "secure-sum.safetensors",
        {"standing": json.dumps(standing)},
    )
    sites = Sites(tmp_path, down={("masks", 3): "d"})
    with pytest.raises(SecureSumError, match=r"all 3 attempts are spent \(d: no answer\)"):
        a_round(sites, tmp_path)
    sites.down.clear()
    assert is_sum_of(a_round(sites, tmp_path), "abcd", tmp_path), "the third one goes on"


def test_a_refusal_is_named_with_its_code(tmp_path: Path) -> None:
    class Refusing(Sites):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            answers = dict(super().__call__(payload, round, sites))
            if "b" in answers and decode(payload).header.type == "key-query":
                answers["b"] = encode(refusal(site="b", code=RefusalCode.POLICY, incident="1" * 12))
            return answers

    told = Told()
    assert is_sum_of(a_round(Refusing(tmp_path), tmp_path, tell=told), "acd", tmp_path)
    assert told.lines == ["the sum of 3 sites banked (b: refused: policy (incident 111111111111))"]


class Killed(Sites):
    """The aggregator is killed around its n-th exchange: before the sites get it, or after."""

    def __init__(self, folder: Path, at: int, *, after: bool, **more: Any) -> None:
        super().__init__(folder, **more)
        self.left, self.after = at, after

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        answers = super().__call__(payload, round, sites)
        if self.left == 0:
            raise KeyboardInterrupt
        return answers


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("down", "names", "at"),
    [({}, "abcd", at) for at in range(1, 5)]
    + [({("masks", 1): "c"}, "abd", at) for at in range(3, 7)],
)
def test_a_killed_aggregator_goes_on_and_ends_with_the_same_sum(
    tmp_path: Path, down: dict[tuple[str, int], str], names: str, at: int, after: bool
) -> None:
    with pytest.raises(KeyboardInterrupt):
        a_round(Killed(tmp_path, at, after=after, down=down), tmp_path)
    summed = a_round(Sites(tmp_path), tmp_path)
    assert is_sum_of(summed, names, tmp_path)
    released = dict.fromkeys(names, 2)
    assert {name: spent.releases for name, spent in summed.spent.items() if name in names} == (
        released if not down else dict.fromkeys(names, 4)
    )


def test_a_killed_aggregator_and_a_site_that_is_gone_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        a_round(Killed(tmp_path, 2, after=True), tmp_path)
    told = Told()
    # Those that answered have answered a request with all four offers: a second attempt.
    sites = Sites(tmp_path, down={("keys", 1): "c"})
    assert is_sum_of(a_round(sites, tmp_path, tell=told), "abd", tmp_path)
    assert sites.asked[1] == ("keys", 2, "abd")
    assert "attempt 1 given up (c: no answer)" in told.lines[0]


def test_a_killed_aggregator_and_a_site_that_lost_its_memory(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        a_round(Killed(tmp_path, 2, after=True), tmp_path)
    (tmp_path / "c" / CONTRACT.digest() / "00001.attempt.json").unlink()
    (tmp_path / "c" / "1-1").unlink()
    told = Told()
    assert is_sum_of(a_round(Sites(tmp_path), tmp_path, tell=told), "abcd", tmp_path)
    assert told.lines[0] == "attempt 1 given up (a key has changed): once more without"


def test_a_sum_that_is_open_is_asked_of_nobody_again(tmp_path: Path) -> None:
    first = a_round(Sites(tmp_path), tmp_path)
    again = Sites(tmp_path)
    second = a_round(again, tmp_path)
    assert again.asked == []
    assert (first.mean == second.mean).all()
    assert (first.weight, first.spent) == (second.weight, second.spent)


class Altered(Sites):
    """Site c's masked answer, header or numbers, is not as it should be."""

    def __init__(self, folder: Path, *, array: Any = None, **header: Any) -> None:
        super().__init__(folder)
        self.array, self.header = array, header

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        answers = dict(super().__call__(payload, round, sites))
        if decode(payload).header.type == "probe-batch" and "c" in answers:
            message = decode(answers["c"])
            arrays = message.arrays if self.array is None else self.array
            header = message.header.model_copy(update=self.header)
            answers["c"] = encode(Message(header=header, arrays=arrays))
        return answers


@pytest.mark.parametrize(
    ("altered", "named"),
    [
        ({"round": 2}, "round"),
        ({"attempt": 2}, "attempt"),
        ({"kind": "local-steps"}, "kind"),
        ({"site": "a"}, "site"),
        ({"request_digest": "0" * 64}, "request_digest"),
        ({"contract_digest": "0" * 64}, "contract_digest"),
        ({"patients_at_least": 1}, "fewer patients"),
        ({"array": {"masked": np.zeros(10, np.uint64)}}, "not as many numbers"),
        ({"array": {"masked": np.zeros((1, 11), np.uint64)}}, "not as many numbers"),
        ({"array": {"values": np.zeros(11, np.float32)}}, "not one array"),
        ({"array": {}}, "not one array"),
    ],
)
def test_a_masked_answer_that_does_not_fit_counts_as_a_drop_out(
    tmp_path: Path, altered: dict[str, Any], named: str
) -> None:
    told = Told()
    assert is_sum_of(a_round(Altered(tmp_path, **altered), tmp_path, tell=told), "abd", tmp_path)
    assert f"attempt 1 given up (c: {named}" in told.lines[0]


def test_an_offer_that_another_signed_is_not_passed_on(tmp_path: Path) -> None:
    class Swapped(Sites):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            answers = dict(super().__call__(payload, round, sites))
            if decode(payload).header.type == "key-query":
                answers["c"] = answers["d"]
            return answers

    told = Told()
    assert is_sum_of(a_round(Swapped(tmp_path), tmp_path, tell=told), "abd", tmp_path)
    assert told.lines == ["the sum of 3 sites banked (c: an offer that this site has not signed)"]


def spoiled(sites: Sites, change: Any) -> Sites:
    sites.sites["b"].mean, sites.sites["b"].weight = change(sites.sites["b"])
    return sites


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site.mean * 1e3, site.weight),
        lambda site: (site.mean * 0, -40.0),
    ],
    ids=["longer than any", "a negative weight"],
)
def test_a_sum_that_honest_sites_cannot_have_stops_the_run(tmp_path: Path, change: Any) -> None:
    with pytest.raises(SecureSumError, match="none of honest contributions"):
        a_round(spoiled(Sites(tmp_path), change), tmp_path)


def test_a_wrong_seed_stops_the_run(tmp_path: Path) -> None:
    class Lying(Sites):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            answers = dict(super().__call__(payload, round, sites))
            header = decode(payload).header
            if isinstance(header, OpenQueryHeader):
                about = header.model_dump(exclude={"type"})
                lie = OpeningHeader(site="b", seed="00" * 32, **about)
                answers["b"] = encode(Message(header=lie))
            return answers

    with pytest.raises(SecureSumError, match="none of honest contributions"):
        a_round(Lying(tmp_path), tmp_path)


def test_what_a_round_cost_is_counted_over_attempts_and_processes(tmp_path: Path) -> None:
    plain = a_round(Sites(tmp_path / "plain"), tmp_path / "plain").spent
    assert {spent.releases for spent in plain.values()} == {2}

    up, down = Counter[str](), Counter[str]()

    class Counting(Sites):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            answers = super().__call__(payload, round, sites)
            up.update({site: len(answer) for site, answer in answers.items()})
            down.update({site: len(payload) for site in answers})
            return answers

    sites = Counting(tmp_path, down={("masks", 1): "c"})
    spent = a_round(sites, tmp_path).spent
    assert spent["a"] == Spent(releases=4, bytes_up=up["a"], bytes_down=down["a"])
    assert spent["c"] == Spent(releases=0, bytes_up=up["c"], bytes_down=down["c"])
    assert spent["a"].bytes_up > plain["a"].bytes_up


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "secure-sum.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(SecureSumError, match=r"secure-sum\.safetensors cannot be read"):
        a_round(Sites(tmp_path), tmp_path)


def test_the_file_of_a_round_holds_no_answer_of_one_site(tmp_path: Path) -> None:
    """Only their total, which is as uniform as each is until it is open."""
    with pytest.raises(SecureSumError):
        a_round(Sites(tmp_path, down={("open", 1): "abcd"}), tmp_path)
    with safe_open(tmp_path / "secure-sum.safetensors", framework="np") as file:
        assert list(file.keys()) == ["total"]
        total = file.get_tensor("total")
    numbers, weight = decode_contribution(total, members=4, bound=1e5)
    honest = encode_contribution(numbers * 0, 50.0, members=4, bound=1e5)
    assert weight != 50.0
    assert (total != honest).all()
