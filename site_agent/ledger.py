"""The site's privacy ledger: every release with noise, charged before it is made.

How it stays at least as high as the truth:

1. a charge is written to ``charges.json``, then to ``copy.json``, each whole or not at all; the
   release is made after both. A crash in between leaves a charge without a release: it counts;
2. a round's attempt is charged once, however often its answer has to be computed;
3. each file carries the digest of its charges. A file that is damaged or missing beside the other,
   or that disagrees with it by more than such a crash, stops all releases until somebody mends it:
   nothing is ever begun anew. Each file alone holds all that was released.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from shared.accounting import Spent, epsilon_of
from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen, Slug, canonical_json
from shared.messages import Attempt, ProbeHeader, RefusalCode
from site_agent.incidents import RefusedError, log
from site_agent.policy import Policy

_ROUNDING = 1e-8  # relative, of an epsilon that just reaches the budget


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted; the text names the file and the fix."""


class Charge(Frozen):
    """One release: who asked, and the noise it was made with."""

    contract: Hex32 = Field(description="the contract's digest")
    name: Slug = Field(description="the contract's name")
    round: int = Field(ge=1)
    attempt: Attempt
    noise_multiplier: float = Field(gt=0)
    sampling: float = Field(gt=0, le=1)
    charged: AwareDatetime

    def is_for(self, header: ProbeHeader) -> bool:
        """Whether the release is the one that ``header`` asks for."""
        asked = (header.contract_digest, header.round, header.attempt)
        return (self.contract, self.round, self.attempt) == asked


class _Book(Frozen):
    """What a file holds."""

    version: Literal[1] = 1
    charges: tuple[Charge, ...]
    sha256: Hex32

    @model_validator(mode="after")
    def _undamaged(self) -> "_Book":
        if self.sha256 != _digest(self.charges):
            raise ValueError("charges are not those that were written")
        return self


@dataclass(frozen=True)
class Ledger:
    """A folder with the ledger's two files, each readable by its owner alone."""

    folder: Path

    @property
    def path(self) -> Path:
        """The ledger."""
        return self.folder / "charges.json"

    @property
    def copy_path(self) -> Path:
        """The same again, written second."""
        return self.folder / "copy.json"

    def charges(self) -> tuple[Charge, ...]:
        """All charges, oldest first. Raises ``LedgerError`` where they cannot be trusted."""
        return self._read()[0]

    def settled(self) -> tuple[Charge, ...]:
        """All charges, which both files hold from now on, whatever a crash left of the last one."""
        charges, agreed = self._read()
        if not agreed:
            write_durably(self.copy_path, _written(charges))
        return charges

    def add(self, charge: Charge) -> None:
        """Writes ``charge`` into both files; it is on the disk when this returns."""
        content = _written((*self.settled(), charge))
        write_durably(self.path, content)
        write_durably(self.copy_path, content)

    def _read(self) -> tuple[tuple[Charge, ...], bool]:
        """The charges, and whether both files hold them all."""
        # The copy first: a charge that is written meanwhile puts the ledger ahead, never behind.
        second, first = _held(self.copy_path), _held(self.path)
        if first == second:
            return first or (), True
        if first and (second or ()) == first[:-1]:
            return first, False
        raise LedgerError(
            f"{self.path} and {self.copy_path.name} disagree: one was changed or removed. Put the "
            "one with more charges in the place of both"
        )


def charge_for(header: ProbeHeader, *, ledger: Ledger, policy: Policy) -> float | None:
    """Charges the release that ``header`` asks for; gives the noise multiplier to make it with.

    None where the contract asks for no differential privacy: nothing is charged. The charge is on
    the disk when this returns; of an attempt charged before, the noise is the one charged.
    Raises ``RefusedError``: ``budget-spent`` where policy's budget would be passed, by this release
    or, at a contract's first one, by all its rounds; ``internal`` where the ledger is damaged.
    """
    contract = header.contract
    multiplier = contract.noise_multiplier
    if multiplier is None:
        return None
    try:
        charges = ledger.settled()
        for charge in charges:
            if charge.is_for(header):
                return charge.noise_multiplier
        fresh = Charge(
            contract=header.contract_digest,
            name=contract.name,
            round=header.round,
            attempt=header.attempt,
            noise_multiplier=multiplier,
            sampling=contract.privacy.sampling,
            charged=datetime.now(UTC).replace(microsecond=0),
        )
        begun = any(charge.contract == fresh.contract for charge in charges)
        planned = 1 if begun else contract.rounds
        _keep_within_budget(charges, [fresh] * planned, policy)
        ledger.add(fresh)
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None
    log.info(
        "round %d, attempt %d, of %s (%s): charged noise %g, sampling %g",
        *(fresh.round, fresh.attempt, fresh.contract[:16], fresh.name),
        *(fresh.noise_multiplier, fresh.sampling),
    )
    return multiplier


def refuse_beyond_budget(contract: RunContract, *, ledger: Ledger, policy: Policy) -> None:
    """Raises ``RefusedError`` where the budget does not allow what is left of a contract's rounds.

    Charges nothing: it is what :func:`charge_for` would say if all of them came now.
    """
    multiplier = contract.noise_multiplier
    if multiplier is None:
        return
    try:
        charges = ledger.charges()
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None
    digest = contract.digest()
    left = contract.rounds - len({one.round for one in charges if one.contract == digest})
    planned = Charge(
        contract=digest,
        name=contract.name,
        round=1,
        attempt=1,
        noise_multiplier=multiplier,
        sampling=contract.privacy.sampling,
        charged=datetime.now(UTC),
    )
    _keep_within_budget(charges, [planned] * max(left, 0), policy)


def spent(charges: Iterable[Charge]) -> list[Spent]:
    """What the accountant has to know of ``charges``."""
    kinds = Counter((charge.noise_multiplier, charge.sampling) for charge in charges)
    return [Spent(*kind, releases) for kind, releases in kinds.items()]


def _keep_within_budget(charges: tuple[Charge, ...], planned: list[Charge], policy: Policy) -> None:
    budget = policy.epsilon_budget
    if budget is None:
        return
    cost = epsilon_of(spent([*charges, *planned]), delta=policy.delta)
    if cost > budget * (1 + _ROUNDING):
        raise RefusedError(
            RefusalCode.BUDGET_SPENT,
            f"{len(planned)} more of {planned[0].name} would bring epsilon to {cost:.4g}, "
            f"policy.epsilon_budget is {budget:g}",
        )


def _digest(charges: tuple[Charge, ...]) -> str:
    documents = [charge.model_dump(mode="json") for charge in charges]
    return hashlib.sha256(canonical_json(documents)).hexdigest()


def _written(charges: tuple[Charge, ...]) -> bytes:
    book = _Book(charges=charges, sha256=_digest(charges))
    return canonical_json(book.model_dump(mode="json")) + b"\n"


def _held(path: Path) -> tuple[Charge, ...] | None:
    """The charges in a file; None where there is no file."""
    try:
        return _Book.model_validate_json(path.read_bytes()).charges
    except FileNotFoundError:
        return None
    except ValidationError:
        raise LedgerError(
            f"{path}: is damaged. The file beside it holds the same charges: put it in this one's "
            "place. If both are damaged, restore them from a backup made after the last answer in "
            "the outbox; without one, what was spent is not known any more"
        ) from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
