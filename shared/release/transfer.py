"""HTTP transfers that resume where a connection breaks, within bounds."""

import io
import json
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import httpx

from shared.release.errors import NetworkError, NotFoundError, TamperedFileError, TruncatedError
from shared.release.manifest import MAX_DOCUMENT_BYTES

ATTEMPTS_WITHOUT_PROGRESS = 3
CONNECTIONS_A_FILE = 50
RETRY_SECONDS = 0.2
CHUNK_BYTES = 256 * 2**10


def open_client() -> httpx.Client:
    """An HTTP client with bounded waits that follows no redirect."""
    return httpx.Client(
        timeout=httpx.Timeout(30.0, connect=10.0), headers={"Accept-Encoding": "identity"}
    )


def fetch_json(client: httpx.Client, address: str) -> Any:
    """A small JSON document, at most 1 MiB."""
    content, _ = fetch_small(client, address, name=address)
    try:
        return json.loads(content)
    except ValueError:
        raise NetworkError(
            address, "the answer is not JSON", "is this the address of a fedstill server?"
        ) from None


def fetch_small(client: httpx.Client, address: str, *, name: str) -> tuple[bytes, httpx.Headers]:
    """A document of at most 1 MiB, and the headers it came with."""
    sink = io.BytesIO()
    headers = transfer(
        client, address, name=name, sink=sink, limit=MAX_DOCUMENT_BYTES, expected=None
    )
    return sink.getvalue(), headers


def transfer(
    client: httpx.Client,
    address: str,
    *,
    name: str,
    sink: BinaryIO,
    limit: int,
    expected: int | None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> httpx.Headers:
    """Writes the body of ``address`` to ``sink``, resuming where a connection breaks.

    ``expected`` is the size where it is known. Raises ``TamperedFileError`` beyond ``limit`` bytes,
    ``TruncatedError`` when attempts bring nothing new, ``NotFoundError``, ``NetworkError``.
    """
    had, failures, etag = 0, 0, ""
    reason = "the connection ended"
    for _ in range(CONNECTIONS_A_FILE):
        before = had
        headers = {"Range": f"bytes={had}-"} if had else {}
        if had and etag:
            headers["If-Range"] = etag
        try:
            with client.stream("GET", address, headers=headers) as response:
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
                    if had + len(chunk) > limit:
                        raise TamperedFileError(name, f"is larger than {limit} bytes")
                    sink.write(chunk)
                    had += len(chunk)
                    on_bytes(len(chunk))
                if expected is None or had >= expected or "Content-Length" in response.headers:
                    sink.flush()
                    return response.headers
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise NetworkError(address, "is not an address this client can ask") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
        failures = 0 if had > before else failures + 1
        if failures == ATTEMPTS_WITHOUT_PROGRESS:
            break
        time.sleep(RETRY_SECONDS * failures)
    if had:
        of = "" if expected is None else f" of {expected}"
        raise TruncatedError(
            name,
            f"the connection kept ending early, {had}{of} bytes came ({reason})",
            "try again later",
        )
    raise NetworkError(
        address, f"cannot be reached ({reason})", "check the address given with --from"
    )


def _continues(response: httpx.Response, offset: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _refuse_failure(response: httpx.Response, *, name: str, address: str) -> None:
    if response.status_code in (200, 206):
        return
    said = ""
    body = b""
    for chunk in response.iter_raw(CHUNK_BYTES):
        body += chunk
        if len(body) > CHUNK_BYTES:
            break
    try:
        said = str(json.loads(body)["error"])[:200]
    except (ValueError, KeyError, TypeError):
        said = f"HTTP {response.status_code}"
    if response.status_code == 404:
        raise NotFoundError(
            name, f"not at {address} ({said})", "see what there is with `distilled info --from URL`"
        )
    raise NetworkError(name, f"the server answered {response.status_code}: {said}")
