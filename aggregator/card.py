"""The words of a release: its provenance as JSON and its card as Markdown.

Both follow from the contract and the run's result alone, so that equal runs give equal bytes, and
neither names a hospital. What they claim is what was done and measured, nothing more.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from aggregator.privacy_report import claim
from aggregator.worth import Utility, plain, worth
from shared.architectures import in_words
from shared.contract import PriorSource, RunContract
from shared.release.facts import (
    task_facts,
    task_labels,
    task_tags,
    task_title,
    window_in_words,
    window_unit,
)
from shared.tasks.settings import Task

LICENSE = "CC-BY-4.0"
"""SPDX identifier under which releases are published."""
METHOD = "arXiv:2511.13106"
CITATION = """@misc{lowleveldd2025,
  title         = {Low-Level Dataset Distillation for Medical Image Enhancement},
  year          = {2025},
  eprint        = {2511.13106},
  archivePrefix = {arXiv}
}"""
PUBLIC_VOLUMES = (
    "public volumes, which the coordinator states to be openly licensed and of nobody enrolled"
)
CONSENTED_VOLUME = "the volume of a consenting person, who is enrolled at no site"
PERSONAS = {
    "federation": "the mean gradient of all sites",
    "cohort": "one site's mean gradient",
    "patient": "the gradient of one patient, or the mean of a few",
}
DISTANCES = {
    "l2": "squared distance of whole gradients",
    "cosine": "filter-wise cosine distance (Zhao et al. 2021)",
    "cosine-norm": "filter-wise cosine distance and the norms' log ratio",
    "snr": "squared distance weighted by signal over noise",
}


def provenance(
    *,
    contract: RunContract,
    pairs: int,
    sites: int,
    rounds: int,
    prior: Mapping[str, Any],
    guarantee: Mapping[str, Any] | None,
    utility: Utility | None,
) -> dict[str, Any]:
    """The predicate of provenance.json; ``prior`` is what the run says of its images' start.

    ``guarantee`` is the ``dp`` of ``privacy.json``.
    """
    return {
        "code": {"name": "fedstill", "version": version("fedstill")},
        "contract": contract.model_dump(mode="json"),
        "contract_digest": contract.digest(),
        "license": LICENSE,
        "method": {"follows": METHOD},
        "pairs": pairs,
        "prior": dict(prior),
        "privacy": {
            "dp": guarantee,
            "granularity": contract.granularity,
            "min_patients": contract.min_patients,
            "statement": claim(contract),
        },
        "rounds": rounds,
        "seeds": {"run": contract.seed},
        "sites": sites,
        "synthetic": True,
        "utility": utility.model_dump(mode="json") if utility else None,
    }


def card(*, contract: RunContract, provenance: Mapping[str, Any], utility: Utility | None) -> str:
    """README.md of a release, with the front matter that Hugging Face's ``datasets`` reads."""
    pairs, sites = provenance["pairs"], provenance["sites"]
    sections = [
        _front_matter(contract, pairs=pairs),
        f"# {contract.name}\n\n{_what_it_is(contract, pairs=pairs, sites=sites)}",
        f"![Contact sheet of the pairs](contact-sheet.png)\n\n{_files(contract.task)}",
        f"## How it was made\n\n{_how_made(contract, provenance)}",
        f"## What it is worth\n\n{worth(utility)}",
        f"## Privacy\n\n{_privacy(contract, provenance)}",
        f"## Use and misuse\n\n{_USE}",
        f"## Licence and citation\n\n{_citation(contract)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(contract: RunContract, *, pairs: int) -> str:
    size = "n<1K" if pairs < 1000 else "1K<n<10K"
    tags = "\n".join(f"- {tag}" for tag in ("medical", *task_tags(contract.task)))
    return f"""---
pretty_name: {contract.name}
license: {LICENSE.lower()}
task_categories:
- image-to-image
size_categories:
- {size}
tags:
{tags}
- dataset-distillation
- federated-learning
- synthetic
configs:
- config_name: default
  data_files:
  - split: train
    path: pairs.parquet
---"""


def _what_it_is(contract: RunContract, *, pairs: int, sites: int) -> str:
    task = contract.task
    size, prior = task.size_px, prior_in_words(contract.prior)
    return (
        f"{pairs} synthetic pairs of a low-quality (LQ) and a high-quality (HQ) {task.modality} "
        f"image, {size} × {size} pixels, distilled from gradients that {sites} "
        f"{'site' if sites == 1 else 'sites'} computed on images that stayed there. The pairs "
        f"are meant to train an image enhancement network: {task_title(task)}. Their anatomy is "
        f"the prior's ({prior}); what they look like has no meaning beyond training."
    )


def prior_in_words(prior: PriorSource) -> str:
    """Where the distilled images start."""
    texture = "textured" if prior.textured else "without texture"
    phantoms = f"procedural {prior.anatomy} phantoms, {texture}: drawn by a program, of no person"
    return {
        "phantom": phantoms,
        "public": PUBLIC_VOLUMES,
        "both": f"half {PUBLIC_VOLUMES}; half {phantoms}",
        "consented": CONSENTED_VOLUME,
    }[prior.kind]


def _files(task: Task) -> str:
    low, high = task.window
    labels = ", ".join(f"`{label}`" for label in task_labels(task))
    return f"""| file | content |
|---|---|
| `pairs.safetensors` | `lq`, `hq`: float32 (N, 1, {task.size_px}, {task.size_px}), exact; \
{window_in_words(task)}; `task`: int32 (N), which of {labels} a pair is of |
| `pairs.parquet` | `id`, `task`, `lq`, `hq` (16-bit PNG), `window_low`, `window_high`, \
`window_unit`; stored value = {low:g} + level / 65535 × {high - low:g} {window_unit(task)}, values \
outside the window are clipped |
| `croissant.json` | the same as Croissant 1.1, for `mlcroissant` and its kin |
| `provenance.json` | an in-toto statement: the contract, the prior, what was measured |
| `PRIVACY.md`, `privacy.json` | what left the hospitals, what is claimed, what attacks found |
| `MANIFEST.json`, `VERSION.json`, `*.sig`, `*.minisig`, `SHA256SUMS` | what belongs to this \
release, signed |

`distilled verify FOLDER` checks all of it, `distilled train FOLDER --evaluate IMAGES` fits a \
network on it, and `shared.release.dataset.DistilledPairs(FOLDER)` is a PyTorch dataset."""


def _targets(contract: RunContract) -> str:
    """What the HQ images of a release are."""
    if not contract.anchor.rounds:
        return "the distilled images themselves"
    mean = " (mean over the square's eight symmetries)" if contract.anchor.symmetric else ""
    return (
        f"what {in_words(contract.anchor_network)}, trained by all sites together, makes of the "
        f"LQ images{mean}: smoother than a scan"
    )


def _how_made(contract: RunContract, provenance: Mapping[str, Any]) -> str:
    anchor, probes = contract.anchor, contract.probes
    facts = [
        *task_facts(contract.task),
        ("HQ", _targets(contract)),
        ("made for", in_words(contract.student)),
        ("prior", prior_in_words(contract.prior)),
        ("prior, licence", contract.prior.license),
        ("prior, statement", contract.prior.statement),
        *((f"prior, {key}", _value(part)) for key, part in _unsaid(contract.prior, provenance)),
        ("personalised", _personalised(contract)),
        ("sites", str(provenance["sites"])),
        ("rounds", f"{provenance['rounds']}: {anchor.rounds} anchor, {probes.requests} probe"),
        ("what a site sent", _sent(contract)),
        ("contract", f"SHA-256 `{provenance['contract_digest']}`, in full in `provenance.json`"),
    ]
    rows = "\n".join(f"| {plain(name)} | {plain(text)} |" for name, text in facts if text)
    return f"""| | |
|---|---|
{rows}

The method follows *Low-Level Dataset Distillation for Medical Image Enhancement* \
(https://arxiv.org/abs/2511.13106) in its outline: an anatomical prior, task-specific pairs, and \
gradients on the pairs aligned with gradients on raw images. It is an independent implementation; \
no figure here is the paper's."""


def _unsaid(prior: PriorSource, provenance: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the run says of its prior beyond the contract's own words."""
    said = {"kind", *prior.model_dump()}
    return [(key, part) for key, part in provenance["prior"].items() if key not in said]


def _personalised(contract: RunContract) -> str:
    """What may differ between the prior and the distilled images, and what drove it."""
    spg, probes = contract.spg, contract.probes
    may_change = [
        text
        for allowed, text in (
            (spg.tone, "a monotone tone curve"),
            (spg.spectrum, "gains of four bands of spatial frequency"),
            (spg.warp, f"a diffeomorphic warp of at most {spg.warp_px:g} pixels"),
            (
                spg.residual,
                f"a residual of at most {spg.residual_bound:g} (window units) at the coarsest of "
                f"{spg.residual_levels} scales",
            ),
        )
        if allowed
    ]
    if not probes.requests or not may_change:
        return "not: the images are the prior's own"
    return (
        f"{', '.join(may_change)}; each image follows {PERSONAS[spg.persona]} "
        f"({DISTANCES[probes.distance]})"
    )


def _sent(contract: RunContract) -> str:
    """What left a site in the rounds of a run."""
    anchor, probes, private, sent = contract.anchor, contract.probes, contract.privacy, []
    if probes.requests:
        sketched = f", each sketched to {private.sketch} numbers" if private.sketch else ""
        gradient = f"clipped to an L2 norm of {probes.clip_norm:g}{sketched}"
        sent.append(
            f"each patient's gradient, {gradient}"
            if contract.granularity == "patient"
            else f"mean gradients, each patient's {gradient}"
        )
    if anchor.rounds:
        whose = " of each patient, their mean" if anchor.descent == "patient" else ""
        projected = (
            f", as its coordinates along {private.directions} public directions"
            if private.directions
            else ""
        )
        sent.append(
            f"the gradient accumulated over {anchor.local_steps} local steps{whose}, clipped to "
            f"{anchor.clip_norm:g}{projected}"
        )
    noised = "" if private.epsilon is None else f"; with Gaussian noise, {private.noise}"
    return f"per round, of at least {contract.min_patients} patients: {', or '.join(sent)}{noised}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_value(part) for part in value)
    return str(value)


def _privacy(contract: RunContract, provenance: Mapping[str, Any]) -> str:
    """The claim, and the guarantee as JSON: null where there is none."""
    dp = provenance["privacy"]["dp"]
    guarantee = json.dumps({"dp": dp}, indent=2 if dp else None, ensure_ascii=False)
    return (
        f"```json\n{guarantee}\n```\n\n{claim(contract)} Distilling data does not make it private: "
        "what was measured, and what is not claimed, is in `PRIVACY.md` and, for programs, "
        "`privacy.json`."
    )


_USE = """Intended: research on image enhancement and on dataset distillation; training and \
comparing enhancement networks.

Not for diagnosis or any clinical decision; not as examples of anatomy or pathology; not to train \
networks that detect or classify findings. A network trained on these pairs can remove or invent \
structures: validate it on your own images before anybody relies on it. Nobody may try to identify \
a person or a hospital from this release."""


def _citation(contract: RunContract) -> str:
    volumes = (
        ""
        if contract.prior.kind == "phantom"
        else " The volumes of the prior keep their own licences, named above."
    )
    return f"""{LICENSE} (https://creativecommons.org/licenses/by/4.0/), the default of fedstill, \
for the synthetic pairs.{volumes} Cite this release by its name and the SHA-256 of \
`MANIFEST.json`, and the method it follows:

```bibtex
{CITATION}
```"""
