"""What the commands of `distilled` share: options, how errors end, and what is printed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from shared.release import client, publishers
from shared.release.errors import ReleaseError, UntrustedKeyError
from shared.release.keys import read_public_key
from shared.release.manifest import VERSION, Verified, verify_folder

T = TypeVar("T")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a release.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The publisher's public key (PEM). Without it the pinned key is used.",
    ),
]
Address = Annotated[
    str | None, typer.Option("--from", metavar="URL", help="Address of the server that publishes.")
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="FEDSTILL_TOKEN",
        show_default=False,
        help="Your access token, for datasets that are not public. The variable is safer: other "
        "users of this machine can see a command line.",
    ),
]


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turns a ``ReleaseError`` into its message and exit code."""
    try:
        yield
    except ReleaseError as error:
        if as_json:
            print_json(
                {
                    "error": error.code,
                    "exit_code": error.exit_code,
                    "file": error.file,
                    "message": str(error),
                    "hint": error.hint,
                }
            )
        else:
            say(f"error: {error}", err=True)
            if error.hint:
                say(f"  {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        say(
            "interrupted; nothing incomplete is at the destination, and what came is kept",
            err=True,
        )
        raise typer.Exit(130) from None


def usage(read: Callable[[str], T], text: str, parameter: str) -> T:
    """What ``read`` makes of ``text``; a wrong command line where it raises ``ValueError``."""
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=parameter) from None


def target(text: str, url: str | None) -> tuple[str, client.Reference]:
    """The server and what to get there, from a page's address or a name with ``--from``."""
    if "://" in text:
        if url is not None:
            raise typer.BadParameter(
                "leave it out where a page's address is given", param_hint="--from"
            )
        return usage(client.parse_address, text, "URL")
    reference = usage(client.parse_reference, text, "NAME")
    if url is None:
        raise typer.BadParameter("give the server's address", param_hint="--from")
    usage(publishers.origin, url, "--from")
    return url, reference


def checked(token: str | None) -> str | None:
    """The token, if it can be one; what is wrong is said without it."""
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token or len(token) > 512:
        raise typer.BadParameter("is no token: paste it without spaces", param_hint="--token")
    return token


def verified(folder: Path, key_file: Path | None) -> Verified:
    """The release in ``folder``, verified by the key given, or by those pinned."""
    revoked = publishers.revoked_keys()
    if key_file is not None:
        return verify_folder(folder, keys=[read_public_key(key_file)], revoked=revoked)
    keys = publishers.pinned_keys()
    if not keys:
        raise UntrustedKeyError(
            VERSION,
            "no publisher's key is known yet",
            "pass it with --key FILE, or fetch a release with `distilled get` first",
        )
    return verify_folder(folder, keys=keys, revoked=revoked)


def about(verified: Verified) -> dict[str, Any]:
    """What a report says of a release."""
    version = verified.version
    return {
        "name": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": verified.digest,
        "bytes": sum(file.bytes for file in verified.manifest.files),
    }


def title(verified: Verified) -> str:
    """Name, version and digest, for a line."""
    version = verified.version
    return f"{version.namespace}/{version.name} v{version.number} ({verified.digest[:16]})"


def print_json(document: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(document, sort_keys=True))


def say(text: str, *, err: bool = False) -> None:
    """A line for a person."""
    typer.echo(text, err=err)


def aside(text: str) -> None:
    """To standard error: what a person should see whatever the output is used for."""
    say(text, err=True)
