"""Contracts that no coordinator of the site's has signed: a SuperLink in other hands asks for them.

Whoever holds the aggregator's machine, or its CA, can send a site any message, but for a signature
of a key that it has not got. Each attack is one change of a request that is answered.
"""

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.mandate import Mandate, sign_contract
from shared.messages import (
    DryRunQueryHeader,
    KeyQueryHeader,
    Message,
    ProbeHeader,
    decode,
    encode,
    probe_batch,
)
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.ledger import Ledger
from site_agent.outbox import Outbox
from site_agent.policy import Policy
from site_agent.settings import SiteSettings
from site_agent.worker import answer

KNOWN, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([byte]) * 32) for byte in (1, 2))
KEY = KNOWN.public_key().public_bytes_raw().hex()
TINY = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=32, angles=30, bins=48),
    student=TINY,
    anchor_network=TINY,
    anchor=Anchor(rounds=0, crop_px=16),
    probes=Probes(requests=1, draws=1, depths=(0,)),
)
DIGEST = CONTRACT.digest()
SIGNED = sign_contract(DIGEST, KNOWN)
CHANGED = CONTRACT.model_copy(update={"probes": CONTRACT.probes.model_copy(update={"requests": 9})})


@pytest.fixture
def site(tmp_path):
    """``ask(payload, coordinators=...)`` of a site with six patients; its settings as attribute."""
    hu = np.random.default_rng(0).integers(-1000, 500, (40, 40)).astype(np.int16)
    patients = [PatientSlices(f"{n:032x}", [Slice(hu, (1.0, 1.0), 2.0)]) for n in range(6)]
    build_cohort(tmp_path / "cohort", patients, modality="CT")
    cohort = open_cohort(tmp_path / "cohort")
    settings = SiteSettings(
        home=tmp_path, name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )

    def ask(payload: bytes, coordinators: tuple[str, ...] | None = (KEY,)):
        pinned = settings.model_copy(update={"policy": Policy(coordinators=coordinators)})
        outbox = Outbox(settings.outbox_path)
        return decode(answer(payload, settings=pinned, cohort=cohort, outbox=outbox)).header

    ask.settings = settings
    return ask


def probes(mandate: Mandate | None, contract: RunContract = CONTRACT) -> Message:
    weights = start(contract, kind="gradients", network="student", round=1).numpy()[None]
    return probe_batch(
        contract=contract,
        round=1,
        kind="gradients",
        network="student",
        weights=weights,
        mandate=mandate,
    )


def claimed(key: Ed25519PrivateKey, content: bytes) -> Mandate:
    """A signature of other content, said to be the known coordinator's mandate."""
    return Mandate(coordinator=KEY, signature=key.sign(content).hex())


FORGERIES: dict[str, Callable[[], Message]] = {
    "unsigned": lambda: probes(None),
    "another key": lambda: probes(sign_contract(DIGEST, OTHER)),
    "another key under the known one's name": lambda: probes(
        Mandate(coordinator=KEY, signature=sign_contract(DIGEST, OTHER).signature)
    ),
    "a signature of another contract": lambda: probes(sign_contract(CHANGED.digest(), KNOWN)),
    "replayed under a changed contract": lambda: probes(SIGNED, CHANGED),
    # Whatever else the key signs is no mandate.
    "the digest alone": lambda: probes(claimed(KNOWN, bytes.fromhex(DIGEST))),
    "the digest as text": lambda: probes(claimed(KNOWN, DIGEST.encode())),
    "a key of small order": lambda: probes(Mandate(coordinator="00" * 32, signature="00" * 64)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_contract_is_refused_before_anything_is_done(site, forgery):
    payload = encode(FORGERIES[forgery]())
    refused = site(payload)
    assert (refused.type, refused.code) == ("refusal", "unknown-coordinator")
    assert not site.settings.outbox_path.exists()
    assert Ledger(site.settings.ledger_path).charges() == ()
    (line,) = AuditLog(site.settings.audit_path).lines()
    assert (line.event, line.fields["code"]) == ("refused", "unknown-coordinator")
    assert site(encode(probes(SIGNED))).type == "summary"


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_signature_alone_is_what_stops_a_forgery(site, forgery):
    """The control: a site that asks for none, which no policy.toml can say, answers them all."""
    assert site(encode(FORGERIES[forgery]()), None).type == "summary"


def test_a_digest_that_is_signed_carries_no_other_contract(site):
    request = probes(SIGNED, CHANGED)
    assert isinstance(request.header, ProbeHeader)
    header = request.header.model_copy(update={"contract_digest": DIGEST})
    refused = site(encode(Message(header=header, arrays=request.arrays)))
    assert (refused.type, refused.code) == ("refusal", "digest-mismatch")


@pytest.mark.parametrize("mandate", [None, sign_contract(DIGEST, OTHER), SIGNED])
def test_dry_runs_and_keys_of_secure_sums_ask_for_the_same_signature(site, mandate):
    known = mandate is SIGNED
    about = {"contract": CONTRACT, "contract_digest": DIGEST, "mandate": mandate}
    said = site(encode(Message(header=DryRunQueryHeader(**about))))
    assert (said.type, said.code) == ("dry-run", None if known else "unknown-coordinator")
    said = site(encode(Message(header=DryRunQueryHeader(**about, standing=True))))
    assert (said.standing is not None) is known, "nobody else is told of versions and budgets"
    offered = site(encode(Message(header=KeyQueryHeader(**about, round=1, attempt=1))))
    assert (offered.code == "unknown-coordinator") is not known


def test_a_key_that_is_removed_from_the_policy_is_refused_from_then_on(site):
    payload, other = encode(probes(SIGNED)), OTHER.public_key().public_bytes_raw().hex()
    assert site(payload, (other, KEY)).type == "summary"
    for left in ((other,), ()):
        assert site(payload, left).code == "unknown-coordinator"
    assert site(payload).type == "summary"
