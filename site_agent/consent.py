"""What a site agrees to before it looks at an array: digest, policy, members, cohort, quota.

A dry run asks for just this, for a contract as a whole.
"""

from shared.contract import RunContract
from shared.messages import (
    DryRunHeader,
    DryRunQueryHeader,
    KeyQueryHeader,
    ProbeHeader,
    RefusalCode,
    patient_bucket,
)
from shared.networks import parameter_count
from site_agent.cohort import Cohort
from site_agent.enrolment import signing_key
from site_agent.incidents import RefusedError, incident_of
from site_agent.ledger import Ledger, refuse_beyond_budget
from site_agent.membership import Membership
from site_agent.outbox import Outbox
from site_agent.policy import Policy, contract_violation, modality_violation, request_violation
from site_agent.quota import gradients_left, refuse_beyond_quota
from site_agent.settings import SiteSettings


def verdict(
    query: DryRunQueryHeader, *, settings: SiteSettings, cohort: Cohort | None, outbox: Outbox
) -> DryRunHeader:
    """Whether the contract would be answered from here to its end, as things stand now."""
    contract, policy, code, incident = query.contract, settings.policy, None, None
    try:
        refuse_other_digest(query)
        obey_policy(contract, policy, round=1, probes=len(contract.probes.depths))
        if contract.granularity == "federation":
            membership_of(settings, outbox).refuse_members(contract)
        fit = fit_cohort(contract, cohort, settings)
        left = gradients_left(contract, cohort=fit, policy=policy, outbox=outbox)
        refuse_beyond_quota(policy, outbox, gradients=left)
        refuse_beyond_budget(contract, ledger=Ledger(settings.ledger_path), policy=policy)
    except RefusedError as error:
        code, incident = error.code, incident_of(error.code, error)
    return DryRunHeader(
        site=settings.name,
        contract_digest=query.contract_digest,
        code=code,
        incident=incident,
        patients_at_least=patient_bucket(0 if cohort is None else cohort.patients),
    )


def membership_of(settings: SiteSettings, outbox: Outbox) -> Membership:
    """The site as a member of secure sums."""
    return Membership(outbox.folder, settings.name, signing_key(settings), settings.policy.peers)


def refuse_other_digest(header: ProbeHeader | KeyQueryHeader | DryRunQueryHeader) -> None:
    """Raises ``RefusedError`` where a header names another contract than it carries."""
    if header.contract_digest != header.contract.digest():
        raise RefusedError(RefusalCode.DIGEST_MISMATCH, "header and contract disagree")


def fit_cohort(contract: RunContract, cohort: Cohort | None, settings: SiteSettings) -> Cohort:
    """The cohort, if it fits the contract. Raises ``RefusedError`` where it does not."""
    if cohort is None:
        raise RefusedError(RefusalCode.NO_COHORT, "nothing is indexed: run `site-agent index`")
    violation = modality_violation(
        contract, offered=settings.modality, indexed=cohort.index.modality
    )
    if violation is not None:
        raise RefusedError(RefusalCode.WRONG_MODALITY, violation)
    # Beyond the site's own minimum by buckets alone: contracts with one minimum after the other,
    # each refused at no cost, would else count the patients.
    known = cohort.patients
    if contract.min_patients > settings.policy.min_patients:
        known = patient_bucket(known)
    if known < contract.min_patients:
        raise RefusedError(
            RefusalCode.TOO_FEW_PATIENTS,
            f"{cohort.patients} patients, which counts as {known}; the contract wants "
            f"{contract.min_patients}",
        )
    return cohort


def obey_policy(contract: RunContract, policy: Policy, *, round: int, probes: int) -> None:
    """Raises ``RefusedError`` where ``policy`` forbids so many weight vectors in a round."""
    parameters = max(parameter_count(contract.student), parameter_count(contract.anchor_network))
    violation = contract_violation(policy, contract, parameters=parameters) or request_violation(
        policy, contract, round=round, probes=probes
    )
    if violation is not None:
        raise RefusedError(RefusalCode.POLICY, violation)
