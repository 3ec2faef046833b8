"""The contract of a benchmark: a file's or the defaults, and what the command line says over it."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.contract import ContractError, PriorSource, RunContract, read_contract
from shared.frozen import explain
from shared.tasks.settings import Task

QUICK_SHARE = 3
"""A quick benchmark takes one step of distillation in so many."""
UNSTATED = "not stated: a simulation, which publishes nothing"


def settled(
    file: Path | None, *, task: str | None, prior: str | None, images: int | None, quick: bool
) -> RunContract:
    """The contract of a file, or the defaults, with what the command line says put over it.

    Raises ``ContractError`` naming the field and the fix.
    """
    contract = read_contract(file) if file else RunContract(name="simulation")
    changes: dict[str, Any] = {}
    try:
        if task is not None and task != contract.task.name:
            changes["task"] = TypeAdapter(Task).validate_python(
                {"name": task, "size_px": contract.task.size_px}
            )
        is_mr = changes.get("task", contract.task).modality == "MR"
        source = contract.prior.model_dump()
        if is_mr and (file is None or "task" in changes):
            source["anatomy"] = "head"
        if is_mr and file is None:
            changes["min_patients"] = 2  # brains are few: five a site would leave no site
        if prior is not None:
            source["kind"] = prior
        if source["kind"] in ("public", "both") and source["license"] is None:
            source |= {"license": "NOASSERTION", "statement": UNSTATED}
        changes["prior"] = PriorSource.model_validate(source)
        if images is not None:
            changes["images"] = images
        if quick:
            probes, anchor = contract.probes, contract.anchor
            changes["probes"] = probes.model_copy(update={"steps": _third(probes.steps)})
            changes["anchor"] = anchor.model_copy(
                update={
                    "local_steps": _third(anchor.local_steps),
                    "public_steps": _third(anchor.public_steps),
                }
            )
        return RunContract.model_validate({**dict(contract), **changes})
    except ValidationError as error:
        hint = "; ct-kernel needs its fitted curves: give --contract" if task == "ct-kernel" else ""
        raise ContractError(f"{file or 'the command line'}: {explain(error)}{hint}") from None


def _third(steps: int) -> int:
    return max(1, steps // QUICK_SHARE)
