"""One round of a secure sum, from the aggregator's side: keys, masked answers, roll call, openings.

1. Members are asked for keys; those that offer one take part in this attempt.
2. They get the request with all offers, and answer under masks.
3. A roll call: whoever is gone now would leave a sum that nobody can open.
4. All are asked to open, that is, for the seeds of their own masks; without these the sum of the
   masked answers is the sum of the contributions, and nothing else of them can be told.

A member that drops out of 2 or 3 costs the attempt: the next one begins among those who remain.
From 4 on there is no way back, as members open one attempt of a round: who is missing is waited
for, in this process or in one that goes on from the file.

That file says how far the round is, and is written before anything is sent that a later process
must not contradict. Sites repeat their answers byte for byte, and so does this module its requests.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from aggregator.admission import (
    Rejected,
    admit_masked,
    admit_offer,
    admit_opening,
    admit_presence,
)
from aggregator.exchange import Exchange
from shared.bounds import within_bounds
from shared.contract import Hex32
from shared.durable import write_durably
from shared.frozen import Frozen, Slug
from shared.masking import (
    MIN_MEMBERS,
    Ring,
    Session,
    coordinate_bound,
    decode_contribution,
    opened_sum,
)
from shared.messages import (
    MAX_ATTEMPTS,
    MAX_PATIENTS,
    Attempt,
    FloatArray,
    Header,
    KeyQueryHeader,
    Message,
    OpenQueryHeader,
    ProbeHeader,
    StatusQueryHeader,
    encode,
    patient_bucket,
    payload_digest,
    values_shape,
)

FILE = "secure-sum.safetensors"
_ROUNDING = 1e-9  # of a sum of weights in fixed point

Tell = Callable[[int, str], None]
"""Called with (how many sites have done what was asked of them, a line for the journal)."""
Admitted = TypeVar("Admitted")


class SecureSumError(RuntimeError):
    """The round cannot be ended; the text is safe to show and says what to do."""


class SitesMissing(SecureSumError):  # noqa: N818
    """The round cannot be ended before sites come back; then it goes on from where it is."""


class Spent(Frozen):
    """What a site's part in a round has cost so far."""

    releases: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Summed:
    """What a round has told of all sites together."""

    mean: FloatArray  # (K, R)
    weight: float
    sites: tuple[str, ...]
    seconds: float
    """Time the slowest site says its worker spent."""
    spent: Mapping[str, Spent]
    audit_heads: Mapping[str, str | None]
    """Of the sites that take part, the heads of their audit logs."""


class _Standing(Frozen):
    """How far a round is."""

    contract_digest: Hex32
    round: int
    attempt: Attempt = 1
    sites: tuple[Slug, ...]
    """Who is asked in this attempt; from ``masks`` on those whose offers the request holds."""
    stage: Literal["keys", "masks", "opening"] = "keys"
    request_digest: Hex32 | None = None
    closed: tuple[Slug, ...] = ()
    """When opening, those whose own masks are still on the total that the file holds."""
    seconds: float = 0.0
    spent: dict[Slug, Spent] = Field(default_factory=dict)
    audit_heads: dict[Slug, Hex32 | None] = Field(default_factory=dict)


class SecureSum:
    """A round of a secure sum over the members of the request's contract."""

    def __init__(self, request: Message, *, exchange: Exchange, file: Path, tell: Tell) -> None:
        assert isinstance(request.header, ProbeHeader)
        self._request, self._header = request, request.header
        self._shape = values_shape(self._header, request.arrays["weights"].shape, patients=0)
        self._count = math.prod(self._shape) + 1
        self._exchange, self._file, self._tell = exchange, file, tell
        self._missing: dict[str, str] = {}
        self._standing, self._total = self._resumed()

    def result(self) -> Summed:
        """Goes on until the sum is open. Raises ``SecureSumError``."""
        while self._standing.stage != "opening":
            self._attempt()
        if self._standing.closed:
            self._open()
        mean, weight = self._decoded()
        standing, missing = self._standing, f" ({self._told()})" if self._missing else ""
        self._tell(len(standing.sites), f"the sum of {len(standing.sites)} sites banked{missing}")
        return Summed(
            mean=mean,
            weight=weight,
            sites=standing.sites,
            seconds=standing.seconds,
            spent=standing.spent,
            audit_heads=standing.audit_heads,
        )

    def _attempt(self) -> None:
        sites = self._standing.sites
        query = KeyQueryHeader(
            contract=self._header.contract,
            contract_digest=self._header.contract_digest,
            mandate=self._header.mandate,
            round=self._header.round,
            attempt=self._standing.attempt,
        )
        offers = self._asked(
            query, sites, lambda payload, site: admit_offer(payload, site=site, query=query)
        )
        self._refuse_too_few(offers)
        request = self._header.model_copy(
            update={"attempt": self._standing.attempt, "offers": tuple(offers.values())}
        )
        digest = payload_digest(encode(self._message(request)))
        if self._standing.stage == "masks" and digest != self._standing.request_digest:
            self._again(offers)  # others may have answered the request of another process
            return
        self._keep(sites=tuple(offers), stage="masks", request_digest=digest)
        masked = self._asked(
            request,
            tuple(offers),
            lambda payload, site: admit_masked(
                payload, site=site, request=request, request_digest=digest, count=self._count
            ),
        )
        self._spend({site: Spent(releases=self._shape[0]) for site in masked})
        if len(masked) < len(offers):
            self._again(masked)
            return
        present = self._asked(
            StatusQueryHeader(),
            tuple(masked),
            lambda payload, site: admit_presence(payload, site=site),
        )
        if len(present) < len(masked):
            self._again(present)
            return
        self._total = np.sum([one.numbers for one in masked.values()], axis=0, dtype=np.uint64)
        slowest = max(one.seconds for one in masked.values())
        heads = {site: one.audit_head for site, one in masked.items()}
        self._keep(stage="opening", closed=tuple(masked), seconds=slowest, audit_heads=heads)

    def _open(self) -> None:
        standing = self._standing
        query = OpenQueryHeader(
            contract_digest=standing.contract_digest,
            round=standing.round,
            attempt=standing.attempt,
        )
        seeds = self._asked(
            query,
            standing.closed,
            lambda payload, site: admit_opening(payload, site=site, query=query),
        )
        self._total = opened_sum(self._total, seeds=seeds, session=self._session())
        self._keep(closed=tuple(site for site in standing.closed if site not in seeds))
        if self._standing.closed:
            raise SitesMissing(
                f"round {standing.round}: the sites answered, and then {self._told()}; the others "
                "have opened their masks and take part in no other attempt at this round: launch "
                "the same contract again when the site is back, or another seed for a new run"
            )

    def _decoded(self) -> tuple[FloatArray, float]:
        contract, kind, members = self._header.contract, self._header.kind, self._standing.sites
        bound = coordinate_bound(contract, kind, rows=self._shape[0])
        numerators, weight = decode_contribution(self._total, members=len(members), bound=bound)
        privacy = contract.privacy
        least, most = float(patient_bucket(contract.min_patients)), float(MAX_PATIENTS)
        if privacy.epsilon is not None:
            least = most = privacy.patients * privacy.sampling
        least, most = least * len(members), most * len(members)
        with np.errstate(all="ignore"):
            mean = (numerators / weight).astype(np.float32).reshape(self._shape)
        if (
            not least * (1 - _ROUNDING) <= weight <= most * (1 + _ROUNDING)
            or not bool(np.isfinite(mean).all())
            or not within_bounds(mean, contract, kind, members=len(members))
        ):
            raise SecureSumError(
                f"round {self._standing.round}: the sum is none of honest contributions, and which "
                "site spoiled it cannot be told; launch another seed for a new run"
            )
        return mean, weight

    def _again(self, remaining: Collection[str]) -> None:
        """The next attempt, among those who remain."""
        self._refuse_too_few(remaining)
        attempt = self._standing.attempt
        if attempt == MAX_ATTEMPTS:
            raise SitesMissing(
                f"round {self._standing.round}: all {MAX_ATTEMPTS} attempts are spent "
                f"({self._told()}); launch the same contract again when these sites are back"
            )
        reason = self._told() or "a key has changed"
        self._tell(len(remaining), f"attempt {attempt} given up ({reason}): once more without")
        self._keep(attempt=attempt + 1, sites=tuple(remaining), stage="keys")

    def _refuse_too_few(self, remaining: Collection[str]) -> None:
        if len(remaining) < MIN_MEMBERS:
            raise SitesMissing(
                f"round {self._standing.round}: {len(remaining)} sites remain, and a secure sum "
                f"needs {MIN_MEMBERS} ({self._told()}); mend the sites and launch the same "
                "contract again to go on from here"
            )

    def _asked(
        self, header: Header, sites: Sequence[str], admit: Callable[[bytes, str], Admitted]
    ) -> dict[str, Admitted]:
        """Who has answered as asked, by site; the others are missing, and why is noted."""
        payload = encode(self._message(header))
        answers = self._exchange(payload, self._standing.round, sites)
        admitted, cost = dict[str, Admitted](), dict[str, Spent]()
        for site in sites:
            if site not in answers:
                self._missing[site] = "no answer"
                continue
            cost[site] = Spent(bytes_up=len(answers[site]), bytes_down=len(payload))
            try:
                admitted[site] = admit(answers[site], site)
            except Rejected as reason:
                self._missing[site] = str(reason)
        self._spend(cost)
        return admitted

    def _message(self, header: Header) -> Message:
        arrays = self._request.arrays if isinstance(header, ProbeHeader) else {}
        return Message(header=header, arrays=arrays)

    def _told(self) -> str:
        return "; ".join(f"{site}: {reason}" for site, reason in sorted(self._missing.items()))

    def _session(self) -> Session:
        standing = self._standing
        assert standing.request_digest is not None
        return Session(
            contract_digest=standing.contract_digest,
            round=standing.round,
            attempt=standing.attempt,
            kind=self._header.kind,
            request_digest=standing.request_digest,
            participants=tuple(sorted(standing.sites)),
        )

    def _spend(self, cost: Mapping[str, Spent]) -> None:
        spent = dict(self._standing.spent)
        for site, more in cost.items():
            before = spent.get(site, Spent())
            spent[site] = Spent(
                releases=before.releases + more.releases,
                bytes_up=before.bytes_up + more.bytes_up,
                bytes_down=before.bytes_down + more.bytes_down,
            )
        self._standing = self._standing.model_copy(update={"spent": spent})

    def _keep(self, **changes: object) -> None:
        self._standing = self._standing.model_copy(update=changes)
        metadata = {"standing": self._standing.model_dump_json()}
        write_durably(self._file, save({"total": self._total}, metadata=metadata))

    def _resumed(self) -> tuple[_Standing, Ring]:
        """Where the file left this round; a new round where it is of an earlier one, or absent."""
        header = self._header
        fresh = _Standing(
            contract_digest=header.contract_digest,
            round=header.round,
            sites=tuple(sorted(member.name for member in header.contract.members)),
        )
        try:
            with safe_open(self._file, framework="np") as file:
                standing = _Standing.model_validate_json(file.metadata()["standing"])
                total: Ring = file.get_tensor("total")
        except FileNotFoundError:
            return fresh, np.zeros(0, np.uint64)
        except (SafetensorError, ValidationError, KeyError, TypeError):
            raise SecureSumError(
                f"{self._file} cannot be read; move it away to begin the round anew, which the "
                "sites refuse if they have opened their masks in it"
            ) from None
        if (standing.contract_digest, standing.round) != (header.contract_digest, header.round):
            return fresh, np.zeros(0, np.uint64)
        return standing, total
