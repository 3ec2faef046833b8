"""``multipart/related`` bodies read as they come: no part is ever whole in memory.

RFC 2046, 5.1. Libraries at hand read a body as a whole first, or decode each part as DICOM.
"""

from collections.abc import Iterable, Iterator
from email.message import Message

_MAX_HEADER_BYTES = 16 * 1024


class MultipartError(Exception):
    """A body that is not what its header says, or ends too early; says nothing of its content."""


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a ``Content-Type`` names; None where the body is not multipart."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_maintype() != "multipart":
        return None
    boundary = message.get_boundary("")
    if not boundary or len(boundary) > 256 or not boundary.isascii():
        raise MultipartError
    return boundary.encode("ascii")


def parts(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """The parts' contents, one after the other, each as pieces in order.

    A part that is not read to its end is skipped. Raises ``MultipartError``.
    """
    body = _Body(chunks, b"\r\n--" + boundary)
    for _ in body.until_delimiter():
        pass
    while body.has_part():
        content = body.until_delimiter()
        yield content
        for _ in content:
            pass


class _Body:
    def __init__(self, chunks: Iterable[bytes], delimiter: bytes) -> None:
        self._chunks = iter(chunks)
        self._delimiter = delimiter
        # The first delimiter may stand at the very begin.
        self._buffer = bytearray(b"\r\n")

    def until_delimiter(self) -> Iterator[bytes]:
        """What comes before the next delimiter, which is taken away with it."""
        tail = len(self._delimiter) - 1
        while True:
            place = self._buffer.find(self._delimiter)
            if place >= 0:
                content = bytes(self._buffer[:place])
                del self._buffer[: place + len(self._delimiter)]
                if content:
                    yield content
                return
            if len(self._buffer) > tail:
                content = bytes(self._buffer[:-tail])
                del self._buffer[:-tail]
                yield content
            self._more()

    def has_part(self) -> bool:
        """Takes away what follows a delimiter: the end, or a part's headers."""
        while len(self._buffer) < 2:
            self._more()
        if self._buffer.startswith(b"--"):
            return False
        # Headers end with an empty line; a part without any begins with one.
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEADER_BYTES:
                raise MultipartError
            self._more()
        del self._buffer[: end + 4]
        return True

    def _more(self) -> None:
        for chunk in self._chunks:
            if chunk:
                self._buffer += chunk
                return
        raise MultipartError
