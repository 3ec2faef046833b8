"""What each site last said to a dry run: ``heard/NAME.json`` in the home, replaced by the next.

A site that was offline, or gave no answer, keeps what it said before.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from aggregator.home import AggregatorHome
from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen, Slug
from shared.standing import BudgetLeft, Standing

FOLDER = "heard"
STANDING = tuple(Standing.model_fields)


class Heard(Frozen):
    """An answer, with the site's standing where it told it: earlier versions do not."""

    at: AwareDatetime
    contract: Hex32 = Field(description="digest of the contract that was asked about")
    name: Slug = Field(description="of that contract")
    verdict: Literal["accept", "refuse"]
    code: str | None = Field(None, max_length=200, description="why it would refuse")
    incident: str | None = Field(None, max_length=12)
    patients_at_least: int | None = None
    version: str | None = None
    policy: Hex32 | None = None
    budget: BudgetLeft | None = None
    seconds: float | None = None


def keep_heard(
    home: AggregatorHome, contract: RunContract, verdicts: Sequence[Mapping[str, Any]]
) -> None:
    """Keeps what those sites said of ``contract`` that answered."""
    folder, now = home.root / FOLDER, datetime.now(UTC).replace(microsecond=0)
    about = {"at": now, "contract": contract.digest(), "name": contract.name}
    told = set(Heard.model_fields) - set(about)
    for one in verdicts:
        if one["verdict"] not in ("accept", "refuse"):
            continue
        heard = Heard.model_validate({**about, **{key: one[key] for key in told if key in one}})
        folder.mkdir(exist_ok=True, mode=0o700)
        write_durably(folder / f"{one['site']}.json", heard.model_dump_json(indent=2).encode())


def read_heard(home: AggregatorHome) -> dict[str, Heard]:
    """By site. A file that cannot be read counts as none: the next dry run replaces it."""
    found = {}
    for path in sorted((home.root / FOLDER).glob("*.json")):
        try:
            found[path.stem] = Heard.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
    return found
