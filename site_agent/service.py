"""The worker as a service: requests from a Unix socket in the site's home, one at a time."""

import fcntl
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

from shared.frozen import Frozen
from shared.messages import (
    DryRunQueryHeader,
    MessageError,
    RefusalCode,
    StatusQueryHeader,
    decode,
    patient_bucket,
)
from site_agent.audit import AuditError, AuditLog
from site_agent.cohort import INDEX_FILE, Cohort, CohortError, open_cohort
from site_agent.enrolment import complete_enrolment
from site_agent.events import TALLY, Event, note
from site_agent.figures import QUESTION, figures_of
from site_agent.frames import MAX_FRAME_BYTES, recv_frame, send_frame, socket_address
from site_agent.incidents import RefusedError, log, log_to, refuse
from site_agent.outbox import Outbox
from site_agent.pace import TIMINGS
from site_agent.policy import Policy
from site_agent.policy_file import POLICY_FILE, PolicyError, read_policy
from site_agent.settings import SiteSettings
from site_agent.summaries import device
from site_agent.worker import answer, package_version, set_threads

RECEIVE_TIMEOUT_S = 60.0
MAX_CONNECTIONS = 8
_SMALL_BYTES = 65_536  # what is answered beside a computation is smaller


class ServiceError(RuntimeError):
    """The worker cannot start; the text names the fix."""


class CurrentCohort:
    """The site's cohort as it is on the disk: opened again after ``site-agent index``."""

    def __init__(self, folder: Path, audit: AuditLog) -> None:
        self._folder, self._audit = folder, audit
        self._stamp: tuple[int, int] | None = None
        self._cohort: Cohort | None = None
        self._lock = threading.Lock()

    def get(self) -> Cohort | None:
        """The cohort, or None where nothing usable is indexed."""
        with self._lock:
            try:
                information = (self._folder / INDEX_FILE).stat()
                stamp = (information.st_ino, information.st_mtime_ns)
                if stamp != self._stamp:
                    cohort = open_cohort(self._folder)
                    self._audit.append(
                        "cohort",
                        index=hashlib.sha256((self._folder / INDEX_FILE).read_bytes()).hexdigest(),
                        patients=cohort.patients,
                        modality=cohort.index.modality,
                    )
                    self._cohort, self._stamp = cohort, stamp
            except (OSError, CohortError, AuditError) as error:
                if self._stamp is not None or self._cohort is not None:
                    log.error("cohort lost: %s", error)
                    note(Event.COHORT_LOST)
                self._cohort = self._stamp = None
            return self._cohort


class CurrentPolicy:
    """The site's policy as it is on the disk: a change holds from the next request on."""

    def __init__(self, settings: SiteSettings, audit: AuditLog) -> None:
        self._home, self._audit = settings.home, audit
        self._stamp = self._stamped()
        self._policy: Policy | PolicyError = settings.policy
        self._lock = threading.Lock()

    def get(self) -> Policy:
        """The policy. Raises ``PolicyError`` where the file is lost or not valid."""
        with self._lock:
            stamp = self._stamped()
            if stamp is None or stamp != self._stamp:
                try:
                    self._policy = read_policy(self._home)
                except PolicyError as error:
                    if not isinstance(self._policy, PolicyError):
                        self._audit.append("policy", digest=None)
                    self._policy = error
                else:
                    self._audit.append("policy", digest=self._policy.digest())
                self._stamp = stamp
            if isinstance(self._policy, PolicyError):
                raise self._policy
            return self._policy

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            information = (self._home / POLICY_FILE).stat()
        except OSError:
            return None
        return information.st_ino, information.st_mtime_ns, information.st_size


def serve(settings: SiteSettings) -> None:
    """Answers requests until SIGTERM or SIGINT; notes ``worker ready`` once it listens.

    Raises ``ServiceError`` where another worker runs on this home or the socket cannot be made,
    ``SettingsError`` where a key of the site has been damaged.
    """
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    try:
        set_threads()
    except ValueError as error:
        raise ServiceError(str(error)) from None
    log_to(settings.logs_path)
    complete_enrolment(settings)
    audit = AuditLog(settings.audit_path)
    current = CurrentCohort(settings.cohort_path, audit)
    computing = threading.Lock()
    outbox = Outbox(settings.outbox_path)

    policy = CurrentPolicy(settings, audit)

    def respond(payload: bytes) -> bytes:
        asked = _small_question(payload)
        if asked is StatusQueryHeader:
            return answer(payload, settings=settings, cohort=current.get(), outbox=outbox)
        # A dry run computes nothing on patients: it does not wait for what does, and times nothing
        # beside it.
        dry = asked is DryRunQueryHeader
        idle = not (dry and computing.locked())
        with nullcontext() if dry else computing:
            try:
                allowed = settings.model_copy(update={"policy": policy.get()})
            except (PolicyError, AuditError, OSError) as error:
                lost = isinstance(error, PolicyError)
                reason = RefusedError(
                    RefusalCode.POLICY if lost else RefusalCode.INTERNAL, str(error)
                )
                return refuse(site=settings.name, code=reason.code, error=reason, audit=audit)
            return answer(payload, settings=allowed, cohort=current.get(), outbox=outbox, idle=idle)

    def figures(payload: bytes) -> bytes:
        if payload != QUESTION:
            return b""
        try:
            policy.get()
            valid = True
        except (PolicyError, AuditError, OSError):
            valid = False
        cohort = current.get()
        return figures_of(
            TALLY,
            version=package_version(),
            policy_valid=valid,
            patients_at_least=patient_bucket(cohort.patients if cohort else 0),
            cohort_present=cohort is not None,
        )

    shared = settings.is_apart
    if shared:
        _refuse_open_folder(settings.socket_path.parent)
    with (
        _only_worker(settings.home),
        _listener(settings.socket_path, shared=shared) as listener,
        _listener(settings.figures_path, shared=shared) as monitoring,
    ):
        try:
            audit.append("started", version=package_version(), policy=settings.policy.digest())
        except AuditError as error:
            raise ServiceError(str(error)) from None
        cohort = current.get()
        patients = cohort.patients if cohort else 0
        note(Event.WORKER_READY, site=settings.name, patients=patients, device=str(device()))
        asked = threading.Thread(target=_accept, args=(monitoring, figures, stop), daemon=True)
        asked.start()
        _accept(listener, respond, stop)
        asked.join()
        with suppress(AuditError):
            audit.append("stopped")
    note(Event.WORKER_STOPPED)
    if computing.locked() or TIMINGS.busy():
        # A computation cannot be interrupted; none of it was sent, and it starts anew when asked.
        sys.stdout.flush()
        os._exit(0)


def _accept(
    listener: socket.socket, respond: Callable[[bytes], bytes], stop: threading.Event
) -> None:
    slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
    listener.settimeout(0.25)
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if not slots.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(target=_converse, args=(connection, respond, slots), daemon=True).start()


def _converse(
    connection: socket.socket,
    respond: Callable[[bytes], bytes],
    slots: threading.BoundedSemaphore,
) -> None:
    try:
        with connection:
            payload = recv_frame(connection, limit=MAX_FRAME_BYTES, timeout_s=RECEIVE_TIMEOUT_S)
            reply = respond(payload)
            connection.settimeout(RECEIVE_TIMEOUT_S)
            send_frame(connection, reply)
    except OSError as error:
        log.warning("a connection broke: %s", error)
        note(Event.CONNECTION_BROKE)
    finally:
        slots.release()


def _small_question(payload: bytes) -> type[Frozen] | None:
    """What a small message asks; None where it is not small, or none of ours."""
    if len(payload) > _SMALL_BYTES:
        return None
    try:
        return type(decode(payload).header)
    except MessageError:
        return None


@contextmanager
def _only_worker(home: Path) -> Iterator[None]:
    descriptor = os.open(home / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ServiceError(f"another worker is running on {home}: stop it first") from None
    finally:
        os.close(descriptor)


def _refuse_open_folder(folder: Path) -> None:
    """Whoever reaches the socket may ask the worker: its folder says who does."""
    try:
        open_to_all = folder.stat().st_mode & 0o007
    except OSError as error:
        raise ServiceError(
            f"{folder}: {error.strerror}; make the folder of `socket` (site.toml), mode 750, of "
            "this user and of a group that the connector's user is in"
        ) from None
    if open_to_all:
        raise ServiceError(f"{folder}: is open to all users; chmod 750 it")


@contextmanager
def _listener(path: Path, *, shared: bool) -> Iterator[socket.socket]:
    """A listening socket at ``path``, in place of what a killed worker left there.

    Mode 0600, or 0660 where it is ``shared`` with the worker's group.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # From its first instant on nobody else may connect.
        before = os.umask(0o117 if shared else 0o177)
        try:
            with socket_address(path) as address:
                listener.bind(address)
        except OSError as error:
            reason = error.strerror or error
            raise ServiceError(f"{path}: cannot listen there ({reason})") from None
        finally:
            os.umask(before)
        listener.listen(MAX_CONNECTIONS)
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
