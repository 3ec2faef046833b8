"""What supervisors ask: ``/livez``, whether it answers, and ``/readyz``, whether it can serve."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from aggregator.api.datasets import strict
from aggregator.api.models import Alive, Ready
from aggregator.catalog import Catalog
from aggregator.store import BlobStore, StoreError

router = APIRouter()


@router.get("/livez", dependencies=strict, response_model=Alive)
async def livez() -> dict[str, bool]:
    """That the API answers, whatever becomes of what it needs."""
    return {"alive": True}


@router.get("/readyz", dependencies=strict, response_model=Ready, responses={503: {"model": Ready}})
def readyz(request: Request, response: Response) -> dict[str, object]:
    """Whether catalog and store can be reached; 503 where one cannot."""
    checks = {
        "database": _answers(request.app.state.catalog),
        "store": _reached(request.app.state.store),
    }
    ready = all(checks.values())
    if not ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"ready": ready, "checks": checks}


def _answers(catalog: Catalog) -> bool:
    try:
        with catalog.database.session() as session:
            session.execute(text("SELECT count(*) FROM datasets WHERE id = 0"))
    except SQLAlchemyError:
        return False
    return True


def _reached(store: BlobStore) -> bool:
    try:
        return store.reached()
    except StoreError:
        return False
