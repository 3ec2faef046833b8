"""The distilled pairs of a run: as they are in the end, and as they were after each round."""

from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from aggregator.api.datasets import strict
from aggregator.api.errors import ApiError
from aggregator.api.models import FILE, UNREADABLE
from aggregator.contact_sheet import contact_sheet
from aggregator.desk.finding import Digest, found_run
from aggregator.desk.session import reader
from aggregator.runs import read_run_contract
from aggregator.snapshots import SnapshotError, read_snapshot, snapshot_file
from shared.release.facts import task_labels

router = APIRouter(dependencies=[Depends(reader), *strict], responses=UNREADABLE)
Round = Annotated[int, PathParameter(ge=0, le=9999, description="0: before the first")]
PICTURE = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


@router.get("/api/desk/runs/{digest}/pairs", response_class=FileResponse, responses=FILE)
def pairs(request: Request, digest: Digest) -> FileResponse:
    """The pairs the run has ended with, all of them: safetensors, float32; takes one Range."""
    return _file(request, found_run(request, digest) / "pairs.safetensors")


@router.get(
    "/api/desk/runs/{digest}/pairs/{round}.png", response_class=Response, responses={200: PICTURE}
)
def sheet(request: Request, digest: Digest, round: Round) -> Response:
    """The pairs as they were after a round, as a picture."""
    run = found_run(request, digest)
    contract = read_run_contract(run)
    try:
        kept = read_snapshot(run, round)
    except SnapshotError as error:
        raise ApiError(404, str(error), "the run's `snapshots` lists what there is") from None
    task, labels = contract.task, task_labels(contract.task)
    (low, high), unit = (task.window, "HU") if task.modality == "CT" else ((0.0, 1.0), "")
    when = f"after round {round}" if round else "before the first round"
    picture = contact_sheet(
        title=f"{contract.name} · {' + '.join(labels)}, {task.size_px} px, {when}",
        lq=kept["lq"].astype(np.float32),
        hq=kept["hq"].astype(np.float32),
        low=low,
        high=high,
        unit=unit,
        tasks=[labels[part] for part in kept["task"]] if labels[1:] else (),
    )
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, no-cache"})


@router.get("/api/desk/runs/{digest}/pairs/{round}", response_class=FileResponse, responses=FILE)
def snapshot(request: Request, digest: Digest, round: Round) -> FileResponse:
    """Some of the pairs as they were after a round: safetensors, float16; takes one Range."""
    return _file(request, snapshot_file(found_run(request, digest), round))


def _file(request: Request, path: Path) -> FileResponse:
    if "," in request.headers.get("Range", ""):
        raise ApiError(416, "several ranges", "ask for one range at a time")
    if not path.is_file():
        raise ApiError(404, "these pairs are not there (yet)", "the run says which there are")
    return FileResponse(
        path,
        media_type="application/octet-stream",
        headers={"Cache-Control": "private, no-cache"},
    )
