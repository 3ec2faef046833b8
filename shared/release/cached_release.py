"""Releases by the address of their page, kept in the user's cache."""

import logging
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.release.cache import cache_folder
from shared.release.client import Reference, get, newest_number, news_of_keys, parse_address
from shared.release.publishers import origin

log = logging.getLogger("fedstill")
"""Warnings appear on standard error where a program sets up nothing else."""


def cached(address: str, *, key: Ed25519PublicKey | None = None, token: str | None = None) -> Path:
    """The folder of the release at a page's address, downloaded and verified where need be.

    Keys that are trusted at first use are said in a warning. Raises ``ValueError`` on an address
    that is none, else the ``ReleaseError`` that fits.
    """
    url, reference = parse_address(address)
    if reference.newest:
        number = newest_number(reference, url=url, key=key, token=token)
        reference = Reference(reference.namespace, reference.name, f"v{number}")
    place = re.sub("[^a-z0-9.-]", "_", origin(url).lower())
    folder = cache_folder() / "releases" / place / reference.namespace
    to = folder / f"{reference.name}-{reference.revision}"
    fetched = get(reference, url=url, to=to, key=key, token=token, say=log.warning)
    for line in news_of_keys(fetched, url=url, given=key is not None):
        log.warning(line)
    return fetched.folder
