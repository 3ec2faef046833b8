"""What a site gives in a time: answers, hours, bytes, held against policy.

Counted is what the outbox keeps, so that nothing an aggregator does can set it back; a repeated
answer counts once. All of it is known before an image is read. What is given in all is the
ledger's to count.
"""

import math
import time
from collections.abc import Sequence
from typing import get_args

from shared.contract import RunContract
from shared.messages import ProbeHeader, RefusalCode, values_shape
from site_agent.cohort import Cohort
from site_agent.incidents import RefusedError
from site_agent.outbox import Judgement, Outbox
from site_agent.policy import Policy

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
_NUMBER_BYTES = {"masked": 8, "values": 4}


def answer_shape(
    header: ProbeHeader, weights: Sequence[int], *, cohort: Cohort, policy: Policy
) -> tuple[int, ...]:
    """The shape that the answer to ``weights`` (K, D) is going to have."""
    patients = min(cohort.patients, policy.max_patients)
    if header.contract.privacy.epsilon is not None:
        patients = header.contract.privacy.patients
    return values_shape(header, tuple(weights), patients=patients)


def gradients_asked(contract: RunContract, *, cohort: Cohort, policy: Policy) -> int:
    """How many gradients and descents the rounds of a contract ask for, all together."""
    blocks = 1
    if contract.granularity == "patient":
        blocks = min(cohort.patients, policy.max_patients)
        if contract.privacy.epsilon is not None:
            blocks = contract.privacy.patients
    probes = contract.probes.requests * len(contract.probes.depths) * blocks
    return contract.anchor.rounds + probes


def refuse_beyond_quota(policy: Policy, outbox: Outbox, *, size_bytes: int = 0) -> None:
    """Refuses one more answer, of so many bytes, that a quota does not allow.

    Raises ``RefusedError``: ``too-often``.
    """
    now = time.time()
    for period, seconds, allowed in (
        ("an hour", HOUR_S, policy.max_requests_an_hour),
        ("a day", DAY_S, policy.max_requests_a_day),
    ):
        answered = outbox.answered(since=now - seconds)
        if answered >= allowed:
            raise RefusedError(
                RefusalCode.TOO_OFTEN,
                f"{answered} answers in {period}, the policy allows {allowed}",
            )
    if policy.max_compute_hours_a_day is not None or policy.max_bytes_a_day is not None:
        _refuse_beyond_the_days(policy, outbox, since=now - DAY_S, size_bytes=size_bytes)


def refuse_beyond_judgements(policy: Policy, outbox: Outbox) -> None:
    """Refuses one more answer about networks or images than policy allows in a day.

    Raises ``RefusedError``: ``too-often``.
    """
    kinds = get_args(Judgement)
    given = sum(one.kind in kinds for one in outbox.entries(since=time.time() - DAY_S))
    if given >= policy.max_judgements_a_day:
        raise RefusedError(
            RefusalCode.TOO_OFTEN,
            f"{given} answers about networks and images in a day, "
            f"policy.max_judgements_a_day is {policy.max_judgements_a_day}",
        )


def size_of(shape: Sequence[int], *, masked: bool) -> int:
    """Bytes of an answer's numbers; its header comes on top."""
    return (math.prod(shape) + masked) * _NUMBER_BYTES["masked" if masked else "values"]


def gradients_in(shape: Sequence[int]) -> int:
    """How many gradients or descents an answer of this shape, (K, R) or (P, K, R), holds."""
    return math.prod(shape[:-1])


def _refuse_beyond_the_days(
    policy: Policy, outbox: Outbox, *, since: float, size_bytes: int
) -> None:
    today = list(outbox.entries(since=since))
    hours, allowed_hours = (
        sum(one.seconds for one in today) / HOUR_S,
        policy.max_compute_hours_a_day,
    )
    if allowed_hours is not None and hours >= allowed_hours:
        raise RefusedError(
            RefusalCode.TOO_OFTEN,
            f"{hours:.2f} hours of computing in a day, the policy allows {allowed_hours:g}",
        )
    left, allowed_bytes = sum(one.bytes for one in today), policy.max_bytes_a_day
    if allowed_bytes is not None and left + size_bytes > allowed_bytes:
        raise RefusedError(
            RefusalCode.TOO_OFTEN,
            f"{size_bytes} bytes after {left} in a day, the policy allows {allowed_bytes}",
        )
