"""A site's part in secure sums: its keys and masks, and the memory of what it has done with them.

Of each round of a contract the site keeps one attempt, the latest:

1. asked for a key, it makes a fresh one and signs it; a later attempt takes an earlier one's place,
   whose key and seed are gone with it;
2. asked for a summary, it masks it with the keys of the members whose offers came with the request,
   and with the stream of a fresh seed; the key is removed once the answer is kept;
3. asked to open, it gives the seed, if no later attempt has begun, and from then on takes part in
   no other attempt at the round.

So at most one sum of a round is ever opened that the site is in. Every step is on the disk before
its answer leaves, and an answer that is asked for again is the same to the byte.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen
from shared.masking import (
    MIN_MEMBERS,
    SEED_BYTES,
    Ring,
    Session,
    coordinate_bound,
    encode_contribution,
    is_genuine,
    own_mask,
    pairwise_mask,
    sign_offer,
)
from shared.messages import (
    Attempt,
    KeyOfferHeader,
    KeyQueryHeader,
    Message,
    Offer,
    OpeningHeader,
    OpenQueryHeader,
    ProbeHeader,
    RefusalCode,
    encode,
)
from site_agent.incidents import RefusedError


class _Standing(Frozen):
    """How far the site is with the latest attempt at a round."""

    attempt: Attempt
    offer: Offer
    private_key: Hex32 | None
    """X25519; None once the masked answer is kept."""
    seed: Hex32 | None = None
    """Of the own mask; None before there is an answer."""
    opened: bool = False


@dataclass(frozen=True)
class Membership:
    """A site as a member of the secure sums it is asked for."""

    folder: Path
    """The outbox; ``<contract digest>/<round>.attempt.json`` in it, mode 0600."""
    name: str
    signing_key: Ed25519PrivateKey
    peers: Collection[str]
    """Signing keys (hex) of the sites this one takes part with; empty: whoever is a member."""

    def offer(self, query: KeyQueryHeader) -> bytes:
        """The answer to a key-query: a key for its attempt, the same whenever it is asked for.

        Raises ``RefusedError`` where another attempt stands in the way, or the members are not fit.
        """
        self.refuse_members(query.contract)
        standing = self._standing(query.contract_digest, query.round)
        if standing is None or standing.attempt < query.attempt:
            if standing is not None and standing.opened:
                raise RefusedError(
                    RefusalCode.ROUND_REUSED,
                    f"attempt {standing.attempt} at round {query.round} was opened: no other one",
                )
            standing = self._begin(query)
        elif standing.attempt > query.attempt:
            raise _superseded(query, standing)
        return encode(
            Message(
                header=KeyOfferHeader(
                    contract_digest=query.contract_digest,
                    round=query.round,
                    attempt=query.attempt,
                    offer=standing.offer,
                )
            )
        )

    def refuse_attempt(self, request: ProbeHeader) -> None:
        """Raises ``RefusedError`` where a summary must not be masked for this request's members."""
        contract = request.contract
        self.refuse_members(contract)
        standing = self._begun(request)
        keys = {member.name: member.signing_key for member in contract.members}
        names = {offer.name for offer in request.offers}
        if len(names) != len(request.offers) or len(names) < MIN_MEMBERS:
            raise RefusedError(
                RefusalCode.BAD_MEMBERS, f"{len(request.offers)} offers, {len(names)} members"
            )
        if standing.offer not in request.offers:
            raise RefusedError(RefusalCode.BAD_MEMBERS, "the site's own offer is not as it was")
        for offer in request.offers:
            if offer.name not in keys or not is_genuine(
                offer,
                keys[offer.name],
                contract_digest=request.contract_digest,
                round=request.round,
                attempt=request.attempt,
            ):
                raise RefusedError(
                    RefusalCode.BAD_MEMBERS, f"the offer of {offer.name} is not that member's"
                )

    def mask(
        self,
        request: ProbeHeader,
        request_digest: str,
        numerator: NDArray[np.float64],
        weight: float,
        *,
        rows: int,
    ) -> Ring:
        """What may leave of a contribution (M,) to a request that was not refused: (M + 1,).

        Raises ``RefusedError`` where a member offered a key that is none.
        """
        standing = self._begun(request)
        if standing.private_key is None:
            raise RuntimeError("the attempt was answered, and the answer is not kept")
        fixed = encode_contribution(
            numerator,
            weight,
            members=len(request.offers),
            bound=coordinate_bound(request.contract, request.kind, rows=rows),
        )
        session, seed = Session.of(request, request_digest), secrets.token_bytes(SEED_BYTES)
        private_key = X25519PrivateKey.from_private_bytes(bytes.fromhex(standing.private_key))
        try:
            pairwise = pairwise_mask(
                private_key,
                name=self.name,
                offers=request.offers,
                session=session,
                count=len(fixed),
            )
        except ValueError:
            raise RefusedError(RefusalCode.BAD_MEMBERS, "an offered key is none") from None
        self._keep(request, standing.model_copy(update={"seed": seed.hex()}))
        own: Ring = own_mask(seed, name=self.name, session=session, count=len(fixed))
        return fixed + pairwise + own

    def answered(self, request: ProbeHeader) -> None:
        """The masked answer is kept: the key of the attempt has done its work, and is removed."""
        standing = self._begun(request)
        if standing.private_key is not None:
            self._keep(request, standing.model_copy(update={"private_key": None}))

    def opening(self, query: OpenQueryHeader) -> bytes:
        """The answer to an open-query: the seed of the own mask, of one attempt at a round alone.

        Raises ``RefusedError`` where that attempt is not the latest, or has not been answered.
        """
        standing = self._begun(query)
        if standing.seed is None or standing.private_key is not None:
            raise RefusedError(RefusalCode.BAD_MEMBERS, "there is no answer to open")
        if not standing.opened:
            self._keep(query, standing.model_copy(update={"opened": True}))
        return encode(
            Message(
                header=OpeningHeader(
                    site=self.name,
                    contract_digest=query.contract_digest,
                    round=query.round,
                    attempt=query.attempt,
                    seed=standing.seed,
                )
            )
        )

    def refuse_members(self, contract: RunContract) -> None:
        """Raises ``RefusedError`` where this site takes no part in a sum of these members."""
        if contract.granularity != "federation" or len(contract.members) < MIN_MEMBERS:
            raise RefusedError(
                RefusalCode.BAD_MEMBERS, f"{len(contract.members)} members are no secure sum"
            )
        own_key = self.signing_key.public_key().public_bytes_raw().hex()
        if (self.name, own_key) not in {(one.name, one.signing_key) for one in contract.members}:
            raise RefusedError(RefusalCode.BAD_MEMBERS, "this site and its key are no member")
        for member in contract.members:
            if self.peers and member.name != self.name and member.signing_key not in self.peers:
                raise RefusedError(
                    RefusalCode.POLICY, f"the key of {member.name} is not among policy.peers"
                )

    def _begin(self, query: KeyQueryHeader) -> _Standing:
        private_key = X25519PrivateKey.generate()
        offer = sign_offer(
            self.signing_key,
            contract_digest=query.contract_digest,
            round=query.round,
            attempt=query.attempt,
            name=self.name,
            public_key=private_key.public_key().public_bytes_raw().hex(),
        )
        standing = _Standing(
            attempt=query.attempt, offer=offer, private_key=private_key.private_bytes_raw().hex()
        )
        self._keep(query, standing)
        return standing

    def _begun(self, about: ProbeHeader | OpenQueryHeader) -> _Standing:
        """The site's standing in this attempt, which must be the latest."""
        standing = self._standing(about.contract_digest, about.round)
        if standing is None or standing.attempt < about.attempt:
            raise RefusedError(
                RefusalCode.BAD_MEMBERS,
                f"no key was asked of this site for attempt {about.attempt}",
            )
        if standing.attempt > about.attempt:
            raise _superseded(about, standing)
        return standing

    def _standing(self, contract_digest: str, round: int) -> _Standing | None:
        try:
            return _Standing.model_validate_json(self._path(contract_digest, round).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            # The text of pydantic's error would repeat what the file holds.
            raise RuntimeError("the file of an attempt is damaged") from None

    def _keep(
        self, about: ProbeHeader | KeyQueryHeader | OpenQueryHeader, standing: _Standing
    ) -> None:
        path = self._path(about.contract_digest, about.round)
        write_durably(path, standing.model_dump_json().encode())

    def _path(self, contract_digest: str, round: int) -> Path:
        return self.folder / contract_digest / f"{round:05d}.attempt.json"


def _superseded(
    about: ProbeHeader | KeyQueryHeader | OpenQueryHeader, standing: _Standing
) -> RefusedError:
    return RefusedError(
        RefusalCode.ROUND_REUSED,
        f"attempt {about.attempt} at round {about.round}, after {standing.attempt} was begun",
    )
