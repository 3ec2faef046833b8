import numpy as np
import pytest

from aggregator.admission import Rejected, admit, admit_opening, admit_presence
from shared.contract import RunContract
from shared.messages import (
    Message,
    OpeningHeader,
    OpenQueryHeader,
    ProbeHeader,
    RefusalCode,
    StatusHeader,
    SummaryHeader,
    encode,
    payload_digest,
    probe_batch,
    refusal,
)

CONTRACT = RunContract(name="ct")
WEIGHTS = np.zeros((2, 3), np.float32)
REQUEST = probe_batch(
    contract=CONTRACT, round=2, kind="gradients", network="student", weights=WEIGHTS
)
DIGEST = payload_digest(encode(REQUEST))
GOOD = np.full((2, 3), 0.01, np.float32)


def summary(values: np.ndarray = GOOD, **changed: object) -> bytes:
    fields: dict[str, object] = {
        "contract_digest": CONTRACT.digest(),
        "request_digest": DIGEST,
        "round": 2,
        "kind": "gradients",
        "site": "a",
        "patients_at_least": 10,
        "seconds": 1.0,
        **changed,
    }
    header = SummaryHeader.model_validate(fields)
    return encode(Message(header=header, arrays={"values": values}))


def checked(payload: bytes) -> np.ndarray:
    assert isinstance(REQUEST.header, ProbeHeader)
    return admit(
        payload, site="a", request=REQUEST.header, request_digest=DIGEST, weights=WEIGHTS
    ).values


def test_an_honest_answer_is_admitted() -> None:
    np.testing.assert_array_equal(checked(summary()), GOOD)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"garbage", "not a message"),
        (encode(REQUEST), "in place of summary"),
        (summary(site="b"), "site is not"),
        (summary(round=1), "round is not"),
        (summary(kind="local-steps"), "kind is not"),
        (summary(contract_digest="0" * 64), "contract_digest is not"),
        (summary(request_digest="0" * 64), "request_digest is not"),
        (summary(patients_at_least=1), "fewer patients"),
        (summary(GOOD[:1]), "shape"),
        (summary(GOOD * np.float32(np.nan)), "not finite"),
        (summary(GOOD * np.float32(np.inf)), "not finite"),
        (summary(GOOD * np.float32(1e30)), "clipping norm"),
        (summary(GOOD * 10), "clipping norm"),
    ],
)
def test_a_bad_answer_is_rejected_with_its_reason(payload: bytes, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        checked(payload)


def test_a_refusal_keeps_its_code_and_incident() -> None:
    payload = encode(refusal(site="a", code=RefusalCode.POLICY, incident="0123456789ab"))
    with pytest.raises(Rejected, match=r"refused: policy .*0123456789ab"):
        checked(payload)


NOISED = RunContract.model_validate(
    {
        "name": "ct",
        "anchor": {"descent": "patient"},
        "privacy": {"epsilon": 3, "sketch": 2, "patients": 7},
        "probes": {"clip_norm": 0.01},
    }
)


@pytest.mark.parametrize(
    ("granularity", "shape", "told", "said"),
    [
        ("cohort", (2, 2), 5, None),
        ("cohort", (2, 2), 10, "another number"),  # it would count for more
        ("cohort", (2, 3), 5, "shape"),
        ("patient", (7, 2, 2), 5, None),
        ("patient", (6, 2, 2), 5, "as many patients"),
        ("patient", (8, 2, 2), 5, "as many patients"),
        ("patient", (7, 2, 2), 10, "another number"),
    ],
)
def test_noised_answers_tell_no_number_of_patients(
    granularity: str, shape: tuple[int, ...], told: int, said: str | None
) -> None:
    contract = NOISED.model_copy(update={"granularity": granularity})
    asked = probe_batch(
        contract=contract, round=2, kind="gradients", network="student", weights=WEIGHTS
    )
    assert isinstance(asked.header, ProbeHeader)
    values = np.full(shape, 0.02, np.float32)  # longer than a clear answer may be
    payload = summary(values, contract_digest=contract.digest(), patients_at_least=told)

    def admitted() -> np.ndarray:
        assert isinstance(asked.header, ProbeHeader)
        return admit(
            payload, site="a", request=asked.header, request_digest=DIGEST, weights=WEIGHTS
        ).values

    if said is None:
        np.testing.assert_array_equal(admitted(), values)
    else:
        with pytest.raises(Rejected, match=said):
            admitted()


BY_PATIENT = RunContract(name="ct", granularity="patient", min_patients=3)
ASKED_BY_PATIENT = probe_batch(
    contract=BY_PATIENT, round=2, kind="gradients", network="student", weights=WEIGHTS
)
BLOCKS = np.full((6, 2, 3), 0.01, np.float32)


def checked_by_patient(
    values: np.ndarray, *, patients_at_least: int = 5, kind: str = "gradients"
) -> np.ndarray:
    request = ASKED_BY_PATIENT.header.model_copy(update={"kind": kind})
    assert isinstance(request, ProbeHeader)
    payload = summary(
        values,
        contract_digest=BY_PATIENT.digest(),
        patients_at_least=patients_at_least,
        kind=kind,
    )
    return admit(payload, site="a", request=request, request_digest=DIGEST, weights=WEIGHTS).values


def test_a_block_a_patient_is_admitted_where_the_contract_says_so() -> None:
    np.testing.assert_array_equal(checked_by_patient(BLOCKS), BLOCKS)
    np.testing.assert_array_equal(checked_by_patient(GOOD, kind="local-steps"), GOOD)


@pytest.mark.parametrize(
    ("values", "patients_at_least", "said"),
    [
        (BLOCKS[:2], 1, "as many patients"),
        (BLOCKS, 1, "another number"),
        (BLOCKS, 10, "another number"),
        (BLOCKS[:, :1], 5, "shape"),
        (BLOCKS[..., :2], 5, "shape"),
        (BLOCKS[0], 5, "shape"),
        (BLOCKS[:, None], 5, "shape"),
        (np.float32(1).reshape(()), 5, "shape"),
        (np.where(np.arange(6)[:, None, None] == 4, BLOCKS * 100, BLOCKS), 5, "clipping norm"),
        (np.where(np.arange(6)[:, None, None] == 4, BLOCKS * np.nan, BLOCKS), 5, "not finite"),
    ],
)
def test_blocks_that_were_not_asked_for_are_rejected(
    values: np.ndarray, patients_at_least: int, said: str
) -> None:
    with pytest.raises(Rejected, match=said):
        checked_by_patient(values, patients_at_least=patients_at_least)


def test_the_clip_bounds_each_patient_and_not_their_sum() -> None:
    limit = BY_PATIENT.probes.clip_norm
    blocks = np.zeros((60, 2, 3), np.float32)
    blocks[..., 0] = limit
    assert checked_by_patient(blocks, patients_at_least=50).shape == (60, 2, 3)


def test_a_block_a_patient_is_rejected_where_the_contract_wants_a_mean() -> None:
    with pytest.raises(Rejected, match="shape"):
        checked(summary(BLOCKS))


OPEN = OpenQueryHeader(contract_digest="ab" * 32, round=2, attempt=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"site": "b"}, "site"),
        ({"contract_digest": "cd" * 32}, "contract_digest"),
        ({"round": 1}, "round"),
        ({"attempt": 2}, "attempt"),
    ],
)
def test_an_opening_is_of_this_site_and_attempt(change: dict[str, object], named: str) -> None:
    about = OPEN.model_dump(exclude={"type"})
    right = encode(Message(header=OpeningHeader(site="a", seed="07" * 32, **about)))
    assert admit_opening(right, site="a", query=OPEN) == b"\x07" * 32
    header = OpeningHeader.model_validate({"site": "a", "seed": "07" * 32, **about, **change})
    with pytest.raises(Rejected, match=f"{named} is not that of the request"):
        admit_opening(encode(Message(header=header)), site="a", query=OPEN)


def test_a_roll_call_is_answered_by_the_site_itself() -> None:
    status = StatusHeader(
        site="a", version="1", device="cpu", ready=True, patients_at_least=5, answered=0
    )
    admit_presence(encode(Message(header=status)), site="a")
    with pytest.raises(Rejected, match="site is not"):
        admit_presence(encode(Message(header=status)), site="b")
    with pytest.raises(Rejected, match="status in place of opening"):
        admit_opening(encode(Message(header=status)), site="a", query=OPEN)
    refused = encode(refusal(site="a", code=RefusalCode.INTERNAL, incident="0" * 12))
    with pytest.raises(Rejected, match="refused: internal"):
        admit_presence(refused, site="a")
