"""The gradient worker: the one process that reads the cohort, and the only answerer of requests.

How a request is answered:

1. decode it; nothing that is not a message of ours goes further;
2. contract and header agree on the digest, which a coordinator whom the site knows has signed; the
   site's policy allows contract and request; of a secure sum, its members and this attempt are
   right (``membership.py``);
3. an answer given before under this contract and round goes out again, byte for byte; another
   request under that round is refused;
4. no quota is used up (``quota.py``); the cohort is of the contract's modality
   and has enough patients; the weights are such as honest training gives (``guards.py``);
5. charge the ledger, in gradients and in privacy (``ledger.py``);
6. compute, check the result, mask it for a secure sum;
7. write its line into the audit log, whose head goes with it, and it to the outbox; return it.

Whatever fails becomes a refusal: a code, an incident id, never a text.
"""

import hashlib
import math
import os
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

from shared.judging import EvaluateHeader, VetoQueryHeader
from shared.masking import Ring
from shared.messages import (
    DryRunQueryHeader,
    FloatArray,
    KeyQueryHeader,
    Message,
    MessageError,
    OpenQueryHeader,
    ProbeHeader,
    RefusalCode,
    StatusHeader,
    StatusQueryHeader,
    SummaryHeader,
    decode,
    encode,
    patient_bucket,
    payload_digest,
)
from site_agent.audit import AuditError, AuditLog
from site_agent.cohort import Cohort
from site_agent.consent import (
    fit_cohort,
    membership_of,
    obey_policy,
    refuse_unsigned,
    verdict,
)
from site_agent.events import Event, note
from site_agent.guards import weights_violation
from site_agent.incidents import RefusedError, refuse
from site_agent.judgement import judge
from site_agent.ledger import (
    Ledger,
    charge_for,
    refuse_beyond_gradients,
    refuse_unaffordable,
)
from site_agent.membership import Membership
from site_agent.outbox import Entry, Outbox
from site_agent.quota import (
    answer_shape,
    gradients_in,
    refuse_beyond_quota,
    size_of,
)
from site_agent.settings import SiteSettings
from site_agent.standing import standing
from site_agent.summaries import contribution, device, inquiry, summarise

THREADS_VARIABLE = "FEDSTILL_THREADS"
_OF_NOBODY_KNOWN = (RefusalCode.UNKNOWN_COORDINATOR, RefusalCode.DIGEST_MISMATCH)
"""Who is refused so is told nothing else, and gets nothing computed."""


def answer(
    payload: bytes,
    *,
    settings: SiteSettings,
    cohort: Cohort | None,
    outbox: Outbox,
    idle: bool = True,
) -> bytes:
    """Answers one encoded request, with a refusal if need be, encoded. Never raises.

    While another one computes, not ``idle``, a dry run times nothing.
    """
    audit = AuditLog(settings.audit_path)
    try:
        try:
            message = decode(payload)
        except MessageError as error:
            raise RefusedError(RefusalCode.MALFORMED, str(error)) from None
        header = message.header
        if isinstance(header, StatusQueryHeader):
            return encode(Message(header=_status(settings, cohort, outbox)))
        if isinstance(header, DryRunQueryHeader):
            said = verdict(header, settings=settings, cohort=cohort, outbox=outbox)
            why = said.model_dump(mode="json", include={"code", "incident"})
            audit.append("dry-run", contract=header.contract_digest, **why)
            if header.standing and said.code not in _OF_NOBODY_KNOWN:
                stands = standing(
                    header.contract,
                    version=package_version(),
                    bucket=said.patients_at_least if said.code is None else None,
                    settings=settings,
                    outbox=outbox,
                    idle=idle,
                )
                said = said.model_copy(update={"standing": stands})
            return encode(Message(header=said))
        if isinstance(header, KeyQueryHeader):
            offered = _offer(header, settings=settings, cohort=cohort, outbox=outbox)
            audit.append("key-offered", **_about(header))
            return offered
        if isinstance(header, OpenQueryHeader):
            opening = _opening(header, settings=settings, outbox=outbox)
            audit.append("opened", **_about(header))
            return opening
        if isinstance(header, EvaluateHeader | VetoQueryHeader):
            return judge(
                header,
                message.arrays,
                request_digest=payload_digest(payload),
                settings=settings,
                cohort=cohort,
                outbox=outbox,
                audit=audit,
            )
        if not isinstance(header, ProbeHeader):
            raise RefusedError(RefusalCode.UNKNOWN_KIND, f"a {header.type} message")
        return _summary(
            header,
            message.arrays,
            request_digest=payload_digest(payload),
            settings=settings,
            cohort=cohort,
            outbox=outbox,
            audit=audit,
        )
    except RefusedError as error:
        return refuse(site=settings.name, code=error.code, error=error, audit=audit)
    except AuditError as error:
        reason = RefusedError(RefusalCode.INTERNAL, str(error))
        return refuse(site=settings.name, code=reason.code, error=reason, audit=audit)
    except Exception as error:
        return refuse(site=settings.name, code=RefusalCode.INTERNAL, error=error, audit=audit)


def set_threads() -> None:
    """Limits torch to FEDSTILL_THREADS threads, or to the cores this process may use.

    Raises ``ValueError`` where the variable is not a positive number.
    """
    text = os.environ.get(THREADS_VARIABLE, "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise ValueError(f"{THREADS_VARIABLE} must be a number of threads, at least 1")
    torch.set_num_threads(int(text) if text else len(os.sched_getaffinity(0)))


def _summary(
    header: ProbeHeader,
    arrays: dict[str, FloatArray],
    *,
    request_digest: str,
    settings: SiteSettings,
    cohort: Cohort | None,
    outbox: Outbox,
    audit: AuditLog,
) -> bytes:
    started = time.monotonic()
    contract = header.contract
    refuse_unsigned(header, settings.policy)
    weights = arrays.get("weights")
    if weights is None or weights.ndim != 2:
        raise RefusedError(RefusalCode.BAD_WEIGHTS, "not a (K, D) array of weights")
    obey_policy(contract, settings.policy, round=header.round, probes=weights.shape[0])
    member = _member(header, settings, outbox)
    replay = _earlier_answer(header, request_digest, outbox)
    if replay is not None:
        if member is not None:
            member.answered(header)
        audit.append("repeated", **_about(header), answer=payload_digest(replay))
        note(Event.REPEATED, contract=header.contract_digest[:16], round=header.round)
        return replay
    cohort = fit_cohort(contract, cohort, settings)
    shape = answer_shape(header, weights.shape, cohort=cohort, policy=settings.policy)
    refuse_beyond_quota(
        settings.policy, outbox, size_bytes=size_of(shape, masked=member is not None)
    )
    ledger, gradients = Ledger(settings.ledger_path), gradients_in(shape)
    refuse_unaffordable(header, gradients=gradients, ledger=ledger, policy=settings.policy)
    _refuse_bad_weights(header, weights, outbox)
    asked = inquiry(header, arrays, cohort=cohort, settings=settings)
    noise = charge_for(
        header, gradients=gradients, ledger=ledger, outbox=outbox, policy=settings.policy
    )
    if noise is not None:
        sampling = contract.privacy.sampling
        charged = {"noise_multiplier": noise, "sampling": sampling}
        audit.append("charged", **_about(header), name=contract.name, **charged)
        note(
            Event.CHARGED,
            contract=header.contract_digest[:16],
            round=header.round,
            attempt=header.attempt,
            noise=noise,
            sampling=sampling,
        )
    array: FloatArray | Ring
    if member is None:
        name, array = "values", summarise(asked, noise_multiplier=noise)
    else:
        numerator, weight = contribution(asked, noise_multiplier=noise)
        rows = len(weights)
        name, array = "masked", member.mask(header, request_digest, numerator, weight, rows=rows)
    seconds = round(time.monotonic() - started, 3)
    norm = math.sqrt(float((array.astype("f8") ** 2).sum())) if member is None else None
    head = audit.append(
        "answered",
        **_about(header),
        name=contract.name,
        kind=header.kind,
        granularity=contract.granularity,
        noised=noise is not None,
        shape="x".join(map(str, array.shape)),
        gradients=gradients_in(asked.shape),
        norm=norm,
        numbers=hashlib.sha256(array.tobytes()).hexdigest(),
    )
    encoded = encode(
        Message(
            header=SummaryHeader(
                contract_digest=header.contract_digest,
                request_digest=request_digest,
                round=header.round,
                attempt=header.attempt,
                kind=header.kind,
                site=settings.name,
                patients_at_least=asked.patients_at_least,
                # Time grows with the number of patients, which noise and a sum are there to hide.
                seconds=seconds if noise is None and member is None else 0.0,
                audit_head=head,
            ),
            arrays={name: array},
        )
    )
    if header.kind == "local-steps":
        outbox.keep_weights(weights[0], contract_digest=header.contract_digest, round=header.round)
    outbox.store(
        encoded,
        contract_digest=header.contract_digest,
        round=header.round,
        attempt=header.attempt,
        entry=Entry(
            contract=header.contract_digest,
            name=contract.name,
            round=header.round,
            attempt=header.attempt,
            answered=datetime.now(UTC),
            kind=header.kind,
            granularity=contract.granularity,
            noised=noise is not None,
            shape=array.shape,
            gradients=gradients_in(asked.shape),
            norm=norm,
            seconds=seconds,
            bytes=len(encoded),
            digest=payload_digest(encoded),
        ),
    )
    if member is not None:
        member.answered(header)
    note(
        Event.ANSWERED,
        contract=header.contract_digest[:16],
        round=header.round,
        kind=header.kind,
        bytes=len(encoded),
        seconds=seconds,
    )
    return encoded


def _about(header: ProbeHeader | KeyQueryHeader | OpenQueryHeader) -> dict[str, str | int]:
    """What an audit line names a request by."""
    return {
        "contract": header.contract_digest,
        "round": header.round,
        "attempt": header.attempt,
    }


def _offer(
    query: KeyQueryHeader, *, settings: SiteSettings, cohort: Cohort | None, outbox: Outbox
) -> bytes:
    """A key of a secure sum, where the site is going to answer the request that it is for."""
    refuse_unsigned(query, settings.policy)
    obey_policy(query.contract, settings.policy, round=query.round, probes=1)
    fit_cohort(query.contract, cohort, settings)
    answered = outbox.stored(
        contract_digest=query.contract_digest, round=query.round, attempt=query.attempt
    )
    if answered is None:
        refuse_beyond_quota(settings.policy, outbox)
        charges = Ledger(settings.ledger_path).charges()
        refuse_beyond_gradients(charges, 1, settings.policy)
    return membership_of(settings, outbox).offer(query)


def _opening(query: OpenQueryHeader, *, settings: SiteSettings, outbox: Outbox) -> bytes:
    if "federation" not in settings.policy.granularities:
        raise RefusedError(RefusalCode.POLICY, "the policy has changed: no sum is opened any more")
    return membership_of(settings, outbox).opening(query)


def _member(header: ProbeHeader, settings: SiteSettings, outbox: Outbox) -> Membership | None:
    """The site as a member of the secure sum a request is for; None where it is for none."""
    if header.contract.granularity == "federation":
        member = membership_of(settings, outbox)
        member.refuse_attempt(header)
        return member
    if header.offers or header.attempt != 1:
        raise RefusedError(RefusalCode.BAD_MEMBERS, "no secure sum, and yet its members")
    return None


def _earlier_answer(header: ProbeHeader, request_digest: str, outbox: Outbox) -> bytes | None:
    stored = outbox.stored(
        contract_digest=header.contract_digest, round=header.round, attempt=header.attempt
    )
    if stored is None:
        return None
    earlier = decode(stored).header
    if not isinstance(earlier, SummaryHeader):
        raise ValueError("the outbox holds something else than a summary")
    if earlier.request_digest != request_digest:
        raise RefusedError(
            RefusalCode.ROUND_REUSED, f"round {header.round} was answered for another request"
        )
    return stored


def _refuse_bad_weights(header: ProbeHeader, weights: FloatArray, outbox: Outbox) -> None:
    last = None
    if header.kind == "local-steps":
        last = outbox.last_weights(contract_digest=header.contract_digest, before=header.round)
    violation = weights_violation(
        weights,
        contract=header.contract,
        kind=header.kind,
        network=header.network,
        round=header.round,
        last=last,
    )
    if violation is not None:
        raise RefusedError(RefusalCode.BAD_WEIGHTS, violation)


def _status(settings: SiteSettings, cohort: Cohort | None, outbox: Outbox) -> StatusHeader:
    patients = 0 if cohort is None else cohort.patients
    return StatusHeader(
        site=settings.name,
        version=package_version(),
        device=str(device()),
        ready=patients >= settings.policy.min_patients,
        patients_at_least=patient_bucket(patients),
        answered=outbox.answered(),
    )


def package_version() -> str:
    """The installed version; "unknown" where the package is used without being installed."""
    try:
        return version("fedstill")
    except PackageNotFoundError:
        return "unknown"
