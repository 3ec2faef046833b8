"""What a site agrees to before it looks at an array: digest, policy, members, cohort, quota.

A dry run asks for just this, for a contract as a whole.
"""

from shared.contract import RunContract
from shared.judging import EvaluateHeader, VetoQueryHeader
from shared.messages import (
    DryRunHeader,
    DryRunQueryHeader,
    KeyQueryHeader,
    ProbeHeader,
    RefusalCode,
    patient_bucket,
)
from shared.networks import parameter_count
from shared.tasks.settings import REAL_PAIRS
from site_agent.cohort import Cohort, paired
from site_agent.enrolment import pseudonym_key, signing_key
from site_agent.incidents import RefusedError, incident_of
from site_agent.kept_back import LEAST, divided
from site_agent.ledger import Ledger, refuse_beyond_budget
from site_agent.membership import Membership
from site_agent.outbox import Outbox
from site_agent.policy import (
    Policy,
    contract_violation,
    mandate_violation,
    modality_violation,
    request_violation,
)
from site_agent.quota import gradients_asked, refuse_beyond_quota
from site_agent.settings import SiteSettings


def verdict(
    query: DryRunQueryHeader, *, settings: SiteSettings, cohort: Cohort | None, outbox: Outbox
) -> DryRunHeader:
    """Whether the contract would be answered from here to its end, as things stand now."""
    contract, policy, code, incident = query.contract, settings.policy, None, None
    try:
        refuse_unsigned(query, policy)
        obey_policy(contract, policy, round=1, probes=len(contract.probes.depths))
        if contract.granularity == "federation":
            membership_of(settings, outbox).refuse_members(contract)
        fit = fit_cohort(contract, cohort, settings)
        refuse_beyond_quota(policy, outbox)
        refuse_beyond_budget(
            contract,
            gradients=gradients_asked(contract, cohort=fit, policy=policy),
            ledger=Ledger(settings.ledger_path),
            outbox=outbox,
            policy=policy,
        )
    except RefusedError as error:
        code, incident = error.code, incident_of(error.code, error)
    return DryRunHeader(
        site=settings.name,
        contract_digest=query.contract_digest,
        code=code,
        incident=incident,
        patients_at_least=patient_bucket(_patients_for(contract, cohort, settings)),
    )


def membership_of(settings: SiteSettings, outbox: Outbox) -> Membership:
    """The site as a member of secure sums."""
    return Membership(outbox.folder, settings.name, signing_key(settings), settings.policy.peers)


def refuse_unsigned(
    header: ProbeHeader | KeyQueryHeader | DryRunQueryHeader | EvaluateHeader | VetoQueryHeader,
    policy: Policy,
) -> None:
    """Raises ``RefusedError`` where no coordinator of ``policy`` has signed a header's contract.

    Or where the header names another contract than it carries: the digest is what was signed.
    """
    digest = header.contract.digest()
    if header.contract_digest != digest:
        raise RefusedError(RefusalCode.DIGEST_MISMATCH, "header and contract disagree")
    violation = mandate_violation(policy, header.mandate, digest=digest)
    if violation is not None:
        raise RefusedError(RefusalCode.UNKNOWN_COORDINATOR, violation)


def fit_cohort(contract: RunContract, cohort: Cohort | None, settings: SiteSettings) -> Cohort:
    """Whoever can answer a contract. Raises ``RefusedError`` where they are too few."""
    if cohort is None:
        raise RefusedError(RefusalCode.NO_COHORT, "nothing is indexed: run `site-agent index`")
    violation = modality_violation(
        contract, offered=settings.modality, indexed=cohort.index.modality
    )
    if violation is not None:
        raise RefusedError(RefusalCode.WRONG_MODALITY, violation)
    able, kept = _able(contract, cohort, settings)
    patients = 0 if able is None else able.patients
    # Beyond the site's own minimum by buckets alone: contracts with one minimum after the other,
    # each refused at no cost, would else count the patients.
    known = patients
    if contract.min_patients > settings.policy.min_patients:
        known = patient_bucket(known)
    if able is None or known < contract.min_patients:
        real = contract.real_pairs
        kind = f" with real pairs ({REAL_PAIRS[contract.task.name]})" if real else ""
        raise RefusedError(
            RefusalCode.TOO_FEW_PAIRS if real else RefusalCode.TOO_FEW_PATIENTS,
            f"{patients} patients{kind}, which counts as {known}; the contract wants "
            f"{contract.min_patients}",
        )
    if contract.evaluation.sites and (kept is None or kept.patients < LEAST):
        raise RefusedError(
            RefusalCode.TOO_FEW_KEPT_BACK,
            f"{0 if kept is None else kept.patients} patients are kept back, {LEAST} are the "
            "least: policy.held_out_share says of how many",
        )
    return able


def kept_back(contract: RunContract, cohort: Cohort | None, settings: SiteSettings) -> Cohort:
    """The patients kept out of the contract's gradients, whom it is judged on.

    Raises ``RefusedError`` where they, or those who are not kept back, are too few, and where the
    contract is not judged at the sites.
    """
    if not contract.evaluation.sites:
        raise RefusedError(RefusalCode.POLICY, "the contract asks for no evaluation at the sites")
    fit_cohort(contract, cohort, settings)
    assert cohort is not None
    _, kept = _able(contract, cohort, settings)
    assert kept is not None
    return kept


def _able(
    contract: RunContract, cohort: Cohort, settings: SiteSettings
) -> tuple[Cohort | None, Cohort | None]:
    """The patients who can answer a contract, and those kept back for it to be judged on.

    All, or those who have the real pairs it asks for; nobody is kept back of a contract that is not
    judged at the sites.
    """
    able = paired(cohort, REAL_PAIRS[contract.task.name]) if contract.real_pairs else cohort
    if able is None or not contract.evaluation.sites:
        return able, None
    return divided(able, key=pseudonym_key(settings), share=settings.policy.held_out_share)


def _patients_for(contract: RunContract, cohort: Cohort | None, settings: SiteSettings) -> int:
    able = None if cohort is None else _able(contract, cohort, settings)[0]
    return 0 if able is None else able.patients


def obey_policy(contract: RunContract, policy: Policy, *, round: int, probes: int) -> None:
    """Raises ``RefusedError`` where ``policy`` forbids so many weight vectors in a round."""
    parameters = max(parameter_count(contract.student), parameter_count(contract.anchor_network))
    violation = contract_violation(policy, contract, parameters=parameters) or request_violation(
        policy, contract, round=round, probes=probes
    )
    if violation is not None:
        raise RefusedError(RefusalCode.POLICY, violation)
