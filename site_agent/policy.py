"""The site's own limits on what a run may ask of its images."""

import hashlib
from typing import Literal, get_args

from pydantic import Field

from shared.accounting import LEAST_DELTA
from shared.contract import Granularity, Hex32, RunContract
from shared.enrolment import MAX_COORDINATORS
from shared.frozen import Frozen, canonical_json
from shared.mandate import Mandate
from shared.messages import MAX_PATIENTS
from shared.tasks.settings import Modality, MultiTask

PhysicalTask = Literal["ct-denoise", "ct-sr", "ct-kernel", "mr-denoise", "mr-sr", "mr-undersampled"]
"""A task by itself; a multi-task is allowed where all its parts are."""
Family = Literal["residual", "dncnn", "red-cnn", "edsr", "unet"]
"""A kind of network that gradients are taken of."""


class Policy(Frozen):
    """Limits the hospital sets in ``policy.toml``; a request beyond any of them is refused."""

    min_patients: int = Field(
        5, ge=2, le=10_000, description="patients that must stand behind every summary"
    )
    max_local_steps: int = Field(
        1000, ge=0, le=5_000, description="local optimiser steps a request may ask for"
    )
    max_probes: int = Field(
        64, ge=1, le=4_096, description="weight vectors (gradients) in one request"
    )
    max_requests_an_hour: int = Field(
        60, ge=1, le=1_000_000, description="requests answered in an hour, repetitions not counted"
    )
    max_requests_a_day: int = Field(
        1000, ge=1, le=1_000_000, description="the same in any 24 hours"
    )
    max_compute_hours_a_day: float | None = Field(
        None, gt=0, description="hours spent computing answers in any 24 hours; none: no limit"
    )
    max_bytes_a_day: int | None = Field(
        None, ge=1, description="bytes of answers in any 24 hours; none: no limit"
    )
    max_gradients: int | None = Field(
        None, ge=1, description="gradients and descents released in all; none: no limit"
    )
    max_rounds: int = Field(128, ge=1, le=10_000, description="rounds of one contract")
    max_parameters: int = Field(
        2_000_000, ge=1, le=100_000_000, description="parameters of a contract's networks"
    )
    tasks: tuple[PhysicalTask, ...] = Field(
        get_args(PhysicalTask), description="tasks the site takes part in"
    )
    networks: tuple[Family, ...] = Field(
        get_args(Family), description="kinds of networks that gradients are taken of"
    )
    max_probe_clip: float | None = Field(
        None, gt=0, description="length to which one patient's gradient may be clipped; none: any"
    )
    max_anchor_clip: float | None = Field(
        None, gt=0, description="length to which a descent may be clipped; none: any"
    )
    granularities: tuple[Granularity, ...] = Field(
        ("cohort", "federation"),
        description="what a summary may stand for: the cohort's mean, one patient, many sites' sum",
    )
    coordinators: tuple[Hex32, ...] | None = Field(
        None,
        max_length=MAX_COORDINATORS,
        description="keys whose owners' contracts are answered; none, which a file cannot say: any",
    )
    peers: tuple[Hex32, ...] = Field(
        (), description="signing keys of the sites to add up with in a secure sum; empty: any"
    )
    max_patients: int = Field(
        256, ge=2, le=MAX_PATIENTS, description="patients in an answer at granularity patient"
    )
    max_epsilon: float | None = Field(
        None, gt=0, description="privacy loss a contract may have; none: also one without noise"
    )
    epsilon_budget: float | None = Field(
        None, gt=0, description="privacy loss of all contracts together; none: no limit"
    )
    delta: float = Field(
        1e-5,
        ge=LEAST_DELTA,
        le=0.01,
        description="largest delta a contract may have, and the one the budget is counted at",
    )
    held_out_share: float = Field(
        0.2,
        ge=0,
        le=0.5,
        description="patients kept back where a contract is judged at the sites; 0: none is judged",
    )
    max_evaluated: int = Field(
        16, ge=1, le=64, description="networks whose figures one contract may ask for"
    )
    max_judgements_a_day: int = Field(
        10, ge=1, le=1_000_000, description="answers about networks and images in any 24 hours"
    )
    answers_veto: bool = Field(
        True, description="compare a contract's images with the site's patients where it asks"
    )
    max_likeness_ratio: float = Field(
        1.05, ge=1, le=2, description="likeness to patients over that of the prior, for the veto"
    )
    max_honest: float = Field(
        0.5, gt=0, le=1, description="share of a secure sum's sites trusted to add their noise"
    )

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: two policies that allow the same have the same."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def contract_violation(policy: Policy, contract: RunContract, *, parameters: int) -> str | None:
    """Why ``policy`` forbids ``contract``; None if it does not.

    ``parameters`` is the size of the contract's larger network. The text is for the site's own log:
    the aggregator learns the code alone.
    """
    task = contract.task
    for part in task.parts if isinstance(task, MultiTask) else (task,):
        if part.name not in policy.tasks:
            return f"task {part.name} is not among policy.tasks"
    if contract.granularity not in policy.granularities:
        return f"granularity {contract.granularity} is not among policy.granularities"
    if contract.min_patients < policy.min_patients:
        return (
            f"contract's min_patients {contract.min_patients} is below "
            f"policy.min_patients {policy.min_patients}"
        )
    if contract.anchor.rounds and contract.anchor.local_steps > policy.max_local_steps:
        return (
            f"anchor.local_steps {contract.anchor.local_steps} exceeds "
            f"policy.max_local_steps {policy.max_local_steps}"
        )
    if contract.rounds > policy.max_rounds:
        return f"{contract.rounds} rounds exceed policy.max_rounds {policy.max_rounds}"
    for network in (contract.student, contract.anchor_network):
        if network.kind not in policy.networks:
            return f"network {network.kind} is not among policy.networks"
    if parameters > policy.max_parameters:
        return (
            f"a network of {parameters} parameters exceeds "
            f"policy.max_parameters {policy.max_parameters}"
        )
    return (
        clip_violation(policy, contract)
        or privacy_violation(policy, contract)
        or evaluation_violation(policy, contract)
    )


def mandate_violation(policy: Policy, mandate: Mandate | None, *, digest: str) -> str | None:
    """Why ``policy`` takes no contract of this digest under ``mandate``; None if it does."""
    if policy.coordinators is None:
        return None
    if mandate is None:
        return "the contract is not signed by a coordinator"
    if mandate.coordinator not in policy.coordinators:
        return f"the coordinator's key {mandate.coordinator} is not among policy.coordinators"
    if not mandate.covers(digest):
        return f"the signature of coordinator {mandate.coordinator} is not of this contract"
    return None


def clip_violation(policy: Policy, contract: RunContract) -> str | None:
    """Why ``policy`` forbids how little ``contract`` clips; None if it does not."""
    for asked, own, clip, limit in (
        (contract.probes.requests, "probes", contract.probes.clip_norm, policy.max_probe_clip),
        (contract.anchor.rounds, "anchor", contract.anchor.clip_norm, policy.max_anchor_clip),
    ):
        if asked and limit is not None and clip > limit:
            name = "max_probe_clip" if own == "probes" else "max_anchor_clip"
            return f"{own}.clip_norm {clip:g} exceeds policy.{name} {limit:g}"
    return None


def evaluation_violation(policy: Policy, contract: RunContract) -> str | None:
    """Why ``policy`` forbids that ``contract`` is judged at the site; None if it does not."""
    if contract.evaluation.sites and not policy.held_out_share:
        return "the contract asks for evaluation.sites, policy.held_out_share is 0"
    if contract.evaluation.veto and not policy.answers_veto:
        return "the contract asks for evaluation.veto, policy.answers_veto is false"
    return None


def privacy_violation(policy: Policy, contract: RunContract) -> str | None:
    """Why ``policy`` forbids the noise of ``contract``, or its absence; None if it does not.

    What was spent before is the ledger's to say: :func:`site_agent.ledger.charge_for`.
    """
    privacy = contract.privacy
    if privacy.epsilon is None:
        for limit in ("max_epsilon", "epsilon_budget"):
            if getattr(policy, limit) is not None:
                return f"the contract has no privacy.epsilon, which policy.{limit} limits"
        return None
    if policy.max_epsilon is not None and privacy.epsilon > policy.max_epsilon:
        return (
            f"privacy.epsilon {privacy.epsilon:g} exceeds policy.max_epsilon {policy.max_epsilon:g}"
        )
    if privacy.delta > policy.delta:
        return f"privacy.delta {privacy.delta:g} exceeds policy.delta {policy.delta:g}"
    if privacy.noise == "distributed" and privacy.honest > policy.max_honest:
        return f"privacy.honest {privacy.honest:g} exceeds policy.max_honest {policy.max_honest:g}"
    return None


def request_violation(
    policy: Policy, contract: RunContract, *, round: int, probes: int
) -> str | None:
    """Why ``policy`` forbids ``probes`` weight vectors in ``round``; None if it does not."""
    if round > contract.rounds:
        return f"round {round} is beyond the contract's {contract.rounds}"
    if probes > policy.max_probes:
        return f"{probes} weight vectors exceed policy.max_probes {policy.max_probes}"
    return None


def modality_violation(
    contract: RunContract, *, offered: Modality, indexed: Modality
) -> str | None:
    """Why a site that offers one modality, and has indexed one, has no images for ``contract``."""
    wanted = contract.task.modality
    if offered != wanted:
        return f"the contract is for {wanted}, site.toml offers {offered}"
    if indexed != wanted:
        return f"site.toml offers {offered}, the cohort holds {indexed}: run `site-agent index`"
    return None
