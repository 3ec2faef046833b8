"""What goes wrong while a request is answered: a code outside, the text in the site's own log."""

import logging
import secrets
from logging.handlers import RotatingFileHandler
from pathlib import Path

from shared.messages import RefusalCode, encode, refusal
from site_agent.audit import AuditError, AuditLog
from site_agent.events import Event, note

LOG_FILE = "worker.log"
MAX_LOG_BYTES = 10 * 2**20

log = logging.getLogger("fedstill.site")
# Nothing of it may reach a handler that somebody set on the root logger, or stderr.
log.propagate = False
log.addHandler(logging.NullHandler())


class RefusedError(Exception):
    """A request the site does not answer: a code for the aggregator, a text for the site's log."""

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def incident_of(code: RefusalCode, error: Exception) -> str:
    """A new incident id, under which the site's own log holds what happened."""
    incident = secrets.token_hex(6)
    note(Event.REFUSED, code=code.value, incident=incident)
    if isinstance(error, RefusedError):
        log.warning("incident %s: refused (%s): %s", incident, code.value, error)
    else:
        log.error("incident %s: failed (%s)", incident, code.value, exc_info=error)
    return incident


def refuse(*, site: str, code: RefusalCode, error: Exception, audit: AuditLog) -> bytes:
    """An encoded refusal with a new incident id, under which the log holds what happened."""
    incident = incident_of(code, error)
    try:
        audit.append("refused", code=code.value, incident=incident)
    except (AuditError, OSError) as reason:
        # A refusal tells nothing of the images: it goes out, and an answer would not have.
        log.error("incident %s: not in the audit log: %s", incident, reason)
    return encode(refusal(site=site, code=code, incident=incident))


def log_to(folder: Path) -> None:
    """Sends the log to ``folder/worker.log``, readable by its owner alone, rotated at 10 MiB."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / LOG_FILE
    path.touch(mode=0o600)
    path.chmod(0o600)
    # A full disk must not turn into a traceback, with the message in it, on stderr.
    logging.raiseExceptions = False
    handler = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=4, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
