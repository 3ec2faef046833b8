"""What the masks of a secure sum cost: bytes and milliseconds of a round, without its computing.

``python tests/benchmarks/secure_sum.py [--json FILE]`` runs whole rounds, files and signatures
included, with sites that send numbers they have: keys, masked answers, roll call, openings. The
time of one site, and of the aggregator: on the clock, where writing to the disk counts most, and of
the processor. Beside the bytes of one site stand those of a round in the clear, whose answers are
float32. One core; the median of several rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.secure_sum import SecureSum
from shared.architectures import Residual
from shared.contract import Member, RunContract
from shared.messages import (
    KeyQueryHeader,
    Message,
    OpenQueryHeader,
    ProbeHeader,
    StatusHeader,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
    probe_batch,
)
from site_agent.membership import Membership
from site_agent.outbox import Outbox

SITES = (3, 5, 10, 20)
LENGTHS = (5_000, 40_000)
REPETITIONS = 5


class Site:
    """A member with random numbers in place of a cohort."""

    def __init__(self, folder: Path, name: str, length: int) -> None:
        self.name, self.folder = name, folder / name
        self.key = Ed25519PrivateKey.generate()
        self.member = Membership(self.folder, name, self.key, ())
        self.outbox = Outbox(self.folder)
        self.numbers = np.random.default_rng().normal(0, 1e-3, length)

    def answer(self, payload: bytes) -> bytes:
        """What the worker does with each message, but for policy, images and gradients."""
        header = decode(payload).header
        if isinstance(header, KeyQueryHeader):
            return self.member.offer(header)
        if isinstance(header, OpenQueryHeader):
            return self.member.opening(header)
        if isinstance(header, ProbeHeader):
            return self._masked(header, payload_digest(payload))
        status = StatusHeader(
            site=self.name, version="1", device="cpu", ready=True, patients_at_least=5, answered=0
        )
        return encode(Message(header=status))

    def _masked(self, header: ProbeHeader, digest: str) -> bytes:
        self.member.refuse_attempt(header)
        numbers = self.member.mask(header, digest, self.numbers, 5.0, rows=1)
        summary = SummaryHeader(
            contract_digest=header.contract_digest,
            request_digest=digest,
            round=header.round,
            kind=header.kind,
            site=self.name,
            patients_at_least=5,
            seconds=0.0,
        )
        answer = encode(Message(header=summary, arrays={"masked": numbers}))
        self.outbox.store(answer, contract_digest=header.contract_digest, round=header.round)
        self.member.answered(header)
        return answer


class Timed:
    """An exchange that counts seconds at the sites and bytes, by step."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self.clock_s = self.processor_s = 0.0
        self.up = self.down = self.up_of_answers = 0

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        clock, processor = time.perf_counter(), time.process_time()
        answers = {site: self._sites[site].answer(payload) for site in sites}
        self.clock_s += time.perf_counter() - clock
        self.processor_s += time.process_time() - processor
        up = sum(map(len, answers.values()))
        self.up += up
        self.up_of_answers += up if isinstance(decode(payload).header, ProbeHeader) else 0
        self.down += len(payload) * len(sites)
        return answers


def one_round(contract: RunContract, sites: Mapping[str, Site], place: Path, number: int) -> Any:
    """Milliseconds and bytes of a round, a site's share of each."""
    length = len(next(iter(sites.values())).numbers)
    request = probe_batch(
        contract=contract,
        round=number,
        kind="gradients",
        network="student",
        weights=np.zeros((1, length), np.float32),
    )
    exchange = Timed(sites)
    clock, processor = time.perf_counter(), time.process_time()
    summed = SecureSum(
        request, exchange=exchange, file=place / "sum", tell=lambda *_: None
    ).result()
    clock_s, processor_s = time.perf_counter() - clock, time.process_time() - processor
    expected = sum(site.numbers for site in sites.values()) / len(sites)
    assert np.abs(summed.mean[0] - expected / 5.0).max() < 1e-9
    return {
        "site_ms": 1000 * exchange.clock_s / len(sites),
        "site_cpu_ms": 1000 * exchange.processor_s / len(sites),
        "aggregator_ms": 1000 * (clock_s - exchange.clock_s),
        "aggregator_cpu_ms": 1000 * (processor_s - exchange.processor_s),
        "up": exchange.up / len(sites),
        "down": exchange.down / len(sites),
        "clear_up": exchange.up_of_answers / len(sites) - 4 * length - 8,
        "clear_down": len(encode(request)),
    }


def measured(count: int, length: int) -> dict[str, Any]:
    """The median round of ``count`` sites with so many numbers."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        names = [f"site-{number:02d}" for number in range(count)]
        sites = {name: Site(place, name, length) for name in names}
        contract = RunContract(
            name="benchmark",
            granularity="federation",
            student=Residual(),
            probes={"requests": REPETITIONS + 1},
            members=tuple(
                Member(name=name, signing_key=site.key.public_key().public_bytes_raw().hex())
                for name, site in sites.items()
            ),
        )
        one_round(contract, sites, place, 1)  # what is loaded once
        rounds = [one_round(contract, sites, place, 2 + n) for n in range(REPETITIONS)]
    median = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    return {"sites": count, "numbers": length, **median}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    rows = [measured(count, length) for length in LENGTHS for count in SITES]
    print("  ".join(f"{column:>17}" for column in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>17,}" for value in row.values()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
