"""HTTP transfers that resume where a connection breaks, and wait where a server asks, in bounds."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx

from shared.release.errors import (
    DeniedError,
    GatedError,
    LocalError,
    NetworkError,
    NotFoundError,
    OversizedError,
    RateLimitedError,
    ReleaseError,
    TruncatedError,
    WithdrawnError,
)
from shared.release.manifest import MAX_DOCUMENT_BYTES

ATTEMPTS_WITHOUT_PROGRESS = 3
CONNECTIONS_A_FILE = 50
RETRY_SECONDS = 0.2
CHUNK_BYTES = 256 * 2**10
MAX_WAIT_SECONDS = 120.0
"""Longest that a server's ``Retry-After`` is heeded, in all, for one file."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Session:
    """An HTTP client, whom to tell what it waits for, and the order to stop."""

    http: httpx.Client
    say: Callable[[str], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def open_session(
    url: str, *, token: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Iterator[Session]:
    """A session with bounded waits that follows no redirect; proxy and CA are the environment's.

    Raises ``LocalError`` where ``token`` would cross a network in the clear.
    """
    headers = {"Accept-Encoding": "identity"}
    if token is not None:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise LocalError("--token", "is sent over https alone", "ask the server by https")
        headers["Authorization"] = f"Bearer {token}"
    try:
        http = httpx.Client(timeout=httpx.Timeout(30.0, connect=10.0), headers=headers)
    except (OSError, ValueError, ImportError) as error:  # a CA file or proxy that is none
        raise LocalError(
            "HTTPS_PROXY, SSL_CERT_FILE", f"cannot be used ({error})", "correct the environment"
        ) from None
    with http:
        yield Session(http=http, say=say)


def fetch_json(session: Session, address: str) -> Any:
    """A small JSON document, at most 1 MiB."""
    content, _ = fetch_small(session, address, name=address)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise NetworkError(
            address, "the answer is not JSON", "is this the address of a fedstill server?"
        ) from None


def fetch_small(
    session: Session, address: str, *, name: str, limit: int = MAX_DOCUMENT_BYTES
) -> tuple[bytes, httpx.Headers]:
    """A document of at most ``limit`` bytes, and the headers it came with."""
    sink = io.BytesIO()
    headers = transfer(session, address, name=name, sink=sink, limit=limit, expected=None)
    return sink.getvalue(), headers


def transfer(
    session: Session,
    address: str,
    *,
    name: str,
    sink: BinaryIO,
    limit: int,
    expected: int | None,
    etag: str = "",
    on_bytes: Callable[[int], None] = lambda _: None,
) -> httpx.Headers:
    """Writes the body of ``address`` to ``sink``, going on after what ``sink`` holds already.

    ``expected`` is the size where it is known, ``etag`` what names the content. Raises
    ``OversizedError`` beyond ``limit`` bytes, ``TruncatedError`` when attempts bring nothing new,
    and what the server's refusal means.
    """
    had = sink.seek(0, io.SEEK_END)
    failures, waited = 0, 0.0
    reason = "the connection ended"
    for _ in range(CONNECTIONS_A_FILE):
        before = had
        headers = {"Range": f"bytes={had}-"} if had else {}
        if had and etag:
            headers["If-Range"] = etag
        try:
            with session.http.stream("GET", address, headers=headers) as response:
                pause = _pause(response)
                if pause is not None:
                    waited += pause
                    _wait(session, pause, waited=waited, name=name)
                    continue
                _refuse_failure(response, name=name, address=address)
                if response.status_code != 206 and had:  # it sends the whole again
                    sink.seek(0)
                    sink.truncate()
                    on_bytes(-had)
                    had = 0
                elif response.status_code == 206 and not _continues(response, had):
                    raise NetworkError(name, "the server sent another range than asked for")
                etag = response.headers.get("ETag", "")
                for chunk in response.iter_raw():  # as it comes: what came stays, if it breaks
                    if session.stop.is_set():
                        raise NetworkError(name, "was stopped")
                    if had + len(chunk) > limit:
                        raise OversizedError(name, f"is larger than {limit} bytes")
                    sink.write(chunk)
                    had += len(chunk)
                    on_bytes(len(chunk))
                sink.flush()
                if expected is None or had >= expected:
                    return response.headers
                reason = "the server says that this is all"
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise NetworkError(address, "is not an address this client can ask") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
        sink.flush()
        failures = 0 if had > before else failures + 1
        if failures == ATTEMPTS_WITHOUT_PROGRESS:
            break
        if session.stop.wait(RETRY_SECONDS * failures):
            break
    if had:
        of = "" if expected is None else f" of {expected}"
        raise TruncatedError(
            name,
            f"the connection kept ending early, {had}{of} bytes came ({reason})",
            "try again later",
        )
    if waited:
        raise RateLimitedError(name, "the server kept asking to wait", "try again later")
    raise NetworkError(
        address, f"cannot be reached ({reason})", "check the address given with --from"
    )


def _pause(response: httpx.Response) -> float | None:
    """The seconds a server asks to wait, where it asks; at least one."""
    if response.status_code not in (429, 503):
        return None
    asked = response.headers.get("Retry-After", "")
    if asked.isascii() and asked.isdecimal() and len(asked) < 10:
        return max(float(asked), 1.0)
    return 5.0 if response.status_code == 429 else None


def _wait(session: Session, pause: float, *, waited: float, name: str) -> None:
    if waited > MAX_WAIT_SECONDS:
        raise RateLimitedError(
            name,
            f"the server asks to wait {pause:.0f} s, beyond the {MAX_WAIT_SECONDS:.0f} s in all "
            "that this client waits",
            "try again later: what came is kept",
        )
    session.say(f"the server asks to wait {pause:.0f} s ({name})")
    session.stop.wait(pause)


def _continues(response: httpx.Response, offset: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _refuse_failure(response: httpx.Response, *, name: str, address: str) -> None:
    if response.status_code in (200, 206):
        return
    raise refusal(
        status=response.status_code,
        headers=response.headers,
        body=_some(response),
        name=name,
        address=address,
    )


def refusal(
    *, status: int, headers: httpx.Headers, body: bytes, name: str, address: str
) -> ReleaseError:
    """The error that a server's answer of failure means."""
    try:
        said = _plain(str(json.loads(body)["error"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        said = f"HTTP {status}"
    told = _plain(headers.get("X-Error-Message", "")) or said
    code = headers.get("X-Error-Code", "")
    if status in (401, 403) and code == "GatedRepo":
        hint = "read and accept its agreement: `distilled accept NAME --from URL`, with your token"
        return GatedError(name, told, hint)
    if status in (401, 403):
        return DeniedError(name, told, "give a valid token with --token, or in FEDSTILL_TOKEN")
    if status == 410:
        return WithdrawnError(name, told, "use another version: `distilled info NAME --from URL`")
    if status == 416:
        return TruncatedError(name, "is shorter on the server than what was signed")
    if status == 404:
        hint = "see what there is with `distilled info --from URL`"
        return NotFoundError(name, f"not at {address} ({said})", hint)
    return NetworkError(name, f"the server answered {status}: {said}")


def _plain(text: str) -> str:
    """What a server says, without what could steer a terminal."""
    return "".join(c for c in text if c.isprintable())[:500]


def _some(response: httpx.Response) -> bytes:
    body = b""
    try:
        for chunk in response.iter_raw(CHUNK_BYTES):
            body += chunk
            if len(body) > CHUNK_BYTES:
                break
    except httpx.TransportError:
        pass
    return body
