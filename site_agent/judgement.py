"""Figures that a site gives once a run is over: of networks on patients kept back, and of images.

A contract is judged once. The first ``evaluate`` and the first ``veto-query`` are answered, those
same bytes are answered again, and any other is refused: whoever chooses the next question by the
last answer gets none. Figures are over all patients kept back, never over one, and coarse
(``shared.judging``); both go through the policy, the quotas, the ledger's list of what left, the
audit log and the outbox, as summaries do.
"""

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from shared.gradients import request_seed
from shared.judging import EvaluateHeader, EvaluationHeader, VetoHeader, VetoQueryHeader
from shared.messages import (
    FloatArray,
    Message,
    RefusalCode,
    decode,
    encode,
    patient_bucket,
    payload_digest,
)
from shared.tasks.degradation import parts
from site_agent.audit import AuditLog
from site_agent.cohort import Cohort
from site_agent.consent import fit_cohort, kept_back, obey_policy, refuse_unsigned
from site_agent.evaluation import figures_of_networks
from site_agent.events import Event, note
from site_agent.guards import judged_violation
from site_agent.incidents import RefusedError
from site_agent.ledger import Ledger, record_judgement
from site_agent.outbox import Entry, Judgement, Outbox
from site_agent.quota import refuse_beyond_judgements, refuse_beyond_quota
from site_agent.settings import SiteSettings
from site_agent.summaries import device, images_of
from site_agent.veto import compared

ANSWER_BYTES = 4096
"""Held against a quota of bytes: an answer is hardly more than its header."""
IMAGE_RANGE = (-1.0, 2.0)
"""Window units an image may have: networks overshoot a little."""


def judge(
    header: EvaluateHeader | VetoQueryHeader,
    arrays: Mapping[str, FloatArray],
    *,
    request_digest: str,
    settings: SiteSettings,
    cohort: Cohort | None,
    outbox: Outbox,
    audit: AuditLog,
) -> bytes:
    """The encoded answer. Raises ``RefusedError``."""
    started = time.monotonic()
    contract, digest, policy = header.contract, header.contract_digest, settings.policy
    refuse_unsigned(header, policy)
    obey_policy(contract, policy, round=1, probes=1)
    kind: Judgement = "evaluation" if isinstance(header, EvaluateHeader) else "veto"
    place = contract.rounds + (1 if kind == "evaluation" else 2)
    stored = outbox.stored(contract_digest=digest, round=place)
    if stored is not None:
        told = decode(stored).header
        if not isinstance(told, EvaluationHeader | VetoHeader):
            raise ValueError("the outbox holds something else than figures")
        if told.request_digest != request_digest:
            raise RefusedError(RefusalCode.ROUND_REUSED, f"the contract's {kind} was given before")
        audit.append("repeated", contract=digest, round=place, answer=payload_digest(stored))
        note(Event.REPEATED, contract=digest[:16], round=place)
        return stored
    kept, used = kept_back(contract, cohort, settings), fit_cohort(contract, cohort, settings)
    refuse_beyond_quota(policy, outbox, size_bytes=ANSWER_BYTES)
    refuse_beyond_judgements(policy, outbox)
    if isinstance(header, EvaluateHeader):
        _refuse_bad_networks(header, arrays, settings, outbox)
    else:
        _refuse_bad_images(header, arrays)
    record_judgement(contract, place=place, ledger=Ledger(settings.ledger_path), outbox=outbox)
    where, about = device(), (contract.task.size_px, *contract.task.window)
    patients = images_of(kept, *about, where)
    figures: dict[str, object]
    if isinstance(header, EvaluateHeader):
        psnr_db, ssim = figures_of_networks(
            contract,
            weights=arrays["weights"],
            anchor=arrays.get("anchor"),
            patients=patients,
            seed=request_seed(digest, "evaluate", settings.name),
            device=where,
        )
        bucket = patient_bucket(kept.patients)
        figures = {"psnr_db": psnr_db, "ssim": ssim, "patients_at_least": bucket}
    else:
        verdict = compared(
            arrays["candidates"],
            arrays["replaced"],
            used=images_of(used, *about, where),
            kept=patients,
            at_most=policy.max_likeness_ratio,
        )
        figures = dict(vars(verdict))
    seconds = round(time.monotonic() - started, 3)
    head = audit.append(
        "judged",
        contract=digest,
        name=contract.name,
        kind=kind,
        numbers=hashlib.sha256(repr(sorted(figures.items())).encode()).hexdigest(),
    )
    answer = EvaluationHeader if kind == "evaluation" else VetoHeader
    encoded = encode(
        Message(
            header=answer.model_validate(
                {
                    **figures,
                    "site": settings.name,
                    "contract_digest": digest,
                    "request_digest": request_digest,
                    "seconds": seconds,
                    "audit_head": head,
                }
            )
        )
    )
    outbox.store(
        encoded,
        contract_digest=digest,
        round=place,
        entry=Entry(
            contract=digest,
            name=contract.name,
            round=place,
            answered=datetime.now(UTC),
            kind=kind,
            granularity=contract.granularity,
            noised=False,
            shape=(len(arrays["weights" if kind == "evaluation" else "candidates"]),),
            gradients=0,
            seconds=seconds,
            bytes=len(encoded),
            digest=payload_digest(encoded),
        ),
    )
    note(
        Event.ANSWERED,
        contract=digest[:16],
        round=place,
        kind=kind,
        bytes=len(encoded),
        seconds=seconds,
    )
    return encoded


def _refuse_bad_networks(
    header: EvaluateHeader,
    arrays: Mapping[str, FloatArray],
    settings: SiteSettings,
    outbox: Outbox,
) -> None:
    """Raises ``RefusedError``: too many, or none that honest training gives."""
    contract, weights, anchor = header.contract, arrays.get("weights"), arrays.get("anchor")
    if weights is None or weights.ndim != 2 or not set(arrays) <= {"weights", "anchor"}:
        raise RefusedError(RefusalCode.BAD_WEIGHTS, "not a (K, D) array of weights")
    networks = len(weights) + (anchor is not None)
    if networks > settings.policy.max_evaluated:
        raise RefusedError(
            RefusalCode.POLICY,
            f"{networks} networks exceed policy.max_evaluated {settings.policy.max_evaluated}",
        )
    last = outbox.last_weights(
        contract_digest=header.contract_digest, before=contract.anchor.rounds + 1
    )
    violation = judged_violation(weights, anchor, contract=contract, last=last)
    if violation is not None:
        raise RefusedError(RefusalCode.BAD_WEIGHTS, violation)


def _refuse_bad_images(header: VetoQueryHeader, arrays: Mapping[str, FloatArray]) -> None:
    """Raises ``RefusedError`` where the arrays are not the contract's pairs, or not asked for."""
    contract = header.contract
    if not contract.evaluation.veto:
        raise RefusedError(RefusalCode.POLICY, "the contract asks for no veto")
    size = contract.task.size_px
    shape = (contract.images * len(parts(contract.task)), 1, size, size)
    low, high = IMAGE_RANGE
    if set(arrays) != {"candidates", "replaced"}:
        raise RefusedError(RefusalCode.BAD_IMAGES, "not candidates, and what they replace")
    for name, images in arrays.items():
        if images.shape != shape:
            raise RefusedError(RefusalCode.BAD_IMAGES, f"{name} of {images.shape}, not {shape}")
        if not bool(np.isfinite(images).all()) or images.min() < low or images.max() > high:
            raise RefusedError(RefusalCode.BAD_IMAGES, f"{name} hold no images in window units")
