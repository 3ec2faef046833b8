"""How the round loop reaches sites, whatever lies between: Flower, or a function call."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Exchange(Protocol):
    """Carries one request to several sites, and their answers back."""

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        """The answers by site; a site without one is absent. A round may have several exchanges."""
