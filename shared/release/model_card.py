"""The card of a trained network: what it is, what it was trained on, its scores, how to load it."""

from collections.abc import Mapping
from typing import Any

from shared.architectures import Network, in_words
from shared.release.facts import task_facts, window_in_words
from shared.tasks.settings import Task

MODEL, MODEL_CARD = "model.safetensors", "MODEL_CARD.md"

_USE = """For research. Not for diagnosis or any clinical decision: the network can remove or \
invent structures. Validate it on your own images before anybody relies on it."""


def model_card(report: Mapping[str, Any], *, network: Network, task: Task, license: str) -> str:
    """The Markdown of a network trained with :func:`shared.release.train.train`.

    ``report`` is that training's; ``license`` is the release's. The code in it runs in the folder
    of the card.
    """
    release, size = report["release"], task.size_px
    name = f"{release['name']} v{release['version']}"
    facts = [
        ("network", f"{in_words(network)}: {report['parameters']:,} parameters"),
        ("trained on", f"{name}, {report['pairs']} synthetic pairs ({license})"),
        ("digest", f"SHA-256 `{release['digest']}` of the release's `MANIFEST.json`"),
        (
            "training",
            f"{report['steps']} steps of {report['batch']} crops of {report['crop_px']} pixels, "
            f"Adam from {report['learning_rate']:g} to 0 by a cosine, mean squared error",
        ),
        ("seed", f"0; the scores are of {report['seeds']}"),
        *task_facts(task),
    ]
    rows = "\n".join(f"| {key} | {text} |" for key, text in facts)
    return f"""# {network.kind} trained on {name}

| | |
|---|---|
{rows}

## Scores

{_scores(report)}

Means over {report["patients"]} patients ({report["slices"]} slices) of whoever trained it, \
± standard deviation over seeds. `input` is the degraded image untouched, with the same noise.

## Loading it

```python
import torch
from shared.release.model import load_model

enhance = load_model(".")  # the folder of this card
lq = torch.rand(1, 1, {size}, {size})  # your images: {window_in_words(task)}
hq = enhance(lq)
```

Images are (N, 1, H, W) of any size from 8 pixels; it was trained at {size} × {size}. \
`pip install 'fedstill[train]'` has all it needs.

## Use and misuse

{_USE}
"""


def _scores(report: Mapping[str, Any]) -> str:
    lines = ["| | PSNR, dB | SSIM |", "|---|---|---|"]
    for title, row in titled_rows(report):
        psnr, ssim = row["psnr"], row["ssim"]
        lines.append(
            f"| `{title}` | {psnr['mean']:.2f} ± {psnr['std']:.2f} "
            f"| {ssim['mean']:.4f} ± {ssim['std']:.4f} |"
        )
    return "\n".join(lines)


def titled_rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every row of a report: the means over all tasks, then each task's where there are several."""
    rows = list(report["rows"].items())
    for label, of_task in report.get("tasks", {}).items():
        rows += [(f"{name}, {label}", row) for name, row in of_task.items()]
    return rows
