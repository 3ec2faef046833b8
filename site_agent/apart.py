"""Two users: the connector's part of a site's home moves to a home of its own.

So neither can read the other's, whatever runs in it: the worker has the policy, the cohort, the
ledger, the outbox and the keys that sign and pseudonymise; the connector the key that the
aggregator knows the site by. Between them are the two sockets in one folder, which belongs to the
worker's user and to a group that the connector's user is in.
"""

import json
import os
from pathlib import Path

from shared.durable import write_durably
from site_agent.kit import ENROLMENT_FILE, KIT_FILE
from site_agent.settings import SETTINGS_FILE, SettingsError, SiteSettings, read_settings


def set_apart(settings: SiteSettings, *, connector: Path, socket: Path) -> SiteSettings:
    """Moves the connector's part to ``connector``; both meet at ``socket``. Safe to repeat.

    Where root runs it, files are given to the owner of the home they are in. Gives the connector's
    settings. Raises ``SettingsError`` where the socket lies in one of the homes, or ``connector``
    is the home of another site.
    """
    connector, socket = connector.absolute(), socket.absolute()
    if connector.is_relative_to(settings.home) or settings.home.is_relative_to(connector):
        raise SettingsError("--connector: choose a folder beside the home, not in it")
    if socket.is_relative_to(settings.home) or socket.is_relative_to(connector):
        raise SettingsError("--socket: choose a folder in neither of the homes")
    if (connector / SETTINGS_FILE).exists():
        present = read_settings(connector, policy=False)
        if present.name != settings.name:
            raise SettingsError(f"{connector}: is the home of {present.name}; choose another")
    text = _with_socket((settings.home / SETTINGS_FILE).read_text("utf-8"), socket)
    for name, mode in ((ENROLMENT_FILE, 0o644), (KIT_FILE, 0o644), (settings.ca_path.name, 0o644)):
        _copy(settings.home / name, connector / name, mode=mode)
    for path in (settings.key_path, settings.key_path.with_suffix(".pub")):
        _copy(path, connector / "keys" / path.name, mode=0o600)
    _write(connector / SETTINGS_FILE, text.encode(), mode=0o600)
    _write(settings.home / SETTINGS_FILE, text.encode(), mode=0o600)
    # Last: until here nothing was lost.
    settings.key_path.unlink(missing_ok=True)
    return read_settings(connector, policy=False)


def _with_socket(text: str, socket: Path) -> str:
    """Settings with the socket's line, first: after the head of a table it would be the table's."""
    kept = [line for line in text.splitlines() if line.split("=")[0].strip() != "socket"]
    return "\n".join([f"socket = {json.dumps(str(socket), ensure_ascii=False)}", *kept]) + "\n"


def _copy(source: Path, target: Path, *, mode: int) -> None:
    if source.exists():
        _write(target, source.read_bytes(), mode=mode)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    write_durably(path, content, mode=mode)
    if os.geteuid() == 0:
        home = path.parent.parent if path.parent.name == "keys" else path.parent
        owner = home.stat()
        for written in {path, path.parent}:
            os.chown(written, owner.st_uid, owner.st_gid)
