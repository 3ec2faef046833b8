"""The coordinators' desk: launch, watch, stop, resume and publish runs, in a browser or by HTTP.

Each page has a twin below ``/api/desk/`` that answers the same in JSON, to who has a token of scope
``launch:run`` or ``admin``. Every page works without JavaScript.
"""

import threading
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response

from aggregator.database import Database
from aggregator.desk import (
    actions,
    audit,
    events,
    evolution,
    hospitals,
    launching,
    run_page,
    signing_in,
    surveys,
)
from aggregator.desk.session import Sessions, SignInError
from aggregator.desk.signing_in import led_to_sign_in
from aggregator.desk.trail import Trail
from aggregator.home import AggregatorHome


def add_desk(
    app: FastAPI,
    home: AggregatorHome,
    database: Database,
    *,
    refuse: Callable[[Request, Exception], Response],
) -> None:
    """Adds the desk's routes, and what they work on, to the API; ``refuse`` answers an error."""
    app.state.home = home
    app.state.stopping = threading.Event()
    app.state.desk_sessions = Sessions(database)
    app.state.desk_trail = Trail(database)
    for part in (signing_in, surveys, hospitals, audit, launching, actions):
        app.include_router(part.router)
    for part in (events, evolution, run_page):
        app.include_router(part.router)
    app.add_exception_handler(
        SignInError, lambda request, error: led_to_sign_in(request) or refuse(request, error)
    )
