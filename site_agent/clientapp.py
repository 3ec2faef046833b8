"""The Flower ClientApp of a site: passes a request to the worker's Unix socket, its answer back.

It reads no image and imports neither torch nor pydicom. Whatever goes wrong here reaches the
aggregator as a refusal with a code and an incident id; the cause stays in the site's own log.
"""

import logging
import os
import secrets
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from shared.messages import MAX_BYTES, RefusalCode, encode, refusal
from site_agent.environment import SITE_VARIABLE, SOCKET_VARIABLE
from site_agent.frames import call

__all__ = ["app"]

WORKER_TIMEOUT_S = 3600.0

app = ClientApp()
log = logging.getLogger("fedstill")


@app.query("summarise")  # type: ignore[untyped-decorator]
def summarise(message: Message, context: Context) -> Message:
    """Answers one request: the worker's bytes as they are, or a refusal. Never raises."""
    content = RecordDict({"answer": ConfigRecord({"payload": answer(message)})})
    return Message(content, reply_to=message)


def answer(message: Message) -> bytes:
    """The encoded answer: a summary or a refusal of the worker, or a refusal of our own."""
    try:
        payload = message.content["request"]["payload"]
    except Exception as error:  # whatever arrived: its shape is the aggregator's
        return _refuse(RefusalCode.MALFORMED, error)
    if not isinstance(payload, bytes) or len(payload) > MAX_BYTES:
        return _refuse(RefusalCode.MALFORMED, None)
    try:
        return call(Path(os.environ[SOCKET_VARIABLE]), payload, timeout_s=WORKER_TIMEOUT_S)
    except OSError as error:  # no socket, nobody listening, a timeout, a worker that died meanwhile
        return _refuse(RefusalCode.WORKER_UNREACHABLE, error)
    except Exception as error:  # any other text must not leave the site either
        return _refuse(RefusalCode.INTERNAL, error)


def _refuse(code: RefusalCode, error: Exception | None) -> bytes:
    incident = secrets.token_hex(6)
    log.error("refused a request: %s, incident %s (%r)", code, incident, error)
    return encode(refusal(site=os.environ[SITE_VARIABLE], code=code, incident=incident))
