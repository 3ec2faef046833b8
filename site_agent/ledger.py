"""The site's ledger: every release, noised or not, written down before it is made.

One SQLite database in a folder of its own. How it stays at least as high as the truth:

1. a release is committed with ``synchronous=EXTRA``, which is FULL and syncs the folder too, before
   it is computed: a crash in between leaves a charge without a release, and it counts;
2. contract, round and attempt are a row's key: an attempt is charged once, however often its answer
   has to be computed. Limits are held against the sums in the transaction that adds the row;
3. each row holds the SHA-256 of the row before and itself, and every answer in the outbox must have
   its row. A ledger that is damaged, was edited, set back or removed stops all releases until
   somebody mends it: nothing is ever begun anew.
"""

import hashlib
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from shared.accounting import Spent, epsilon_of
from shared.contract import Hex32, RunContract
from shared.durable import sync_folder
from shared.frozen import Frozen, Slug, canonical_json
from shared.messages import Attempt, ProbeHeader, RefusalCode
from site_agent.incidents import RefusedError, log
from site_agent.outbox import Outbox
from site_agent.policy import Policy

VERSION = 1
_ROUNDING = 1e-8  # relative, of an epsilon that just reaches the budget
_BEGIN = "0" * 64
_BUSY_S = 30.0
_TABLE = """\
CREATE TABLE release (
    sequence INTEGER PRIMARY KEY,
    contract TEXT NOT NULL,
    name TEXT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    gradients INTEGER NOT NULL,
    noise_multiplier REAL,
    sampling REAL NOT NULL,
    charged TEXT NOT NULL,
    chain TEXT NOT NULL,
    UNIQUE (contract, round, attempt)
) STRICT"""


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted; the text names the file and the fix."""


class Charge(Frozen):
    """One release: who asked, how much it holds, and the noise it was made with."""

    contract: Hex32 = Field(description="the contract's digest")
    name: Slug = Field(description="the contract's name")
    round: int = Field(ge=1)
    attempt: Attempt
    gradients: int = Field(ge=0, description="gradients or descents in it")
    noise_multiplier: float | None = Field(gt=0, description="none: released without noise")
    sampling: float = Field(gt=0, le=1)
    charged: AwareDatetime

    @property
    def key(self) -> tuple[str, int, int]:
        """What it is known by: contract, round, attempt."""
        return self.contract, self.round, self.attempt


@dataclass(frozen=True)
class Ledger:
    """A folder with the ledger's database, readable by its owner alone."""

    folder: Path

    @property
    def path(self) -> Path:
        """The database."""
        return self.folder / "ledger.sqlite"

    def charges(self) -> tuple[Charge, ...]:
        """All charges, oldest first. Raises ``LedgerError`` where they cannot be trusted."""
        if not self.path.exists():
            return ()
        with self._open() as connection:
            return tuple(charge for charge, _ in _rows(connection, self.path))

    def settle(self, charge: Charge, *, allowed: Callable[[tuple[Charge, ...]], None]) -> Charge:
        """The charge of that contract, round and attempt: the one there is, or this one, added.

        ``allowed`` is given all charges there are, in the same transaction, and raises to forbid
        one more. What is returned is on the disk. Raises ``LedgerError``.
        """
        self._make()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = list(_rows(connection, self.path))
            charges = tuple(one for one, _ in rows)
            for one in charges:
                if one.key == charge.key:
                    connection.execute("ROLLBACK")
                    return one
            allowed(charges)
            document = charge.model_dump(mode="json")
            chain = _link(rows[-1][1] if rows else _BEGIN, charge)
            connection.execute(
                f"INSERT INTO release ({', '.join(document)}, chain) "
                f"VALUES ({', '.join('?' * len(document))}, ?)",
                (*document.values(), chain),
            )
            connection.execute("COMMIT")
            return charge

    def refuse_unrecorded(self, outbox: Outbox) -> None:
        """Raises ``LedgerError`` where an answer was given that the ledger does not hold."""
        held = {charge.key for charge in self.charges()}
        missing = sum(key not in held for key in outbox.given())
        if missing:
            raise LedgerError(
                f"{self.path}: lacks {missing} answers that the outbox holds: it was removed or "
                "set back. Restore it from a backup made after the last answer in the outbox; "
                "without one, what was spent is not known any more"
            )

    def _make(self) -> None:
        """Makes the empty database: whole or absent after any crash."""
        if self.path.exists():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        begun = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}.part")
        begun.unlink(missing_ok=True)
        os.close(os.open(begun, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            with self._open(begun) as connection:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            # Not os.replace: of two that make it, the first one's stays.
            os.link(begun, self.path)
        except FileExistsError:
            pass
        finally:
            begun.unlink(missing_ok=True)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    @contextmanager
    def _open(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        path = path or self.path
        try:
            # By the URI, a file that is not there is not made.
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
            )
            try:
                # Not WAL: one file is the whole ledger, to copy and to restore. In this mode FULL
                # alone could lose the end of a transaction with the power.
                connection.execute("PRAGMA journal_mode = DELETE")
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise LedgerError(
                f"{path}: is damaged or cannot be used ({error}). Restore it from "
                "a backup made after the last answer in the outbox; without one, what was spent is "
                "not known any more"
            ) from None


def charge_for(
    header: ProbeHeader, *, gradients: int, ledger: Ledger, outbox: Outbox, policy: Policy
) -> float | None:
    """Charges the release that ``header`` asks for; gives the noise multiplier to make it with.

    None where the contract asks for no differential privacy. The charge, of so many ``gradients``,
    is on the disk when this returns; of an attempt charged before, the noise is the one charged.
    Raises ``RefusedError``: ``budget-spent`` where policy's ``max_gradients`` or budget would be
    passed, by this release or, at a contract's first noised one, by all its rounds; ``internal``
    where the ledger is damaged.
    """
    fresh = _planned(header, gradients)
    try:
        ledger.refuse_unrecorded(outbox)
        charged = ledger.settle(
            fresh, allowed=lambda charges: _afford(fresh, charges, header.contract, policy)
        )
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None
    if charged is fresh and fresh.noise_multiplier is not None:
        log.info(
            "round %d, attempt %d, of %s (%s): charged noise %g, sampling %g",
            *(fresh.round, fresh.attempt, fresh.contract[:16], fresh.name),
            *(fresh.noise_multiplier, fresh.sampling),
        )
    return charged.noise_multiplier


def record_judgement(contract: RunContract, *, place: int, ledger: Ledger, outbox: Outbox) -> None:
    """Enters figures that are no gradient, at a ``place`` after the contract's last round.

    They cost none of the budget, which counts gradients and noise; but what left is in the ledger.
    Raises ``RefusedError``: ``internal`` where the ledger is damaged.
    """
    entry = Charge(
        contract=contract.digest(),
        name=contract.name,
        round=place,
        attempt=1,
        gradients=0,
        noise_multiplier=None,
        sampling=1.0,
        charged=datetime.now(UTC).replace(microsecond=0),
    )
    try:
        ledger.refuse_unrecorded(outbox)
        ledger.settle(entry, allowed=lambda charges: None)
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None


def refuse_unaffordable(
    header: ProbeHeader, *, gradients: int, ledger: Ledger, policy: Policy
) -> None:
    """Raises ``RefusedError`` where :func:`charge_for` would, and charges nothing."""
    fresh = _planned(header, gradients)
    try:
        charges = ledger.charges()
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None
    if all(charge.key != fresh.key for charge in charges):
        _afford(fresh, charges, header.contract, policy)


def refuse_beyond_budget(
    contract: RunContract, *, gradients: int, ledger: Ledger, outbox: Outbox, policy: Policy
) -> None:
    """Raises ``RefusedError`` where the budget does not allow what is left of a contract's rounds.

    All of them together hold so many ``gradients``. Charges nothing: it is what
    :func:`charge_for` would say if all that is left came now.
    """
    try:
        ledger.refuse_unrecorded(outbox)
        charges = ledger.charges()
    except LedgerError as error:
        raise RefusedError(RefusalCode.INTERNAL, f"privacy ledger: {error}") from None
    digest = contract.digest()
    mine = [one for one in charges if one.contract == digest]
    left = max(gradients - sum(one.gradients for one in mine), 0)
    refuse_beyond_gradients(charges, left, policy)
    multiplier = contract.noise_multiplier
    if multiplier is None:
        return
    rounds = contract.rounds - len({one.round for one in mine})
    planned = Charge(
        contract=digest,
        name=contract.name,
        round=1,
        attempt=1,
        gradients=0,
        noise_multiplier=multiplier,
        sampling=contract.privacy.sampling,
        charged=datetime.now(UTC),
    )
    _keep_within_budget(charges, [planned] * max(rounds, 0), policy)


def refuse_beyond_gradients(charges: Iterable[Charge], more: int, policy: Policy) -> None:
    """Raises ``RefusedError`` where so many ``more`` gradients pass policy's ``max_gradients``."""
    if policy.max_gradients is None:
        return
    released = sum(charge.gradients for charge in charges)
    if released + more > policy.max_gradients:
        raise RefusedError(
            RefusalCode.BUDGET_SPENT,
            f"{more} gradients after {released} released, "
            f"policy.max_gradients is {policy.max_gradients}",
        )


def spent(charges: Iterable[Charge]) -> list[Spent]:
    """What the accountant has to know of ``charges``: those with noise."""
    kinds = Counter((charge.noise_multiplier, charge.sampling) for charge in charges)
    return [Spent(noise, q, count) for (noise, q), count in kinds.items() if noise is not None]


def _planned(header: ProbeHeader, gradients: int) -> Charge:
    return Charge(
        contract=header.contract_digest,
        name=header.contract.name,
        round=header.round,
        attempt=header.attempt,
        gradients=gradients,
        noise_multiplier=header.contract.noise_multiplier,
        sampling=header.contract.privacy.sampling,
        charged=datetime.now(UTC).replace(microsecond=0),
    )


def _afford(
    fresh: Charge, charges: tuple[Charge, ...], contract: RunContract, policy: Policy
) -> None:
    """Raises ``RefusedError`` where one more charge is beyond policy, or a contract's first one."""
    refuse_beyond_gradients(charges, fresh.gradients, policy)
    if fresh.noise_multiplier is not None:
        begun = any(charge.contract == fresh.contract for charge in charges)
        _keep_within_budget(charges, [fresh] * (1 if begun else contract.rounds), policy)


def _keep_within_budget(charges: tuple[Charge, ...], planned: list[Charge], policy: Policy) -> None:
    budget = policy.epsilon_budget
    if budget is None or not planned:
        return
    cost = epsilon_of(spent([*charges, *planned]), delta=policy.delta)
    if cost > budget * (1 + _ROUNDING):
        raise RefusedError(
            RefusalCode.BUDGET_SPENT,
            f"{len(planned)} more of {planned[0].name} would bring epsilon to {cost:.4g}, "
            f"policy.epsilon_budget is {budget:g}",
        )


def _rows(connection: sqlite3.Connection, path: Path) -> Iterator[tuple[Charge, str]]:
    """Each charge and its link of the chain, in order, checked."""
    fields = tuple(Charge.model_fields)
    if connection.execute("PRAGMA user_version").fetchone() != (VERSION,):
        raise LedgerError(
            f"{path}: is empty, or of another version of fedstill. Restore it from a backup made "
            "after the last answer in the outbox, or use that version"
        )
    before = _BEGIN
    query = f"SELECT sequence, {', '.join(fields)}, chain FROM release ORDER BY sequence"
    for expected, (sequence, *values, chain) in enumerate(connection.execute(query), 1):
        try:
            charge = Charge.model_validate(dict(zip(fields, values, strict=True)))
        except ValidationError:
            charge = None
        if charge is None or sequence != expected or chain != _link(before, charge):
            raise LedgerError(
                f"{path}: was changed at row {expected}. Restore it from a backup made after the "
                "last answer in the outbox; without one, what was spent is not known any more"
            )
        before = chain
        yield charge, chain


def _link(before: str, charge: Charge) -> str:
    """The row's SHA-256 (hex) over that of the row before and its own charge."""
    content = canonical_json(charge.model_dump(mode="json"))
    return hashlib.sha256(before.encode() + content).hexdigest()
