"""The C-STORE listener: takes what an archive or a scanner pushes, and answers C-ECHO.

Part 4 of the standard, annexes A (verification) and B (storage). Who may send is a list of AE
titles. An object's bytes go into the spool as they came: its dataset is never decoded here. What a
sender can make this process hold is bounded: pynetdicom would keep as much as comes.
"""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from site_agent.events import Event, Note, hashed
from site_agent.importer.objects import STORAGE_CLASSES, TRANSFER_SYNTAXES, silence
from site_agent.importer.settings import ListenSettings
from site_agent.importer.spool import (
    BadUidError,
    FullError,
    RefusedObjectError,
    Spool,
    TooLargeError,
)
from site_agent.importer.tls import TlsError, server_context, shake_hands

# Part 4, table B.2-1.
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
_STATUS: dict[type[RefusedObjectError], int] = {
    TooLargeError: OUT_OF_RESOURCES,
    FullError: OUT_OF_RESOURCES,
    BadUidError: CANNOT_UNDERSTAND,
}

_MAX_COMMAND_BYTES = 64 * 1024
_MAX_READ_BYTES = 2**20 + 1024  # an association request lists hundreds of contexts
_ACSE_TIMEOUT_S = 5.0  # a connection that says nothing takes up an association for so long


class ListenerError(ValueError):
    """A listener that cannot be started; the text names the setting and the fix."""


@dataclass
class _Session:
    """One association: what it holds in memory, and what became of its objects."""

    held: int = 0  # bytes of datasets that no answer was given to yet
    command: int = 0  # bytes of the command set that is coming in
    object: int = 0  # bytes kept of the dataset that is coming in
    cut: bool = False  # whether some of it was not kept
    whole: deque[tuple[int, bool]] = field(default_factory=deque)  # datasets: bytes kept, and cut
    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)


class Listener:
    """A running listener; a context manager that stops it."""

    def __init__(self, settings: ListenSettings, spool: Spool, *, salt: bytes, note: Note) -> None:
        """Starts to listen; hashes senders' addresses with ``salt`` in what it notes.

        Raises ``ListenerError`` where the address is not to be had, or the certificates not usable.
        """
        silence()
        _config.LOG_HANDLER_LEVEL = "none"
        self._settings = settings
        self._spool = spool
        self._salt = salt
        self._note = note
        self._sessions: WeakKeyDictionary[Association, _Session] = WeakKeyDictionary()
        self._entity = _entity(settings)
        try:
            self._entity.start_server(
                (settings.address, settings.port),
                block=False,
                ssl_context=server_context(settings),
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._opened),
                    (evt.EVT_REJECTED, self._rejected),
                    (evt.EVT_PDU_RECV, self._came),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_C_ECHO, _echo),
                    (evt.EVT_CONN_CLOSE, self._closed),
                ],
            )
        except TlsError as error:
            raise ListenerError(str(error)) from None
        except OSError as error:
            raise ListenerError(
                f"importer.listen: cannot listen at {settings.address} port {settings.port} "
                f"({error.strerror}); set address to one of this machine's and port to a free one "
                "above 1023"
            ) from None

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cuts off who is sending and stops listening; nothing half-received stays."""
        self._entity.shutdown()

    def _session(self, association: Association) -> _Session:
        return self._sessions.setdefault(association, _Session())

    def _opened(self, event: evt.Event) -> None:
        """Shakes hands, and bounds what one read takes: a length field could claim 4 GB."""
        socket: Any = event.assoc.dul.socket
        connection = socket.socket
        if not shake_hands(connection, timeout_s=min(_ACSE_TIMEOUT_S, self._settings.timeout_s)):
            connection.close()
            # Its threads would wait for a request on a connection that is no more.
            cast(Any, event.assoc).start = _nothing
            self._note(
                Event.SENDER_REFUSED,
                sender=self._peer(event),
                hint="it must use TLS, with a certificate of importer.listen.ca_file's authority "
                "where that is set",
            )
            return
        connection.settimeout(self._settings.timeout_s)
        receive = socket.recv

        def bounded(count: int) -> bytearray:
            if count > _MAX_READ_BYTES:
                raise OSError("longer than agreed")
            whole: bytearray = receive(count)
            return whole

        socket.recv = bounded

    def _came(self, event: evt.Event) -> None:
        """Counts what comes in, and drops what is beyond the bound before it is kept."""
        if not isinstance(event.pdu, P_DATA_TF):
            return
        session = self._session(event.assoc)
        with session.lock:
            for item in event.pdu.presentation_data_value_items:
                value = item.presentation_data_value or b"\0"
                # Part 8, annex E.2: bit 0 tells a command from a dataset, bit 1 its last fragment.
                is_last = bool(value[0] & 2)
                if value[0] & 1:
                    session.command += len(value)
                    if session.command > _MAX_COMMAND_BYTES:
                        item.presentation_data_value = value[:1]
                        event.assoc.abort()
                    session.command = 0 if is_last else session.command
                    continue
                if session.held + len(value) - 1 > self._spool.max_object_bytes:
                    session.cut = True
                    item.presentation_data_value = value = value[:1]
                session.held += len(value) - 1
                session.object += len(value) - 1
                if is_last:
                    session.whole.append((session.object, session.cut))
                    session.object, session.cut = 0, False

    def _store(self, event: evt.Event) -> int:
        session = self._session(event.assoc)
        request = cast(C_STORE, event.request)
        dataset = (request.DataSet or BytesIO()).getbuffer()
        with session.lock:
            kept, cut = session.whole.popleft() if session.whole else (-1, False)
        try:
            if kept != len(dataset):
                # Something came in between that was no storage request.
                raise BadUidError
            if cut:
                raise TooLargeError
            outcome = (
                "stored"
                if self._spooled(request, event.context.transfer_syntax, dataset)
                else "already there"
            )
            status = SUCCESS
        except RefusedObjectError as error:
            outcome, status = f"refused ({error.code})", _STATUS[type(error)]
        except Exception as error:
            # Its text may name the object.
            outcome, status = f"failed ({type(error).__name__})", OUT_OF_RESOURCES
        finally:
            dataset.release()
            with session.lock:
                session.held -= max(kept, 0)
        session.outcomes[outcome] += 1
        return status

    def _spooled(self, request: C_STORE, transfer_syntax: UID, dataset: memoryview) -> bool:
        uid = str(request.AffectedSOPInstanceUID)
        if self._spool.holds(uid):
            return False
        meta = create_file_meta(
            sop_class_uid=cast(UID, request.AffectedSOPClassUID),
            sop_instance_uid=cast(UID, request.AffectedSOPInstanceUID),
            transfer_syntax=transfer_syntax,
        )
        with self._spool.part() as part:
            part.write(b"\0" * 128 + b"DICM" + encode_file_meta(meta))
            part.write(dataset)
            return part.keep(uid)

    def _rejected(self, event: evt.Event) -> None:
        self._note(
            Event.SENDER_REFUSED,
            sender=self._peer(event),
            hint="it must call importer.listen.ae_title and be one of importer.listen.callers, "
            "max_associations at a time",
        )

    def _closed(self, event: evt.Event) -> None:
        session = self._sessions.get(event.assoc)
        if session is not None and session.outcomes:
            counts = session.outcomes
            self._note(
                Event.OBJECTS_RECEIVED,
                sender=self._peer(event),
                stored=counts["stored"],
                already_there=counts["already there"],
                refused=_of_kind(counts, "refused"),
                failed=_of_kind(counts, "failed"),
            )

    def _peer(self, event: evt.Event) -> str:
        """The sender, by a hash of its IP address; what it calls itself is its own text."""
        information = event.assoc.requestor.address_info
        address = information.address if information is not None else ""
        return hashed(address, salt=self._salt)


def _entity(settings: ListenSettings) -> AE:
    entity = AE(ae_title=settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.callers)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = settings.max_pdu_bytes
    entity.acse_timeout = min(_ACSE_TIMEOUT_S, settings.timeout_s)
    entity.dimse_timeout = entity.network_timeout = settings.timeout_s
    entity.add_supported_context(Verification)
    for storage_class in STORAGE_CLASSES:
        entity.add_supported_context(storage_class, list(TRANSFER_SYNTAXES))
    return entity


def _nothing() -> None:
    """In place of an association."""


def _echo(event: evt.Event) -> int:
    return SUCCESS


def _of_kind(counts: Counter[str], kind: str) -> str:
    """How many objects came to such an end, by their codes: ``2 too-large``; empty for none."""
    return ", ".join(
        f"{count} {outcome.removeprefix(kind).strip(' ()')}"
        for outcome, count in sorted(counts.items())
        if outcome.startswith(kind)
    )
