"""What a release may say about privacy: one sentence a mode, and the figures behind it.

``privacy.json`` and ``PRIVACY.md`` of a release follow from the contract, the run's counts and,
where somebody measured, the attacks on this run (``attacks.json``, of `aggregator attack`). Nothing
is claimed that the mechanism does not give: distilling data protects nobody (Carlini et al., arXiv
2209.14987), and clear gradients are known to tell much of their images.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from aggregator.attacks.tables import markdown
from shared.accounting import Spent, epsilon_of
from shared.contract import Hex32, RunContract

FORMAT = "fedstill-privacy/1"

CLEAR = {
    "patient": (
        "Gradients of single patients left the hospitals in the clear: no privacy is claimed, and "
        "such a gradient can tell its patient from others."
    ),
    "cohort": (
        "Every summary that left a hospital was a mean over at least {minimum} of its patients; "
        "beyond that no privacy is claimed, and whether a person was among them can be inferred."
    ),
    "federation": (
        "Nobody outside a hospital, the aggregator included, learned more than the sum over at "
        "least three hospitals, as long as the named members are hospitals that follow the "
        "protocol; of that sum no privacy is claimed, and whether a person was in it can be "
        "inferred."
    ),
}
"""What each mode may claim without noise; ``{minimum}`` is the contract's min_patients."""

NOISED = (
    "The whole run is ({epsilon:g}, {delta:g})-differentially private for each patient: whoever "
    "sees {seen} can hardly tell whether that patient's images were used at all."
)
SEEN = {
    "patient": "the summaries, one noised gradient a patient,",
    "cohort": "every summary a hospital sent, and the release,",
    "federation": "the sums the aggregator learned, and the release,",
}
HONEST = (
    " This holds as long as at least {share:.0%} of the members added their share of the noise and "
    "keep it to themselves."
)
PRESENCE = (
    " That a patient is one of those asked is not hidden at this granularity; what the images show "
    "is."
)

TITLES = {
    "inversion": "Inversion: how much better images reconstructed from summaries are than the best "
    "guess without them (PSNR in dB, SSIM)",
    "identification": "Identification: how often the true one of 20 candidates comes first",
    "membership": "Membership: who took part (an AUC of 0.5 is chance)",
    "copying": "Copying: likeness of the released images to participants and to others",
    "byzantine": "Bad sites: what one lying site of five costs",
}

CAVEATS = (
    "Differential privacy, where it is claimed, is of a patient's images in this run. What the "
    "same hospital released in other runs adds up in the hospital's own ledger, not here.",
    "That a hospital has at least the minimum of patients is public: it answers only then.",
    "An attack that failed shows that this attack failed, not that none succeeds.",
    "The prior's images are of nobody enrolled; a public volume's person is protected by its "
    "licence and source alone.",
)


class Finding(BaseModel):
    """What one attack found; its time and whatever else it notes are not published."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    rows: list[dict[str, Any]]
    control: list[dict[str, Any]] = []
    control_succeeded: bool | None = None
    passed: bool | None = None

    @field_validator("control", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value or []


class Attacks(BaseModel):
    """``attacks.json`` of a run, as `aggregator attack` writes it; site names are left out."""

    model_config = ConfigDict(frozen=True)
    format: Literal["fedstill-attacks/1"]
    foundation: Hex32
    quick: bool
    split: str | None = None
    attacks: dict[str, Finding]

    @field_validator("attacks")
    @classmethod
    def _known(cls, value: dict[str, Finding]) -> dict[str, Finding]:
        if unknown := sorted(set(value) - set(TITLES)):
            raise ValueError(f"unknown attacks: {', '.join(unknown)}")
        return value


def claim(contract: RunContract) -> str:
    """The one sentence (or two) that a release of this contract may claim."""
    privacy = contract.privacy
    if privacy.epsilon is None:
        return CLEAR[_mode(contract)].format(minimum=contract.min_patients)
    text = NOISED.format(
        epsilon=privacy.epsilon, delta=privacy.delta, seen=SEEN[contract.granularity]
    )
    if privacy.noise == "distributed":
        text += HONEST.format(share=privacy.honest)
    if contract.granularity == "patient":
        text += PRESENCE
    return text


def privacy_facts(
    *,
    contract: RunContract,
    result: Mapping[str, Any],
    prior: Mapping[str, Any],
    attacks: Attacks | None,
) -> dict[str, Any]:
    """The content of ``privacy.json``; ``dp`` is null where the contract adds no noise."""
    return {
        "format": FORMAT,
        "contract_digest": contract.digest(),
        "mode": contract.granularity,
        "claim": claim(contract),
        "dp": _guarantee(contract, result),
        "minimum_patients": contract.min_patients,
        "secure_sum": contract.granularity == "federation",
        "summaries": {
            "requests": result["rounds"],
            "gradients_of_a_site": result.get("releases"),
            "directions": contract.privacy.directions or None,
            "basis": contract.privacy.basis,
            "sketch": contract.privacy.sketch or None,
        },
        "attacks": None
        if attacks is None
        else {
            "quick": attacks.quick,
            "found": {kind: found.model_dump() for kind, found in attacks.attacks.items()},
        },
        "prior": dict(prior),
        "caveats": list(CAVEATS),
    }


def privacy_page(facts: Mapping[str, Any]) -> str:
    """``PRIVACY.md``: the same for a person."""
    measured = _attacks(facts["attacks"]) or (
        "No attack was run against this release (`aggregator attack` does), so nothing is said "
        "about what one would find."
    )
    caveats = "\n".join(f"- {caveat}" for caveat in facts["caveats"])
    return f"""# Privacy of this release

{facts["claim"]}

| | |
|---|---|
{_rows(facts)}

## What attacks found

{measured}

## What this does not say

{caveats}
"""


def _mode(contract: RunContract) -> str:
    """At granularity patient only probes are of single patients."""
    of_patients = contract.granularity == "patient" and contract.probes.requests > 0
    return contract.granularity if of_patients or contract.granularity != "patient" else "cohort"


def _guarantee(contract: RunContract, result: Mapping[str, Any]) -> dict[str, Any] | None:
    privacy, multiplier = contract.privacy, contract.noise_multiplier
    if privacy.epsilon is None or multiplier is None:
        return None
    # A round of a secure sum that was repeated without a site that dropped out was noised twice.
    releases = max(int(result.get("attempts") or 0), contract.rounds)
    spent = Spent(noise_multiplier=multiplier, sampling=privacy.sampling, releases=releases)
    return {
        "epsilon": round(epsilon_of([spent], delta=privacy.delta), 4),
        "epsilon_of_the_contract": privacy.epsilon,
        "delta": privacy.delta,
        "unit": "patient",
        "neighbours": "one patient's images present or absent"
        if contract.granularity != "patient"
        else "one patient's gradients present or zero",
        "mechanism": "Gaussian noise on a sum of clipped contributions, one a patient and request",
        "accountant": "Gaussian differential privacy (Dong, Roth & Su 2022)"
        if privacy.sampling == 1
        else "privacy loss distribution of the Poisson-subsampled Gaussian",
        "noise_multiplier": multiplier,
        "releases": releases,
        "sampling": privacy.sampling,
        "noise": privacy.noise,
        "honest_members": privacy.honest if privacy.noise == "distributed" else None,
    }


def _attacks(attacks: Mapping[str, Any] | None) -> str:
    """The attacks' tables as Markdown, each with its control."""
    if not attacks:
        return ""
    parts = [_measured_on(attacks)]
    for kind, found in attacks["found"].items():
        parts.append(f"**{TITLES[kind]}**\n\n{markdown(found['rows'])}")
        control = found["control"]
        if control:
            parts.append(
                f"Positive control, an easier case of the same attack:\n\n{markdown(control)}"
            )
        if found["control_succeeded"] is False:
            parts.append("The control did not succeed: that the attack failed says nothing.")
        if found["passed"] is not None:
            parts.append("Within its bar." if found["passed"] else "**Beyond its bar.**")
    return "\n\n".join(parts)


def _measured_on(attacks: Mapping[str, Any]) -> str:
    quick = (
        " With a short effort (`--quick`): a longer one may find more." if attacks["quick"] else ""
    )
    return (
        "By `aggregator attack`, on images the coordinator had, by this contract: a simulation, "
        f"not these hospitals.{quick}"
    )


def _rows(facts: Mapping[str, Any]) -> str:
    guarantee, summaries = facts["dp"], facts["summaries"]
    rows = [
        ("a summary stands for", {"patient": "one patient", "cohort": "one hospital's patients"}),
        ("fewest patients behind a hospital's summary", facts["minimum_patients"]),
        ("secure sum over hospitals", "yes" if facts["secure_sum"] else "no"),
        ("requests to a hospital", summaries["requests"]),
        ("gradients a hospital released, at most", summaries["gradients_of_a_site"]),
        ("descents sent along so many public directions", summaries["directions"]),
        ("gradients sketched to so many numbers", summaries["sketch"]),
        (
            "differential privacy",
            "none"
            if guarantee is None
            else f"ε = {guarantee['epsilon']:g} at δ = {guarantee['delta']:g}, for each patient",
        ),
    ]
    stands = rows[0][1]
    assert isinstance(stands, dict)
    rows[0] = (rows[0][0], stands.get(facts["mode"], "all hospitals together"))
    if guarantee is not None:
        rows += [
            ("neighbouring data sets", guarantee["neighbours"]),
            (
                "noise multiplier, releases",
                f"{guarantee['noise_multiplier']:g}, {guarantee['releases']}",
            ),
            ("noise", guarantee["noise"]),
        ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows if value is not None)
