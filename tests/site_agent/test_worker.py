import hashlib
import logging
import time

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.architectures import Residual
from shared.contract import Anchor, Member, Privacy, Probes, RunContract
from shared.masking import (
    Session,
    coordinate_bound,
    decode_contribution,
    opened_sum,
    pairwise_mask,
    sign_offer,
)
from shared.messages import (
    DryRunQueryHeader,
    KeyQueryHeader,
    Message,
    Offer,
    OpenQueryHeader,
    RefusalCode,
    StatusQueryHeader,
    decode,
    encode,
    payload_digest,
    probe_batch,
    refusal,
)
from shared.networks import apply_network, parameter_count, restoration_loss
from shared.tasks.settings import CtDenoise, MrDenoise
from shared.trajectory import start
from site_agent import audit, incidents, quota, summaries, worker
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.enrolment import signing_key
from site_agent.intake.slices import PatientSlices, Slice, SlicePair
from site_agent.membership import Membership
from site_agent.outbox import Outbox
from site_agent.policy import Policy
from site_agent.settings import SiteSettings

TINY = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=32, angles=30, bins=48),
    student=TINY,
    anchor_network=TINY,
    anchor=Anchor(rounds=2, local_steps=3, batch=2, crop_px=16),
    probes=Probes(requests=2, draws=1, depths=(0, 30)),
)


@pytest.fixture
def site(tmp_path):
    """``ask(payload)`` of a site with six patients; its settings and outbox as attributes."""
    generator = np.random.default_rng(0)
    build_cohort(
        tmp_path / "cohort",
        (
            PatientSlices(
                f"{number:032x}",
                [
                    Slice(generator.integers(-1000, 500, (40, 40)).astype(np.int16), (1, 1), 2.0)
                    for _ in range(2)
                ],
            )
            for number in range(6)
        ),
        modality="CT",
    )
    settings = SiteSettings(
        home=tmp_path, name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )
    cohort = open_cohort(tmp_path / "cohort")
    outbox = Outbox(tmp_path / "outbox")

    def ask(payload, *, settings=settings, cohort=cohort):
        return worker.answer(payload, settings=settings, cohort=cohort, outbox=outbox)

    ask.settings, ask.outbox, ask.cohort = settings, outbox, cohort
    return ask


BY_PATIENT = CONTRACT.model_copy(update={"granularity": "patient"})
"""A contract that asks for one gradient a patient."""


def allowing(site, **policy):
    """The site's settings with a policy that lists granularity patient."""
    limits = Policy(granularities=("cohort", "patient"), **policy)
    return site.settings.model_copy(update={"policy": limits})


def request(*, contract=CONTRACT, round=1, kind="gradients", network=None, weights=None):
    network = network or ("anchor" if kind == "local-steps" else "student")
    if weights is None:
        weights = honest_weights(contract, kind=kind, network=network, round=round)
    return encode(
        probe_batch(contract=contract, round=round, kind=kind, network=network, weights=weights)
    )


def honest_weights(contract, *, kind, network, round):
    """What the contract names as the start and, for gradients, a little further on."""
    begun = start(contract, kind=kind, network=network, round=round).numpy()
    moved = np.random.default_rng(round).normal(0, 2e-3, begun.shape).astype(np.float32)
    return begun[None] if kind == "local-steps" else np.stack([begun, begun + moved])


def code_of(reply):
    header = decode(reply).header
    assert header.type == "refusal"
    assert header.site == "site-a"
    return header.code


@pytest.mark.parametrize("kind", ["gradients", "local-steps"])
def test_a_request_is_answered(site, kind):
    payload = request(kind=kind)
    reply = decode(site(payload))
    assert reply.header.type == "summary"
    assert reply.header.kind == kind
    assert reply.header.contract_digest == CONTRACT.digest()
    assert reply.header.request_digest == payload_digest(payload)
    assert reply.header.patients_at_least == 5  # six, in its bucket
    assert reply.arrays["values"].shape == decode(payload).arrays["weights"].shape
    assert np.isfinite(reply.arrays["values"]).all()
    assert np.abs(reply.arrays["values"]).max() > 0


def test_the_same_request_gets_the_same_bytes_and_is_computed_once(site, monkeypatch):
    first = site(request())
    monkeypatch.setattr(summaries, "patient_parts", None)
    assert site(request()) == first
    assert site.outbox.answered() == 1


def test_another_request_under_an_answered_round_is_refused(site):
    site(request())
    other = honest_weights(CONTRACT, kind="gradients", network="student", round=2)
    assert code_of(site(request(weights=other))) is RefusalCode.ROUND_REUSED
    assert decode(site(request(weights=other, round=2))).header.type == "summary"


def test_an_answer_is_on_the_disk_before_it_is_sent(site, monkeypatch):
    def fail(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Outbox, "store", fail)
    assert code_of(site(request())) is RefusalCode.INTERNAL


def with_header(payload, **changes):
    message = decode(payload)
    header = message.header.model_copy(update=changes)
    return encode(message.model_copy(update={"header": header}))


OFFER = Offer(name="site-a", public_key="00" * 32, signature="00" * 64)


def weights_of(value, *, shape=None):
    shape = shape or (2, parameter_count(TINY))
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", RefusalCode.MALFORMED),
        (b"\xff" * 100, RefusalCode.MALFORMED),
        (request()[:-1], RefusalCode.MALFORMED),
        (encode(refusal(site="x", code="internal", incident="0" * 12)), RefusalCode.UNKNOWN_KIND),
        (with_header(request(), contract_digest="0" * 64), RefusalCode.DIGEST_MISMATCH),
        (request(round=CONTRACT.rounds + 1), RefusalCode.POLICY),
        (request(weights=weights_of(0, shape=(65, 3))), RefusalCode.POLICY),
        (request(weights=weights_of(0, shape=(1, 3))), RefusalCode.BAD_WEIGHTS),
        (request(weights=weights_of(0, shape=(3,))), RefusalCode.BAD_WEIGHTS),
        (request(weights=weights_of(0, shape=(0, 77))), RefusalCode.BAD_WEIGHTS),
        (request(weights=weights_of(np.nan)), RefusalCode.BAD_WEIGHTS),
        (request(weights=weights_of(np.inf)), RefusalCode.BAD_WEIGHTS),
        (request(weights=weights_of(1e6)), RefusalCode.BAD_WEIGHTS),
        (request(kind="local-steps", network="student"), RefusalCode.BAD_WEIGHTS),
        (
            request(kind="local-steps", weights=weights_of(0, shape=(2, parameter_count(TINY)))),
            RefusalCode.BAD_WEIGHTS,
        ),
        (
            request(contract=CONTRACT.model_copy(update={"min_patients": 4})),
            RefusalCode.POLICY,
        ),
        (
            request(contract=CONTRACT.model_copy(update={"min_patients": 7})),
            RefusalCode.TOO_FEW_PATIENTS,
        ),
        (
            request(contract=CONTRACT.model_copy(update={"task": MrDenoise(size_px=32)})),
            RefusalCode.WRONG_MODALITY,
        ),
        (request(contract=BY_PATIENT), RefusalCode.POLICY),
        (
            request(contract=CONTRACT.model_copy(update={"granularity": "federation"})),
            RefusalCode.BAD_MEMBERS,
        ),
        (with_header(request(), attempt=2), RefusalCode.BAD_MEMBERS),
        (with_header(request(), offers=(OFFER,)), RefusalCode.BAD_MEMBERS),
    ],
)
def test_what_is_not_allowed_is_refused_with_a_code_and_computes_nothing(
    site, monkeypatch, payload, code
):
    for computation in ("patient_parts", "patient_gradients", "local_descent"):
        monkeypatch.setattr(summaries, computation, None)
    assert code_of(site(payload)) is code
    assert site.outbox.answered() == 0


def test_a_policy_that_was_tightened_also_stops_what_was_answered(site):
    site(request())
    strict = site.settings.model_copy(update={"policy": Policy(tasks=())})
    assert code_of(site(request(), settings=strict)) is RefusalCode.POLICY


def test_no_cohort(site):
    assert code_of(site(request(), cohort=None)) is RefusalCode.NO_COHORT


@pytest.mark.parametrize("values", [np.nan, 1e9], ids=["not finite", "above the clip norm"])
def test_a_result_that_must_not_leave_does_not(site, monkeypatch, values):
    monkeypatch.setattr(
        summaries.Tally, "mean", lambda _: torch.full((2, parameter_count(TINY)), values)
    )
    assert code_of(site(request())) is RefusalCode.INTERNAL
    assert site.outbox.answered() == 0


def test_the_text_of_an_exception_stays_in_the_sites_log(site, monkeypatch, tmp_path, capfd):
    def fail(**_keywords):
        raise RuntimeError("CANARY: /images/DOE^JANE")

    monkeypatch.setattr(summaries, "patient_parts", fail)
    monkeypatch.setattr(logging, "raiseExceptions", True)  # log_to changes it
    handlers = list(incidents.log.handlers)
    incidents.log_to(tmp_path / "logs")
    try:
        reply = site(request())
    finally:
        for handler in set(incidents.log.handlers) - set(handlers):
            incidents.log.removeHandler(handler)
            handler.close()
    assert code_of(reply) is RefusalCode.INTERNAL
    output = capfd.readouterr()
    assert b"CANARY" not in reply
    assert "CANARY" not in output.out + output.err
    # The positive control: it was there to leak, and the incident id finds it.
    log = (tmp_path / "logs" / "worker.log").read_text()
    assert "CANARY: /images/DOE^JANE" in log
    assert decode(reply).header.incident in log
    assert (tmp_path / "logs" / "worker.log").stat().st_mode & 0o777 == 0o600


def test_status(site):
    query = encode(Message(header=StatusQueryHeader()))
    header = decode(site(query)).header
    assert (header.type, header.site, header.ready) == ("status", "site-a", True)
    assert (header.patients_at_least, header.answered) == (5, 0)
    assert decode(site(query, cohort=None)).header.ready is False


def test_images_are_prepared_once(site, monkeypatch):
    site(request(round=1))
    monkeypatch.setattr(type(site.cohort), "images", None)
    assert decode(site(request(round=2))).header.type == "summary"


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_threads_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv("FEDSTILL_THREADS", text)
    with pytest.raises(ValueError, match="FEDSTILL_THREADS"):
        worker.set_threads()


def test_gradients_of_either_network_may_be_asked_for(site):
    wide = Residual(depth=3, width=5)
    contract = CONTRACT.model_copy(update={"anchor_network": wide})
    for round, (network, length) in enumerate(
        [("student", parameter_count(TINY)), ("anchor", parameter_count(wide))], start=1
    ):
        reply = decode(site(request(contract=contract, network=network, round=round)))
        assert reply.header.type == "summary"
        assert reply.arrays["values"].shape == (2, length)
        assert np.abs(reply.arrays["values"]).max() > 0
    # Weights of the one network under the other's name are not taken.
    misnamed = request(contract=contract, network="anchor", weights=weights_of(0), round=3)
    assert code_of(site(misnamed)) is RefusalCode.BAD_WEIGHTS


def test_an_anchor_is_held_against_the_last_one_that_was_answered(site):
    contract = CONTRACT.model_copy(
        update={"anchor": CONTRACT.anchor.model_copy(update={"clip_norm": 0.1, "rounds": 3})}
    )
    begun = honest_weights(contract, kind="local-steps", network="anchor", round=1)
    step = np.full_like(begun, 0.1 / np.sqrt(begun.size))

    def asked(round, weights):
        return site(request(contract=contract, kind="local-steps", round=round, weights=weights))

    assert decode(asked(1, begun)).header.type == "summary"
    assert code_of(asked(2, begun + 1.01 * step)) is RefusalCode.BAD_WEIGHTS
    # The refused one has left nothing behind: the first is still what counts.
    assert decode(asked(2, begun + step)).header.type == "summary"
    assert code_of(asked(3, begun + 2.01 * step)) is RefusalCode.BAD_WEIGHTS
    assert decode(asked(3, begun + 2 * step)).header.type == "summary"


def test_rounds_that_were_missed_lengthen_the_way(site):
    contract = CONTRACT.model_copy(
        update={"anchor": CONTRACT.anchor.model_copy(update={"clip_norm": 0.1, "rounds": 3})}
    )
    begun = honest_weights(contract, kind="local-steps", network="anchor", round=1)
    step = np.full_like(begun, 0.1 / np.sqrt(begun.size))
    payload = request(contract=contract, kind="local-steps", weights=begun)
    assert decode(site(payload)).header.type == "summary"
    late = request(contract=contract, kind="local-steps", round=3, weights=begun + 2 * step)
    assert decode(site(late)).header.type == "summary"


def test_no_more_requests_are_answered_in_an_hour_than_the_policy_allows(site, monkeypatch):
    twice = site.settings.model_copy(update={"policy": Policy(max_requests_an_hour=2)})
    first = site(request(round=1), settings=twice)
    other = CONTRACT.model_copy(update={"seed": 1})
    assert decode(site(request(contract=other), settings=twice)).header.type == "summary"
    assert code_of(site(request(round=2), settings=twice)) is RefusalCode.TOO_OFTEN
    assert site.outbox.answered() == 2
    # What was answered is answered again; and an hour later there is room.
    assert site(request(round=1), settings=twice) == first
    now = time.time()
    monkeypatch.setattr(quota.time, "time", lambda: now + quota.HOUR_S + 1)
    assert decode(site(request(round=2), settings=twice)).header.type == "summary"


def test_no_more_requests_are_answered_in_a_day_than_the_policy_allows(site, monkeypatch):
    daily = Policy(max_requests_a_day=1)
    settings = site.settings.model_copy(update={"policy": daily})
    assert decode(site(request(round=1), settings=settings)).header.type == "summary"
    now = time.time()
    monkeypatch.setattr(quota.time, "time", lambda: now + 23 * quota.HOUR_S)
    assert code_of(site(request(round=2), settings=settings)) is RefusalCode.TOO_OFTEN
    monkeypatch.setattr(quota.time, "time", lambda: now + 25 * quota.HOUR_S)
    assert decode(site(request(round=2), settings=settings)).header.type == "summary"


def without_guards(monkeypatch):
    """For tests that ask under two contracts, each of which names a start, at the same weights."""
    monkeypatch.setattr(worker, "weights_violation", lambda *_, **__: None)


def test_granularity_patient_answers_one_block_a_patient(site, monkeypatch):
    without_guards(monkeypatch)
    # Without noise, gradients do not depend on a patient's place; nor, unclipped, does their mean.
    quiet = {
        "task": CONTRACT.task.model_copy(update={"electronic_sigma": 0.0, "photons": 1e8}),
        "probes": CONTRACT.probes.model_copy(update={"clip_norm": 1e6}),
    }
    contract = BY_PATIENT.model_copy(update=quiet)
    reply = decode(site(request(contract=contract), settings=allowing(site)))
    values = reply.arrays["values"]
    assert values.shape == (6, 2, parameter_count(TINY))
    assert reply.header.patients_at_least == 5
    clear = CONTRACT.model_copy(update=quiet)
    weights = honest_weights(contract, kind="gradients", network="student", round=1)
    together = decode(site(request(contract=clear, weights=weights))).arrays["values"]
    np.testing.assert_allclose(values.mean(0), together, rtol=0.05, atol=0.02 * together.std())
    # The positive control: patients differ from each other far more than that.
    spread = np.abs(values - values.mean(0)).max()
    assert spread > 10 * np.abs(values.mean(0) - together).max()


def test_every_block_of_a_patient_is_clipped(site):
    norms = {}
    for clip_norm in (1e-3, 1e3):
        contract = BY_PATIENT.model_copy(
            update={"probes": CONTRACT.probes.model_copy(update={"clip_norm": clip_norm})}
        )
        reply = decode(site(request(contract=contract), settings=allowing(site)))
        norms[clip_norm] = np.linalg.norm(reply.arrays["values"], axis=-1)
    assert norms[1e-3].max() <= 1e-3 * 1.001
    assert norms[1e3].min() > 1e-3, "the bound must be what holds it"


def order_of(site, monkeypatch, contract, *, round=1, **policy):
    """The patients as the worker handed them on, by their places in the cohort."""
    handed = []

    def remember(*, weights, patients, **_):
        handed.extend(patients)
        return torch.zeros(len(patients), *weights.shape)

    monkeypatch.setattr(summaries, "patient_gradients", remember)
    reply = site(request(contract=contract, round=round), settings=allowing(site, **policy))
    assert decode(reply).header.type == "summary"
    task = contract.task
    images = site.cohort.images(size_px=task.size_px, low=task.window[0], high=task.window[1])
    return [
        next(n for n, image in enumerate(images) if np.array_equal(image, patient.cpu().numpy()))
        for patient in handed
    ]


def test_the_order_of_patients_is_a_contracts_own_and_the_same_in_all_its_rounds(site, monkeypatch):
    orders = []
    for seed in range(4):
        contract = BY_PATIENT.model_copy(update={"seed": seed})
        orders.append(order_of(site, monkeypatch, contract))
        assert sorted(orders[-1]) == list(range(6))
        assert order_of(site, monkeypatch, contract, round=2) == orders[-1]
    assert len({tuple(order) for order in orders}) > 1
    assert list(range(6)) not in orders


def test_no_more_patients_speak_than_the_policy_allows(site, monkeypatch):
    contract = BY_PATIENT.model_copy(update={"seed": 9})
    everyone = order_of(site, monkeypatch, contract)
    again = contract.model_copy(update={"min_patients": 5})
    assert order_of(site, monkeypatch, again, round=2, max_patients=5) == everyone[:5]
    refused = site(request(contract=contract, round=3), settings=allowing(site, max_patients=4))
    assert code_of(refused) is RefusalCode.POLICY


def test_an_answer_larger_than_a_message_is_refused_before_it_is_computed(site, monkeypatch):
    monkeypatch.setattr(summaries, "MAX_BYTES", summaries.MAX_HEADER_BYTES + 1000)
    monkeypatch.setattr(summaries, "patient_gradients", None)
    assert code_of(site(request(contract=BY_PATIENT), settings=allowing(site))) is (
        RefusalCode.POLICY
    )


def test_local_steps_speak_for_all_patients_at_any_granularity(site):
    payload = request(contract=BY_PATIENT, kind="local-steps")
    reply = decode(site(payload, settings=allowing(site)))
    assert reply.arrays["values"].shape == (1, parameter_count(TINY))


def test_a_block_above_the_clip_norm_does_not_leave(site, monkeypatch):
    def one_too_large(*, weights, patients, **_):
        values = torch.zeros(len(patients), *weights.shape)
        values[3, 1, 0] = CONTRACT.probes.clip_norm * 1.01
        return values

    monkeypatch.setattr(summaries, "patient_gradients", one_too_large)
    reply = site(request(contract=BY_PATIENT), settings=allowing(site))
    assert code_of(reply) is RefusalCode.INTERNAL


def test_a_site_that_offers_another_modality_than_it_indexed_says_so(site):
    offering = site.settings.model_copy(update={"modality": "MR"})
    assert code_of(site(request(), settings=offering)) is RefusalCode.WRONG_MODALITY


PEERS = {name: Ed25519PrivateKey.from_private_bytes(name * 32) for name in (b"b", b"c")}


def secure(site, **changes):
    """A contract for a secure sum of the site and two others."""
    keys = [signing_key(site.settings), *PEERS.values()]
    members = tuple(
        Member(name=name, signing_key=key.public_key().public_bytes_raw().hex())
        for name, key in zip(("site-a", "b", "c"), keys, strict=True)
    )
    return CONTRACT.model_copy(update={"granularity": "federation", "members": members, **changes})


def key_query(contract, *, attempt=1):
    digest = contract.digest()
    header = KeyQueryHeader(contract=contract, contract_digest=digest, round=1, attempt=attempt)
    return encode(Message(header=header))


def open_query(contract, *, attempt=1):
    header = OpenQueryHeader(contract_digest=contract.digest(), round=1, attempt=attempt)
    return encode(Message(header=header))


def masked_request(site, contract, *, attempt=1, kind="gradients"):
    """A request with the site's own offer and those of its peers, and the peers' private keys."""
    offers = [decode(site(key_query(contract, attempt=attempt))).header.offer]
    private = {}
    for name, key in PEERS.items():
        private[name.decode()] = X25519PrivateKey.generate()
        public_key = private[name.decode()].public_key().public_bytes_raw().hex()
        about = {"contract_digest": contract.digest(), "round": 1, "attempt": attempt}
        offers.append(sign_offer(key, name=name.decode(), public_key=public_key, **about))
    plain = request(contract=contract, kind=kind)
    return with_header(plain, attempt=attempt, offers=tuple(offers)), private


@pytest.mark.parametrize("kind", ["gradients", "local-steps"])
def test_under_its_masks_is_what_the_site_would_have_sent_in_the_clear(site, monkeypatch, kind):
    without_guards(monkeypatch)
    contract = secure(site)
    payload, private = masked_request(site, contract, kind=kind)
    reply = decode(site(payload))
    header = decode(payload).header
    assert set(reply.arrays) == {"masked"}
    assert (reply.header.attempt, reply.header.patients_at_least) == (1, 5)
    seed = bytes.fromhex(decode(site(open_query(contract))).header.seed)
    session = Session.of(header, payload_digest(payload))
    total = reply.arrays["masked"].copy()
    for name, key in private.items():  # peers with nothing to say
        total += pairwise_mask(
            key, name=name, offers=header.offers, session=session, count=len(total)
        )
    opened = opened_sum(total, seeds={"site-a": seed}, session=session)
    rows = len(decode(payload).arrays["weights"])
    bound = coordinate_bound(contract, kind, rows=rows)
    numerator, weight = decode_contribution(opened, members=3, bound=bound)
    assert weight == 5.0
    # The same question in the clear; all that is random follows from the contract's digest.
    clear = CONTRACT.model_copy(update={"seed": 1})
    monkeypatch.setattr(RunContract, "digest", lambda _: header.contract_digest)
    again = Outbox(site.outbox.folder / "again")
    asked = request(contract=clear, kind=kind, weights=decode(payload).arrays["weights"])
    reply = worker.answer(asked, settings=site.settings, cohort=site.cohort, outbox=again)
    mean = decode(reply).arrays["values"]
    assert np.abs(mean).max() > 0
    np.testing.assert_allclose(numerator.reshape(rows, -1) / 5.0, mean, rtol=1e-6, atol=1e-12)


def test_a_masked_answer_is_repeated_and_its_round_is_not_used_again(site, monkeypatch):
    contract = secure(site)
    payload, _ = masked_request(site, contract)
    first = site(payload)
    monkeypatch.setattr(worker, "contribution", None)
    assert site(payload) == first
    assert code_of(site(with_header(payload, network="anchor"))) is RefusalCode.ROUND_REUSED
    opening = site(open_query(contract))
    assert site(open_query(contract)) == opening
    assert code_of(site(key_query(contract, attempt=2))) is RefusalCode.ROUND_REUSED
    assert site(payload) == first


def test_a_later_attempt_is_answered_afresh_and_ends_the_earlier_one(site):
    contract = secure(site)
    payload, _ = masked_request(site, contract)
    later, _ = masked_request(site, contract, attempt=2)  # asks for the key of attempt 2
    assert code_of(site(payload)) is RefusalCode.ROUND_REUSED
    assert decode(site(later)).header.attempt == 2
    assert code_of(site(open_query(contract))) is RefusalCode.ROUND_REUSED
    assert decode(site(open_query(contract, attempt=2))).header.type == "opening"


def test_a_crash_between_masking_and_keeping_the_answer_loses_nothing(site, monkeypatch):
    contract = secure(site)
    payload, _ = masked_request(site, contract)
    with monkeypatch.context() as broken:
        broken.setattr(Outbox, "store", None)
        assert code_of(site(payload)) is RefusalCode.INTERNAL
    # As if killed after the answer was kept, and before the key was removed.
    with monkeypatch.context() as broken:
        broken.setattr(Membership, "answered", None)
        assert code_of(site(payload)) is RefusalCode.INTERNAL
    assert code_of(site(open_query(contract))) is RefusalCode.BAD_MEMBERS
    assert decode(site(payload)).header.type == "summary"
    assert decode(site(open_query(contract))).header.type == "opening"


def test_a_key_is_offered_only_where_the_request_would_be_answered(site):
    contract = secure(site)
    assert code_of(site(key_query(contract), cohort=None)) is RefusalCode.NO_COHORT
    many = secure(site, min_patients=7)
    assert code_of(site(key_query(many))) is RefusalCode.TOO_FEW_PATIENTS
    clear = site.settings.model_copy(update={"policy": Policy(granularities=("cohort",))})
    assert code_of(site(key_query(contract), settings=clear)) is RefusalCode.POLICY
    pinned = site.settings.model_copy(update={"policy": Policy(peers=("11" * 32,))})
    assert code_of(site(key_query(contract), settings=pinned)) is RefusalCode.POLICY
    header = decode(key_query(contract)).header.model_copy(update={"contract_digest": "0" * 64})
    assert code_of(site(encode(Message(header=header)))) is RefusalCode.DIGEST_MISMATCH
    payload, _ = masked_request(site, contract)
    site(payload)
    assert code_of(site(open_query(contract), settings=clear)) is RefusalCode.POLICY


def told(site):
    """What the site's audit log says, line by line."""
    return list(AuditLog(site.settings.audit_path).lines())


def test_an_answer_is_in_the_audit_log_and_the_outbox_and_tells_the_logs_head(site):
    payload = request()
    reply = site(payload)
    (line,), header = told(site), decode(reply).header
    log = AuditLog(site.settings.audit_path)
    assert header.audit_head == log.verify().head
    values = decode(reply).arrays["values"]
    assert (line.event, line.fields["contract"], line.fields["round"]) == (
        "answered",
        CONTRACT.digest(),
        1,
    )
    assert line.fields["numbers"] == hashlib.sha256(values.tobytes()).hexdigest()
    assert line.fields["shape"] == "x".join(map(str, values.shape))
    (entry,) = site.outbox.entries()
    assert (entry.digest, entry.bytes) == (payload_digest(reply), len(reply))
    assert (entry.granularity, entry.noised, entry.gradients) == ("cohort", False, 2)
    assert entry.norm == pytest.approx(float(np.linalg.norm(values.astype("f8"))))
    assert entry.norm == line.fields["norm"]
    # What an earlier version kept says the same of what it can.
    site.outbox.path(entry).with_name("00001.entry.json").unlink()
    (plain,) = site.outbox.entries()
    assert (plain.digest, plain.shape, plain.gradients) == (entry.digest, entry.shape, 2)
    assert plain.norm == pytest.approx(entry.norm)
    # Sent again: the same bytes, one line more.
    assert site(payload) == reply
    assert told(site)[-1].event == "repeated"
    assert told(site)[-1].fields["answer"] == payload_digest(reply)
    assert not log.verify(header.audit_head).faults


def test_a_refusal_is_in_the_audit_log_with_its_code_and_incident(site):
    for payload in (b"nothing of ours", request(round=99)):
        header = decode(site(payload)).header
        assert told(site)[-1].event == "refused"
        assert told(site)[-1].fields == {"code": header.code, "incident": header.incident}
    assert len(told(site)) == 2


def test_nothing_leaves_that_the_audit_log_does_not_hold(site, monkeypatch):
    first = site(request())
    log = AuditLog(site.settings.audit_path)
    log.path.write_bytes(b"")
    assert code_of(site(request(round=2))) is RefusalCode.INTERNAL
    assert code_of(site(request())) is RefusalCode.INTERNAL, "not even what left before"
    assert site.outbox.answered() == 1
    assert decode(first).header.type == "summary"


def test_an_answer_that_fails_to_be_logged_is_not_kept_either(site, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(audit, "write_durably", full)
        assert code_of(site(request())) is RefusalCode.INTERNAL
    assert site.outbox.answered() == 0
    assert decode(site(request())).header.type == "summary"
    assert not AuditLog(site.settings.audit_path).verify().faults


def test_keys_and_openings_of_a_secure_sum_are_in_the_audit_log(site):
    contract = secure(site)
    payload, _ = masked_request(site, contract)
    header = decode(site(payload)).header
    site(open_query(contract))
    assert [line.event for line in told(site)] == ["key-offered", "answered", "opened"]
    assert told(site)[1].fields["norm"] is None, "the masks hide it"
    assert not AuditLog(site.settings.audit_path).verify(header.audit_head).faults
    (entry,) = site.outbox.entries()
    assert (entry.granularity, entry.norm, entry.gradients) == ("federation", None, 2)
    assert header.seconds == 0.0 < entry.seconds, "its time would tell of its share in the sum"


def test_a_charge_is_in_the_audit_log_before_its_answer(site):
    anchor = CONTRACT.anchor.model_copy(update={"descent": "patient"})
    noised = Privacy(epsilon=3.0, patients=5)
    contract = CONTRACT.model_copy(update={"anchor": anchor, "privacy": noised})
    assert decode(site(request(contract=contract))).header.seconds == 0.0
    charged, answered = told(site)
    assert (charged.event, answered.event) == ("charged", "answered")
    assert charged.fields["noise_multiplier"] == contract.noise_multiplier
    assert answered.fields["noised"] is True
    (entry,) = site.outbox.entries()
    assert entry.noised and entry.seconds > 0, "the site's own account keeps the time"


def test_quotas_are_held_against_what_is_asked_before_an_image_is_read(site, monkeypatch):
    monkeypatch.setattr(worker, "inquiry", None)  # reads images
    length = parameter_count(TINY)
    for limits, code in (
        ({"max_gradients": 1}, RefusalCode.BUDGET_SPENT),
        ({"max_bytes_a_day": 2 * 4 * length - 1}, RefusalCode.TOO_OFTEN),
    ):
        strict = site.settings.model_copy(update={"policy": Policy(**limits)})
        assert code_of(site(request(), settings=strict)) is code
    # At granularity patient, every patient's counts: six of them, two weights.
    strict = allowing(site, max_gradients=11)
    assert code_of(site(request(contract=BY_PATIENT), settings=strict)) is RefusalCode.BUDGET_SPENT
    enough = allowing(site, max_gradients=12)
    assert code_of(site(request(contract=BY_PATIENT), settings=enough)) is RefusalCode.INTERNAL


REAL = CONTRACT.model_copy(update={"task": CONTRACT.task.model_copy(update={"pairs": "real"})})


def with_pairs(folder, *, paired):
    """A cohort of six patients, of whom so many have two real dose pairs; and their images."""
    generator = np.random.default_rng(1)

    def one():
        return Slice(generator.integers(-1000, 500, (32, 32)).astype(np.int16), (1, 1), 2.0)

    patients = [
        PatientSlices(
            f"{number:032x}",
            [one()],
            [SlicePair("dose", lq=one(), hq=one()) for _ in range(2 * (number < paired))],
        )
        for number in range(6)
    ]
    build_cohort(folder, patients, modality="CT")
    return open_cohort(folder), [patient.pairs for patient in patients if patient.pairs]


def test_a_contract_of_real_pairs_is_answered_from_them(site, tmp_path):
    cohort, pairs = with_pairs(tmp_path / "paired", paired=5)
    weights = honest_weights(REAL, kind="gradients", network="student", round=1)
    reply = decode(site(request(contract=REAL), cohort=cohort))
    assert reply.header.patients_at_least == 5
    rows = []
    for row in weights:
        parts = []
        for own in pairs:
            sides = [
                torch.tensor(np.stack([getattr(pair, side).pixels for pair in own]))[:, None]
                for side in ("lq", "hq")
            ]
            lq, hq = ((side.float() + 1000) / 2000 for side in sides)
            leaf = torch.tensor(row, requires_grad=True)
            loss = restoration_loss(apply_network(TINY, leaf, lq), hq)
            gradient = torch.autograd.grad(loss, leaf)[0]
            parts.append(gradient * min(1.0, REAL.probes.clip_norm / float(gradient.norm())))
        rows.append(torch.stack(parts))
    # What one patient alone makes up more than half of is left out of a clear mean.
    for values, parts in zip(reply.arrays["values"], rows, strict=True):
        kept = torch.from_numpy(values != 0)
        assert kept.float().mean() > 0.5
        torch.testing.assert_close(
            torch.from_numpy(values)[kept], parts.mean(dim=0)[kept], rtol=1e-3, atol=1e-7
        )
    # The same contract without them is answered for degraded images of all six.
    other = decode(site(request(), cohort=cohort))
    assert other.header.type == "summary"
    assert not np.allclose(other.arrays["values"], reply.arrays["values"], rtol=0.1)


@pytest.mark.parametrize("paired", [0, 4])
def test_a_site_with_too_few_real_pairs_says_so(site, tmp_path, paired):
    cohort, _ = with_pairs(tmp_path / "paired", paired=paired)
    assert code_of(site(request(contract=REAL), cohort=cohort)) is RefusalCode.TOO_FEW_PAIRS
    query = DryRunQueryHeader(contract=REAL, contract_digest=REAL.digest())
    said = decode(site(encode(Message(header=query)), cohort=cohort)).header
    assert (said.code, said.patients_at_least) == (RefusalCode.TOO_FEW_PAIRS, min(paired, 1))
