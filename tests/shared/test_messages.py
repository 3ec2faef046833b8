import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contract import RunContract
from shared.messages import (
    PATIENT_BUCKETS,
    Message,
    MessageError,
    ProbeHeader,
    RefusalCode,
    SummaryHeader,
    decode,
    encode,
    patient_bucket,
    probe_batch,
    refusal,
    values_shape,
)


def request() -> Message:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    return probe_batch(
        contract=RunContract(name="ct"),
        round=2,
        kind="gradients",
        network="student",
        weights=weights,
    )


def raw(header: bytes, tensors: dict[str, object], data: bytes) -> bytes:
    """A safetensors file put together by hand, from the format's specification."""
    table = {"__metadata__": {"fedstill": header.decode()}, **tensors}
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_request_survives_the_wire_to_the_bit() -> None:
    message = request()
    back = decode(encode(message))
    assert back.header == message.header
    assert isinstance(back.header, ProbeHeader)
    assert back.header.contract_digest == back.header.contract.digest()
    np.testing.assert_array_equal(back.arrays["weights"], message.arrays["weights"])


def test_encoding_is_deterministic() -> None:
    assert encode(request()) == encode(request())


def test_a_refusal_carries_a_code_and_an_incident_alone() -> None:
    message = refusal(site="a", code=RefusalCode.POLICY, incident="0123456789ab")
    assert decode(encode(message)).header.model_dump() == {
        "type": "refusal",
        "site": "a",
        "code": "policy",
        "incident": "0123456789ab",
    }


def test_doubles_are_refused_on_the_way_out() -> None:
    message = Message(header=request().header, arrays={"weights": np.zeros((1, 2))})
    with pytest.raises(MessageError, match="float64"):
        encode(message)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        pickle.dumps({"weights": 1}),
        encode(request())[:-1],
        encode(request()) + b"\0",
    ],
)
def test_what_is_not_a_message_is_refused(payload: bytes) -> None:
    with pytest.raises(MessageError):
        decode(payload)


def test_other_types_and_names_are_refused() -> None:
    header = encode(request())
    (length,) = struct.unpack("<Q", header[:8])
    ours = json.loads(header[8 : 8 + length])["__metadata__"]["fedstill"].encode()
    good = {"weights": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    assert decode(raw(ours, dict(good), b"\0" * 4)).arrays["weights"].shape == (1,)
    for tensors in (
        {"images": good["weights"]},
        {"weights": {**good["weights"], "dtype": "I32"}},
        {"weights": {**good["weights"], "data_offsets": [0, 400]}},
    ):
        with pytest.raises(MessageError):
            decode(raw(ours, dict(tensors), b"\0" * 4))


def test_a_decoding_error_never_repeats_what_was_sent() -> None:
    with pytest.raises(MessageError) as caught:
        decode(raw(b'{"type": "MUELLER^HANS"}', {}, b""))
    assert "MUELLER" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_deeply_nested_headers_do_not_overflow_the_stack() -> None:
    text = b"[" * 100_000
    with pytest.raises(MessageError):
        decode(struct.pack("<Q", len(text)) + text)


@given(st.integers(min_value=0, max_value=100_000))
def test_a_bucket_never_claims_more_than_there_are(patients: int) -> None:
    bucket = patient_bucket(patients)
    assert bucket <= patients
    assert bucket in PATIENT_BUCKETS
    assert all(other <= bucket or other > patients for other in PATIENT_BUCKETS)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_end_as_a_message_error(payload: bytes) -> None:
    with pytest.raises(MessageError):
        decode(payload)


def test_a_summary_without_patients_is_no_summary() -> None:
    with pytest.raises(ValueError, match="patients_at_least"):
        SummaryHeader(
            contract_digest="0" * 64,
            request_digest="0" * 64,
            round=1,
            kind="gradients",
            site="a",
            patients_at_least=0,
            seconds=0.1,
        )


@pytest.mark.parametrize(
    ("granularity", "kind", "reduced", "shape"),
    [
        ("cohort", "gradients", {}, (2, 9)),
        ("federation", "gradients", {}, (2, 9)),
        ("patient", "gradients", {}, (7, 2, 9)),
        ("patient", "local-steps", {}, (2, 9)),
        ("cohort", "gradients", {"sketch": 4, "directions": 3}, (2, 4)),
        ("patient", "gradients", {"sketch": 4}, (7, 2, 4)),
        ("cohort", "local-steps", {"sketch": 4, "directions": 3}, (2, 3)),
    ],
)
def test_an_answer_has_a_row_a_probe_as_long_as_the_contract_reduces_it_to(
    granularity: str, kind: str, reduced: dict[str, int], shape: tuple[int, ...]
) -> None:
    contract = RunContract.model_validate(
        {"name": "ct", "granularity": granularity, "privacy": reduced}
    )
    header = request().header.model_copy(update={"contract": contract, "kind": kind})
    assert isinstance(header, ProbeHeader)
    assert values_shape(header, (2, 9), patients=7) == shape


def test_blocks_by_patient_survive_the_wire_to_the_bit() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    header = SummaryHeader(
        contract_digest="0" * 64,
        request_digest="0" * 64,
        round=1,
        kind="gradients",
        site="a",
        patients_at_least=1,
        seconds=0.1,
    )
    back = decode(encode(Message(header=header, arrays={"values": values})))
    np.testing.assert_array_equal(back.arrays["values"], values)
