"""Who asks, and whether they may read a dataset: the one place where that is decided."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from aggregator.catalog import Dataset

Scope = Literal["read:dataset", "launch:run", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True)
class Principal:
    """Somebody with a valid token, or nobody in particular."""

    name: str
    """Empty: anonymous."""
    scopes: frozenset[str]
    datasets: frozenset[str] | None
    """The datasets, as ``namespace/name``, to which ``read:dataset`` is restricted; None: all."""
    token_id: str

    @property
    def visible_to(self) -> frozenset[str] | None:
        """The private datasets shown, as ``Catalog.datasets`` takes them."""
        if "admin" in self.scopes:
            return None
        return self.datasets if "read:dataset" in self.scopes else frozenset()

    def covers(self, dataset: Dataset) -> bool:
        """Whether the token opens a dataset that is not public, before any agreement."""
        named = self.visible_to
        return named is None or f"{dataset.namespace}/{dataset.name}" in named


ANONYMOUS = Principal(name="", scopes=frozenset(), datasets=frozenset(), token_id="")


class Standing(Enum):
    """Where somebody stands towards a dataset."""

    ABSENT = "it is not there for them"
    NEEDS_TOKEN = "its card and its list of files are; for the files a token is needed"
    NEEDS_SCOPE = "the same, and their token does not open it"
    NEEDS_AGREEMENT = "the same, and the present agreement is not accepted"
    READS = "all of it"


def may_read(principal: Principal, dataset: Dataset, *, accepted: Callable[[], bool]) -> Standing:
    """Decides; ``accepted``: whether the present agreement is, asked where it matters alone."""
    if dataset.visibility == "public" or "admin" in principal.scopes:
        return Standing.READS
    covered = principal.covers(dataset)
    if dataset.visibility == "private":
        return Standing.READS if covered else Standing.ABSENT
    if principal == ANONYMOUS:
        return Standing.NEEDS_TOKEN
    if not covered:
        return Standing.NEEDS_SCOPE
    return Standing.READS if accepted() else Standing.NEEDS_AGREEMENT
