"""From the cache to the destination: a release that is whole and verified, in one step."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shared.durable import sync_folder
from shared.release.cache import cache_folder, partial_folder
from shared.release.downloads import Progress, fetch_files
from shared.release.errors import LocalError, MissingFileError, NotFoundError, ReleaseError
from shared.release.key_list import KeyList
from shared.release.manifest import Verified, verify_folder
from shared.release.transfer import Session


def is_there(folder: Path, verified: Verified, key_list: KeyList) -> bool:
    """Whether ``folder`` is the release already; ``LocalError`` where it is anything else."""
    if not folder.exists() and not folder.is_symlink():
        return False
    try:
        if verify_folder(folder, keys=key_list.trusted, revoked=key_list.revoked) == verified:
            return True
    except ReleaseError:
        pass
    raise LocalError(
        str(folder), "exists and is not this release", "remove it or choose another with --to"
    )


def deliver(
    session: Session,
    *,
    address: Callable[[str], str],
    folder: Path,
    documents: dict[str, bytes],
    verified: Verified,
    key_list: KeyList,
    on_progress: Progress | None,
) -> None:
    """Downloads the files of a release whose ``documents`` are verified, and puts it at ``folder``.

    ``address`` is the URL of a file's name. Raises the ``ReleaseError`` that fits; nothing is then
    at ``folder``.
    """

    def verify(copy: Path) -> None:
        verify_folder(copy, keys=key_list.trusted, revoked=key_list.revoked)

    place = cache_folder()
    try:
        with partial_folder(verified.digest, say=session.say) as partial:
            place = partial
            try:
                for name, content in documents.items():
                    (partial / name).write_bytes(content)
                fetch_files(
                    session,
                    verified.manifest.files,
                    folder=partial,
                    address=address,
                    on_progress=on_progress,
                )
                verify(partial)
            except NotFoundError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise MissingFileError(error.file, "is missing on the server", error.hint) from None
            except ReleaseError as error:
                if not error.resumable:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            place = folder
            _put(partial, folder, verify=verify)
    except OSError as error:
        raise LocalError(str(place), f"cannot be written ({error.strerror})") from None


def _put(partial: Path, folder: Path, *, verify: Callable[[Path], object]) -> None:
    """Moves the whole release to its destination, in one step that is there or is not."""
    for path in partial.iterdir():
        path.chmod(0o644)
        with path.open("rb") as written:
            os.fsync(written.fileno())
    sync_folder(partial)
    partial.chmod(0o755)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Another file system. The name is always the same: what a kill leaves, the next run clears.
        copy = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(partial, copy)
            verify(copy)
            for path in copy.iterdir():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            sync_folder(copy)
            copy.rename(folder)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
