"""Our OpenAPI document against what the server does: schemathesis, all checks, in-process."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from starlette.types import Receive, Scope, Send

from aggregator.api import create_app

CASES, EACH = 2000, 85
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def fuzz(app: FastAPI, token: str, *, each: int) -> int:
    """Asks ``app`` as its document allows and as it does not; the number of requests asked.

    Raises what schemathesis raises: an error of the server, or an answer that is not described.
    """

    async def started(scope: Scope, receive: Receive, send: Send) -> None:
        # Schemathesis starts and stops what it asks at every request: the app is spared that.
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await app(scope, receive, send)

    # Its own list has no 413: a list of paths can be too long for a body too.
    refused = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
    checks = {"negative_data_rejection": {"expected-statuses": refused}}
    config = schemathesis.Config.from_dict({"checks": checks})
    schema = schemathesis.openapi.from_asgi("/openapi.json", started, config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    asked = 0
    for operation in operations:
        for mode in MODES:

            @settings(
                max_examples=each,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(headers={"Authorization": f"Bearer {token}"})

            # What takes no parameter cannot be asked wrongly, and only in one way.
            with suppress(Unsatisfiable):
                ask()
    return asked


def test_no_request_is_an_error_of_ours(home: Path, tokens: dict[str, str]) -> None:
    assert fuzz(create_app(home), tokens["admin"], each=EACH) >= CASES


@pytest.mark.parametrize("fault", ["raises", "undescribed"])
def test_an_error_that_is_planted_is_found(home: Path, fault: str) -> None:
    app = FastAPI()

    @app.get("/planted/{number}")
    def planted(number: int) -> dict[str, int]:
        if fault == "raises":
            raise HTTPException(500)
        return JSONResponse({"number": "text"})  # type: ignore[return-value]

    with pytest.raises(BaseException, match="Schemathesis found"):
        fuzz(app, "", each=5)
