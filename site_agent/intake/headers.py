"""What readers found in files' headers, pseudonymised on arrival and remembered.

The memory is one SQLite file beside the cohort: a row a file, under an HMAC of what names the file
and its state (path, size, time of its last change) and of what was asked. So an interrupted index
goes on where it stopped, and the next one reads new and changed files only. Identifiers are hashed
before anything is kept: neither the memory nor the process that writes it on holds one in clear.
"""

import hmac
import json
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from site_agent.intake.dicom import DicomSlice
from site_agent.intake.nifti import SUFFIXES, NiftiVolume
from site_agent.intake.pool import Answer
from site_agent.intake.reasons import LIMITS, SkipReason
from site_agent.intake.strictness import as_fields

HEADERS_FILE = "headers.sqlite"
FORMAT = 3
"""Raise it where headers are read differently: what is remembered is then read again."""

_COMMIT_EVERY = 256
_SLICES = TypeAdapter(list[DicomSlice])
_VOLUME = TypeAdapter(NiftiVolume)
_REFUSED = TypeAdapter(list[SkipReason])


@dataclass(frozen=True)
class ImageFile:
    """A file as the folder lists it."""

    path: Path
    root: Path
    size: int
    modified_ns: int

    @property
    def relative(self) -> str:
        """Its path below the folder that is read."""
        return str(self.path)[len(str(self.root)) :].lstrip("/")


@dataclass(frozen=True)
class FileHeader:
    """What one file holds: slices, or a volume, of one patient; or the code why not."""

    patient: str = ""  # pseudonym
    slices: tuple[DicomSlice, ...] = ()
    volume: NiftiVolume | None = None
    refused: tuple[SkipReason, ...] = ()  # frames of an enhanced object that are no axial slices
    code: SkipReason | None = None


def pseudonym(key: bytes, text: str) -> str:
    """An HMAC of an identifier under the site's key, 32 hexadecimal digits."""
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256").hex()[:32]


def file_header(answer: Answer, file: ImageFile, *, key: bytes) -> FileHeader:
    """A reader's ``answer``, checked, its identifiers hashed."""
    if answer.code is not None:
        return FileHeader(code=answer.code)
    try:
        header = _checked(answer.fields, file)
    except (ValidationError, KeyError):
        return FileHeader(code=SkipReason.CRASHED)
    named = header.slices[0].patient_id if header.slices else None
    patient = _folder_patient(file) if named is None else f"id:{named}"
    return replace(
        header,
        patient=pseudonym(key, patient),
        slices=tuple(
            replace(
                one,
                patient_id=None,
                series=pseudonym(key, f"series:{one.series}"),
                study=one.study and pseudonym(key, f"study:{one.study}"),
                acquired=one.acquired and pseudonym(key, f"acquired:{one.acquired}"),
                instance=one.instance and pseudonym(key, f"instance:{one.instance}"),
                frame=one.frame and pseudonym(key, f"frame:{one.frame}"),
            )
            for one in header.slices
        ),
    )


class HeaderMemory:
    """The memory in ``folder``, or none at all where it is None. A damaged one begins anew."""

    def __init__(self, folder: Path | None, *, key: bytes, asked: str) -> None:
        self._key = key
        self._asked = asked
        self._unsaved = 0
        self._met: set[bytes] = set()
        self._rows = None if folder is None else _opened(folder / HEADERS_FILE)
        names = () if self._rows is None else self._rows.execute("SELECT name FROM files")
        self._known = {bytes(name) for (name,) in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows is not None:
            with suppress(sqlite3.Error):
                self._rows.commit()
            self._rows.close()

    def get(self, file: ImageFile) -> FileHeader | None:
        """What an earlier index found in exactly this file."""
        if self._rows is None:
            return None
        name = self._name(file)
        self._met.add(name)
        if name not in self._known:
            return None
        row = self._rows.execute("SELECT header FROM files WHERE name = ?", (name,)).fetchone()
        try:
            if row is None:
                return None
            fields = json.loads(row[0])
            if "code" in fields:
                return FileHeader(code=SkipReason(fields["code"]))
            return replace(_checked(fields, file), patient=str(fields["patient"]))
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, file: ImageFile, header: FileHeader) -> None:
        """Remembers; saved at the latest with the 256th file, and when the memory is closed."""
        if self._rows is None:
            return
        fields: dict[str, Any] = {"code": header.code}
        if header.code is None:
            fields = {"patient": header.patient, "refused": header.refused}
            if header.volume is not None:
                fields["volume"] = as_fields(header.volume)
            else:
                fields["slices"] = [as_fields(one) for one in header.slices]
        name = self._name(file)
        self._met.add(name)
        self._known.add(name)
        row = name, json.dumps(fields), header.code in LIMITS
        self._rows.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", row)
        self._unsaved += 1
        if self._unsaved >= _COMMIT_EVERY:
            self._rows.commit()
            self._unsaved = 0

    def complete(self) -> None:
        """An index is through: forgets files that are gone, and failures that may not last."""
        if self._rows is None:
            return
        gone = [(name,) for name in self._known - self._met]
        self._rows.executemany("DELETE FROM files WHERE name = ?", gone)
        self._rows.execute("DELETE FROM files WHERE passing")
        self._rows.commit()

    def _name(self, file: ImageFile) -> bytes:
        state = f"{FORMAT}\0{self._asked}\0{file.relative}\0{file.size}\0{file.modified_ns}"
        message = state.encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, message, "sha256")[:16]


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for attempt in (1, 2):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        rows = sqlite3.connect(path)
        try:
            # It only saves time: what a power cut takes of it is read again.
            rows.execute("PRAGMA journal_mode = WAL")
            rows.execute("PRAGMA synchronous = NORMAL")
            rows.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(name BLOB PRIMARY KEY, header TEXT NOT NULL, passing INTEGER NOT NULL)"
            )
            rows.execute("SELECT name, header, passing FROM files LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            rows.close()
            raise
        except sqlite3.DatabaseError:
            rows.close()
            if attempt == 2:
                raise
            for part in ("", "-wal", "-shm"):
                path.with_name(path.name + part).unlink(missing_ok=True)  # it only saves time
            continue
        break
    return rows


def _checked(fields: dict[str, Any], file: ImageFile) -> FileHeader:
    if "volume" in fields:
        return FileHeader(volume=_VOLUME.validate_python({**fields["volume"], "path": file.path}))
    slices = _SLICES.validate_python([{**one, "path": file.path} for one in fields["slices"]])
    if not slices:
        raise KeyError("slices")
    return FileHeader(
        slices=tuple(slices), refused=tuple(_REFUSED.validate_python(fields["refused"]))
    )


def _folder_patient(file: ImageFile) -> str:
    """The patient by the first folder below the root: never less than all of one person's files.

    A volume that lies in the root itself is a patient of its own; a DICOM file there is not.
    """
    parts = file.relative.split("/")
    if len(parts) > 1:
        return f"folder:{parts[0]}"
    return f"file:{file.path.name}" if file.path.name.lower().endswith(SUFFIXES) else "folder:"
