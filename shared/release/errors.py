"""What can be wrong with a release or with fetching it; each kind has its own exit code.

`distilled` ends with the ``exit_code`` of the error it met. Codes are part of the interface, since
scripts rely on them, and never change. 0 is success, 2 a wrong command line, 130 Ctrl-C.
"""

from typing import ClassVar


class ReleaseError(Exception):
    """A release that cannot be trusted or fetched.

    ``file`` is the name the complaint is about, ``hint`` what to do.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    resumable: ClassVar[bool] = False
    """Whether the bytes that came are worth keeping for the next attempt."""

    def __init__(self, file: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file
        self.hint = hint


class LocalError(ReleaseError):
    """Something on this machine is in the way: a folder exists, a disk is full."""

    exit_code = 3
    code = "local"
    resumable = True


class TamperedFileError(ReleaseError):
    """A file is not the one the manifest lists."""

    exit_code = 10
    code = "tampered-file"


class TamperedManifestError(ReleaseError):
    """MANIFEST.json is not the one that was signed, or is not a manifest."""

    exit_code = 11
    code = "tampered-manifest"


class TamperedSignatureError(ReleaseError):
    """A signature was not made by the publisher's key over the document it stands beside."""

    exit_code = 12
    code = "tampered-signature"


class MissingFileError(ReleaseError):
    """A file the release must have is not there."""

    exit_code = 13
    code = "missing-file"


class ExtraFileError(ReleaseError):
    """There is a file that nobody signed."""

    exit_code = 14
    code = "extra-file"


class UnsafePathError(ReleaseError):
    """A manifest names a file outside the release's folder."""

    exit_code = 15
    code = "unsafe-path"


class UntrustedKeyError(ReleaseError):
    """The release is signed by another key than the one trusted, or none is trusted yet."""

    exit_code = 16
    code = "untrusted-key"


class SwappedVersionError(ReleaseError):
    """A genuine release, but not the dataset and version it is offered as."""

    exit_code = 17
    code = "swapped-version"


class RollbackError(ReleaseError):
    """The server offers an older version as the newest than it did before."""

    exit_code = 18
    code = "rollback"


class RevokedKeyError(ReleaseError):
    """The release is signed by a key that its publisher has revoked."""

    exit_code = 19
    code = "revoked-key"


class NetworkError(ReleaseError):
    """The server cannot be reached or answers with an error."""

    exit_code = 20
    code = "network"
    resumable = True


class TruncatedError(ReleaseError):
    """The connection kept ending before a file was complete."""

    exit_code = 21
    code = "truncated"
    resumable = True


class NotFoundError(ReleaseError):
    """The server has no such dataset, version or file."""

    exit_code = 22
    code = "not-found"


class BrokenRotationError(ReleaseError):
    """The publisher's key lists do not follow from the one this user trusts."""

    exit_code = 23
    code = "broken-rotation"


class FrozenError(ReleaseError):
    """The server shows a head that has expired: it may be hiding newer versions."""

    exit_code = 24
    code = "freeze"


class UnsignedError(ReleaseError):
    """A release without its signatures."""

    exit_code = 25
    code = "unsigned"


class OversizedError(ReleaseError):
    """The server sends more bytes than were signed, or than a document may have."""

    exit_code = 26
    code = "oversized"


class GatedError(ReleaseError):
    """The dataset's data-use agreement has to be accepted first."""

    exit_code = 30
    code = "gated"


class WithdrawnError(ReleaseError):
    """The publisher has withdrawn the version."""

    exit_code = 31
    code = "withdrawn"


class RateLimitedError(ReleaseError):
    """The server kept asking to wait."""

    exit_code = 32
    code = "rate-limited"
    resumable = True


class DeniedError(ReleaseError):
    """The token is missing, unknown, expired or revoked, or may not do this."""

    exit_code = 33
    code = "denied"
    resumable = True


KINDS: tuple[type[ReleaseError], ...] = (
    LocalError,
    TamperedFileError,
    TamperedManifestError,
    TamperedSignatureError,
    MissingFileError,
    ExtraFileError,
    UnsafePathError,
    UntrustedKeyError,
    SwappedVersionError,
    RollbackError,
    RevokedKeyError,
    NetworkError,
    TruncatedError,
    NotFoundError,
    BrokenRotationError,
    FrozenError,
    UnsignedError,
    OversizedError,
    GatedError,
    WithdrawnError,
    RateLimitedError,
    DeniedError,
)
