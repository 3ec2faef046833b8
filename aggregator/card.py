"""The words of a release: its provenance as JSON and its card as Markdown.

Both follow from the contract and the run's result alone, so that equal runs give equal bytes, and
neither names a hospital. What they claim is what was done and measured, nothing more.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shared.contract import RunContract
from shared.tasks.settings import CtDenoise

LICENSE = "CC-BY-4.0"
"""SPDX identifier under which releases are published."""
METHOD = "arXiv:2511.13106"
PRIVACY = (
    "Clear cohort means: gradients without differential privacy; no privacy claim is made. "
    "Membership of a patient can be inferred from such means, and distilling data does not make "
    "it private."
)
ROW_TITLES = {
    "input": "the degraded input, untouched",
    "prior": "prior only (no hospital data)",
    "prior_textured": "textured phantoms (no hospital data)",
    "public_direct": "public images as they are (no hospital data)",
    "distilled": "**distilled: this release**",
    "full": "all of the hospitals' training images",
}
APPROXIMATIONS = (
    "noise after the logarithm is Gaussian with first-order variance (8% too small at 20 photons, "
    "17% at 10); one energy, no scatter; a photon number is of one wide bin and no scanner's dose; "
    "the images it starts from have noise of their own; the pixel edge is nominal"
)
PRIORS = {
    "phantom": "a procedural phantom: drawn by a program, of no person",
    "public": "public volumes, which the coordinator states to be openly licensed and of nobody "
    "enrolled",
    "consented": "the volume of a consenting person, who is enrolled at no site",
    "both": "public volumes, which the coordinator states to be openly licensed and of nobody "
    "enrolled, and a procedural phantom",
}


class Spread(BaseModel):
    """A figure over seeds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    mean: float
    std: float
    n: int = Field(ge=1, description="seeds")


class Row(BaseModel):
    """One training set's worth: patient-mean PSNR in dB and SSIM of a network trained on it."""

    model_config = ConfigDict(frozen=True)
    psnr: Spread
    ssim: Spread


class Utility(BaseModel):
    """What a release was measured to be worth; fields that are not named here are not published."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    rows: dict[str, Row]
    best_null: str | None = Field(None, description="row of the best control")
    gain_over_best_null: float | None = Field(None, description="dB")
    worth_of_hospital_data: float | None = Field(None, description="dB, full over best control")
    gap_closed: float | None = None
    share_recovered: float | None = None
    evaluation: str | None = Field(None, description="on whom and how it was measured")


def provenance(
    *,
    contract: RunContract,
    pairs: int,
    sites: int,
    rounds: int,
    prior: Mapping[str, Any],
    utility: Utility | None,
) -> dict[str, Any]:
    """The content of provenance.json; ``prior`` is what the run says of its images' start."""
    return {
        "format": "fedstill-provenance/1",
        "contract": contract.model_dump(mode="json"),
        "contract_digest": contract.digest(),
        "license": LICENSE,
        "method": {"follows": METHOD},
        "pairs": pairs,
        "prior": dict(prior),
        "privacy": {
            "dp": None,
            "granularity": contract.granularity,
            "min_patients": contract.min_patients,
            "statement": PRIVACY,
        },
        "rounds": rounds,
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
        f"## What it is worth\n\n{_worth(utility)}",
        f'## Privacy\n\n```json\n{{"dp": null}}\n```\n\n{PRIVACY}',
        f"## Use and misuse\n\n{_USE}",
        f"## Licence and citation\n\n{_citation(contract)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(contract: RunContract, *, pairs: int) -> str:
    size = "n<1K" if pairs < 1000 else "1K<n<10K"
    return f"""---
pretty_name: {contract.name}
license: {LICENSE.lower()}
task_categories:
- image-to-image
size_categories:
- {size}
tags:
- medical
- ct
- denoising
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
    size = contract.task.size_px
    return (
        f"{pairs} synthetic pairs of a low-quality (LQ) and a high-quality (HQ) CT image, "
        f"{size} × {size} pixels, distilled from gradients that {sites} "
        f"{'site' if sites == 1 else 'sites'} computed on images that stayed there. The pairs "
        "are meant to train an image enhancement network. Their anatomy is the prior's "
        f"({PRIORS[contract.prior.kind]}); what they look like has no meaning beyond training."
    )


def _files(task: CtDenoise) -> str:
    low, high = task.window
    return f"""| file | content |
|---|---|
| `pairs.safetensors` | `lq`, `hq`: float32 (N, 1, {task.size_px}, {task.size_px}), exact; \
0 is {low:g} HU, 1 is {high:g} HU |
| `pairs.parquet` | `id`, `task`, `lq`, `hq` (16-bit PNG), `window_low_hu`, `window_high_hu`; \
HU = {low:g} + value / 65535 × {high - low:g}, values outside the window are clipped |
| `provenance.json` | the contract, the prior, what was measured |
| `MANIFEST.json`, `VERSION.json`, `*.sig`, `SHA256SUMS` | what belongs to this release, signed |

`distilled verify FOLDER` checks all of it, `distilled train FOLDER --evaluate IMAGES` fits a \
network on it, and `shared.release.dataset.DistilledPairs(FOLDER)` is a PyTorch dataset."""


def _targets(contract: RunContract) -> str:
    """What the HQ images of a release are."""
    network = contract.anchor_network
    if not contract.anchor.rounds:
        return "the distilled images themselves"
    return (
        f"what a network of {network.depth} layers and {network.width} channels, trained by all "
        "sites together, makes of the LQ images: smoother than a scan"
    )


def _how_made(contract: RunContract, provenance: Mapping[str, Any]) -> str:
    task, prior = contract.task, provenance["prior"]
    anchor, probes = contract.anchor, contract.probes
    facts = [
        ("task", "low-dose CT denoising (`ct-denoise`), simulated"),
        ("image", f"{task.size_px} × {task.size_px} pixels of {task.pixel_mm:g} mm"),
        ("window", f"{task.window_low_hu:g} to {task.window_high_hu:g} HU"),
        (
            "projection",
            f"parallel beam, {task.angles} views over 180°, {task.bins} bins of "
            f"{task.pixel_mm:g} mm, filtered back-projection",
        ),
        (
            "noise",
            f"Poisson at {task.photons:g} photons a bin behind the thickest rays (tube-current "
            f"modulated), electronic noise of {task.electronic_sigma:g} photon equivalents",
        ),
        ("approximated", APPROXIMATIONS),
        ("HQ", _targets(contract)),
        ("prior", PRIORS[contract.prior.kind]),
        *((f"prior, {key}", _plain(value)) for key, value in prior.items() if key != "kind"),
        ("sites", str(provenance["sites"])),
        ("rounds", f"{provenance['rounds']}: {anchor.rounds} anchor, {probes.requests} probe"),
        (
            "what a site sent",
            f"per round, means over at least {contract.min_patients} patients: gradients, each "
            f"patient's clipped to an L2 norm of {probes.clip_norm:g}, or the gradient accumulated "
            f"over {anchor.local_steps} local steps, clipped to {anchor.clip_norm:g}",
        ),
        ("contract", f"SHA-256 `{provenance['contract_digest']}`, in full in `provenance.json`"),
    ]
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    return f"""| | |
|---|---|
{rows}

The method follows *Low-Level Dataset Distillation for Medical Image Enhancement* \
(https://arxiv.org/abs/2511.13106) in its outline: an anatomical prior, task-specific pairs, and \
gradients on the pairs aligned with gradients on raw images. It is an independent implementation; \
no figure here is the paper's."""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(part) for part in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _worth(utility: Utility | None) -> str:
    if utility is None:
        return "Not measured for this release: no utility is claimed."
    lines = ["| trained on | PSNR, dB | SSIM | seeds |", "|---|---|---|---|"]
    for name, row in sorted(utility.rows.items(), key=lambda item: _place(item[0])):
        lines.append(
            f"| {ROW_TITLES.get(name, _plain(name))} | {row.psnr.mean:.2f} ± {row.psnr.std:.2f} "
            f"| {row.ssim.mean:.4f} ± {row.ssim.std:.4f} | {row.psnr.n} |"
        )
    lines += ["", "Mean over held-out patients, ± standard deviation over seeds."]
    if utility.evaluation:
        lines.append(_plain(utility.evaluation))
    best = f"the best control without hospital data (`{utility.best_null or 'best'}`)"
    figures = [
        ("gain_over_best_null", utility.gain_over_best_null, f"dB of this release over {best}"),
        ("worth_of_hospital_data", utility.worth_of_hospital_data, f"dB of full over {best}"),
        ("share_recovered", utility.share_recovered, "the first of these over the second"),
        ("gap_closed", utility.gap_closed, "(distilled − prior) / (full − prior)"),
    ]
    known = [(name, value, text) for name, value, text in figures if value is not None]
    if known:
        lines += ["", "| figure | value | is |", "|---|---|---|"]
        lines += [f"| `{name}` | {value:.2f} | {text} |" for name, value, text in known]
    if utility.gain_over_best_null is not None and utility.gain_over_best_null <= 0:
        lines += ["", "**It was worth no more than the best control without hospital data.**"]
    return "\n".join(lines)


def _place(name: str) -> tuple[int, str]:
    order = list(ROW_TITLES)
    return (order.index(name) if name in order else len(order), name)


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
@misc{{lowleveldd2025,
  title         = {{Low-Level Dataset Distillation for Medical Image Enhancement}},
  year          = {{2025}},
  eprint        = {{2511.13106}},
  archivePrefix = {{arXiv}}
}}
```"""
