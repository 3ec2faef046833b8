"""Checks of a site whose worker and connector are two users (``apart.py``): who can read what."""

import os
import stat
from pathlib import Path

from shared.findings import Finding, failed, good, warning
from site_agent.kit import ENROLMENT_FILE, KIT_FILE
from site_agent.policy_file import POLICY_FILE
from site_agent.settings import SETTINGS_FILE, SiteSettings

CHECK = "separation"


def separation(settings: SiteSettings) -> Finding:
    """Whether a home is one user's, without the other part's secrets, and the socket's folder shut.

    Of the home that the settings are in, and where both can be seen from it.
    """
    home, folder = settings.home, settings.socket_path.parent
    is_worker = (home / POLICY_FILE).exists()
    problem = _home(home) or _socket_folder(folder, is_worker=is_worker)
    if problem is not None:
        return failed(CHECK, *problem)
    if is_worker and settings.key_path.exists():
        return failed(
            CHECK,
            f"{settings.key_path}, the connector's key, is in the worker's home",
            "run `site-agent separate` again: it moves the key",
        )
    own = (settings.pseudonym_key_path, settings.signing_key_path, settings.cohort_path)
    foreign = [path for path in own if path.exists() and not is_worker]
    if foreign:
        return failed(
            CHECK,
            f"{foreign[0]} is the worker's, and lies in the connector's home",
            "remove it here; the worker's home has it, or its backup does",
        )
    if not is_worker:
        loose = [
            home / name
            for name in (SETTINGS_FILE, KIT_FILE, ENROLMENT_FILE)
            if (home / name).exists() and (home / name).stat().st_mode & 0o022
        ]
        if loose:
            return failed(CHECK, f"{loose[0]} can be changed by others", f"chmod go-w {loose[0]}")
    if home.stat().st_mode & 0o077:
        return warning(CHECK, f"{home} can be looked into by other users", f"chmod 700 {home}")
    return good(CHECK, f"the {'worker' if is_worker else 'connector'}'s part alone is here")


def _home(home: Path) -> tuple[str, str] | None:
    status = home.stat()
    if status.st_uid != os.geteuid():
        return (
            f"{home} belongs to another user",
            f"run the preflight as the user who runs this part, or `chown` {home}",
        )
    if status.st_mode & 0o022:
        return f"{home} can be written to by other users", f"chmod 700 {home}"
    return None


def _socket_folder(folder: Path, *, is_worker: bool) -> tuple[str, str] | None:
    make = "make it with mode 750, of the worker's user and a group that the connector's is in"
    try:
        status = folder.stat()
    except OSError as error:
        return f"{folder}, the socket's folder: {error.strerror}", make
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder}, the socket's folder, is a file", make
    if status.st_mode & 0o007:
        return f"{folder}, the socket's folder, is open to all users", f"chmod 750 {folder}"
    if status.st_mode & 0o020:
        return (
            f"{folder}, the socket's folder, can be written to by its group: another could listen "
            "in the worker's place",
            f"chmod 750 {folder}",
        )
    if is_worker and status.st_uid != os.geteuid():
        return f"{folder}, the socket's folder, is not the worker's", f"chown it; {make}"
    if not os.access(folder, os.X_OK):
        return (
            f"{folder}, the socket's folder, cannot be entered by this user",
            f"add the connector's user to the folder's group; {make}",
        )
    return None
