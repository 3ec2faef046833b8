"""TLS of the C-STORE listener: part 15 of the standard, B.12 (BCP 195).

pynetdicom shakes hands in the loop that takes connections, so that a peer who connects and says
nothing would keep everyone else out. Here that is left to the connection's own thread.
"""

import socket
import ssl
from pathlib import Path
from typing import Any

from site_agent.importer.settings import ListenSettings


class TlsError(ValueError):
    """Certificates that cannot be used; the text names the setting and the fix."""


class DeferredContext(ssl.SSLContext):
    """Wraps connections without shaking hands: :func:`shake_hands` does."""

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """The connection, encrypted from its first byte on."""
        return super().wrap_socket(sock, *args, **{**kwargs, "do_handshake_on_connect": False})


def server_context(settings: ListenSettings) -> ssl.SSLContext | None:
    """What ``settings`` make of a connection; None where it stays plain.

    With ``ca_file`` a sender needs a certificate of that authority's. Raises ``TlsError``.
    """
    if settings.certificate_file is None or settings.key_file is None:
        return None
    _private(settings.key_file)
    context = DeferredContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password would be asked for at the terminal: a listener has none.
        context.load_cert_chain(settings.certificate_file, settings.key_file, password=_none)
    except (OSError, ValueError) as error:
        raise TlsError(
            f"importer.listen.certificate_file, key_file: {_reason(error)}; both are PEM files, "
            "the key without a password and the certificate's own"
        ) from None
    if settings.ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.ca_file)
        except OSError as error:
            raise TlsError(
                f"importer.listen.ca_file: {settings.ca_file}: {_reason(error)}; it is a PEM file "
                "of the authority that signs senders' certificates"
            ) from None
    return context


def shake_hands(connection: Any, *, timeout_s: float) -> bool:
    """Whether the peer speaks TLS, and has a certificate where one is asked for.

    A plain connection stays as it is; one where this is not so must be closed.
    """
    if not isinstance(connection, ssl.SSLSocket):
        return True
    try:
        connection.settimeout(timeout_s)
        connection.do_handshake()
    except (OSError, ValueError):  # its text may be the peer's
        return False
    return True


def _private(path: Path) -> None:
    where = f"importer.listen.key_file: {path}"
    try:
        if path.stat().st_mode & 0o077:
            raise TlsError(f"{where}: other users may read it; chmod 600 it")
    except OSError as error:
        raise TlsError(f"{where}: cannot be read ({error.strerror})") from None


def _none() -> bytes:
    return b""


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return "not a certificate and its key"
    return f"cannot be read ({error.strerror})"
