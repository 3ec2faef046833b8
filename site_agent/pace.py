"""How long this machine would compute for a contract: a timed probe on noise, never on patients.

1. each part of an answer is timed on random images of the contract's shape, with its networks:
   degrading, one gradient, one local step;
2. what was timed is kept for every contract of that shape, for as long as the worker runs: the
   question put again costs nothing. One probe runs at a time, and few an hour;
3. the run's seconds follow from those parts and from public numbers: the contract's, the slices
   that are taken of a patient at most, and the *bucket* of patients that a dry run tells anyway.
   The exact number of patients, and of anybody's slices, is nowhere in it.

A question waits ``WITHIN_S`` for a probe; one that takes longer ends beside it, for the next one.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from shared.architectures import Residual
from shared.contract import Name, RunContract
from shared.frozen import canonical_json
from shared.gradients import POOL_DRAWS, pairs_of, patient_gradient
from shared.messages import MAX_BYTES, PATIENT_BUCKETS
from shared.networks import initial_weights, parameter_count
from shared.tasks.degradation import parts
from shared.training import fit_pairs
from site_agent.incidents import log
from site_agent.policy import Policy
from site_agent.summaries import device

WITHIN_S = 20.0
"""Well below what the aggregator waits for the answer."""
PROBES_AN_HOUR = 12
_PART_S = 4.0
"""What several of a part may take together, seconds; else one alone stands for them."""
_GROUP = 8
"""Images that are degraded, or go through a network, at once: as in an answer."""
_STEPS, _TRIES = 10, 3
_SMALLEST = Residual(depth=2, width=4)
_clock = time.perf_counter


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of an answer take here."""

    degrading: dict[str, float]
    """Of one slice, by the kind of request; 0 of real pairs."""
    gradient: dict[Name, float]
    """Of one degraded slice, at one weight vector of a network."""
    step: float
    """A local step of the anchor network."""


class Timings:
    """What has been timed since the worker began, by the shape of contracts."""

    def __init__(self) -> None:
        self._known: dict[str, Pace | None] = {}
        self._begun: deque[float] = deque(maxlen=PROBES_AN_HOUR)
        self._probing = threading.Lock()

    def known(self, contract: RunContract) -> Pace | None:
        """What was timed for contracts of this shape; None where nothing was, or could be."""
        return self._known.get(_shape(contract))

    def pace(self, contract: RunContract, *, within_s: float = WITHIN_S) -> Pace | None:
        """The same, timed now where it was not; None also where that takes longer."""
        deadline, shape = time.monotonic() + within_s, _shape(contract)
        if shape in self._known or not self._probing.acquire(timeout=within_s):
            return self._known.get(shape)
        if shape in self._known or not self._may_begin():
            self._probing.release()
            return self._known.get(shape)
        thread = threading.Thread(target=self._probe, args=(contract, shape), daemon=True)
        thread.start()
        thread.join(max(deadline - time.monotonic(), 0))
        return self._known.get(shape)

    def busy(self) -> bool:
        """Whether a probe is running."""
        return self._probing.locked()

    def _may_begin(self) -> bool:
        now = time.monotonic()
        if len(self._begun) == PROBES_AN_HOUR and now - self._begun[0] < 3600:
            return False
        self._begun.append(now)
        return True

    def _probe(self, contract: RunContract, shape: str) -> None:
        pace = None
        try:
            pace = timed(contract)
        except Exception as error:  # of a size, say, that the memory does not hold
            log.warning("the pace of a contract could not be timed: %s", type(error).__name__)
        finally:
            self._known[shape] = pace
            self._probing.release()


TIMINGS = Timings()
"""Of this process."""


def timed(contract: RunContract) -> Pace:
    """Times the parts of ``contract``'s answers on random images."""
    where, asked = device(), set(_asked(contract))
    kinds = {"gradients": contract.probes.draws, "local-steps": POOL_DRAWS}
    drawn = torch.Generator().manual_seed(0)
    sides = 2 if contract.real_pairs else 1
    size = contract.task.size_px
    slices = torch.rand((_GROUP, sides, size, size), generator=drawn).to(where)

    def degrade(kind: str, count: int) -> None:
        pairs_of(contract, slices[:count], draws=kinds[kind], seed=0)

    def differentiate(name: Name, count: int) -> None:
        one = slices[:count, :1]
        weights = initial_weights(contract.network(name), seed=0).to(where)
        patient_gradient(contract=contract, network=name, weights=weights, lq=one, hq=one)

    def descend(steps: int) -> None:
        plan, directions = contract.anchor, contract.privacy.directions
        shape = (directions, parameter_count(contract.anchor_network))
        told = directions and 4 * shape[0] * shape[1] <= MAX_BYTES
        fit_pairs(
            lq=slices[:, :1],
            hq=slices[:, :1],
            network=contract.anchor_network,
            steps=steps,
            seed=0,
            device=where,
            batch=plan.batch,
            crop_px=plan.crop_px,
            within=torch.zeros(shape) if told else None,
        )

    _warm_up(where)
    degrading = {
        kind: 0.0 if contract.real_pairs else _each(partial(degrade, kind), _GROUP)
        for kind, _ in asked
    }
    gradient = {
        name: _each(partial(differentiate, name), _GROUP)
        for kind, name in asked
        if kind == "gradients"
    }
    step = _each(descend, _STEPS) if contract.anchor.rounds else 0.0
    return Pace(degrading=degrading, gradient=gradient, step=step)


def _warm_up(where: torch.device) -> None:
    """What only the first gradient and the first step of a process take: seconds."""
    images = torch.zeros((1, 1, 16, 16))
    fit_pairs(lq=images, hq=images, network=_SMALLEST, steps=2, seed=0, device=where, crop_px=16)


def run_seconds(
    contract: RunContract, pace: Pace, *, bucket: int, slices: int, policy: Policy
) -> float:
    """Seconds of all rounds of ``contract``, of a site in a ``bucket`` of patients.

    ``slices`` are those that are taken of a patient at most. What is asked after the last round,
    about networks and images, is not in it.
    """
    patients = between(bucket)
    if contract.privacy.epsilon is not None:
        patients *= contract.privacy.sampling
    speaking = patients
    if contract.granularity == "patient":
        speaking = min(speaking, policy.max_patients)
        if contract.privacy.epsilon is not None:
            speaking = min(speaking, contract.privacy.patients)
    draws = 1 if contract.real_pairs else _drawn(contract)
    total, plan = 0.0, contract.anchor
    for kind, name in _asked(contract):
        degrading = patients * slices * pace.degrading[kind]
        if kind == "local-steps":
            trainings = patients if plan.descent == "patient" else 1
            total += degrading + trainings * plan.local_steps * pace.step
        else:
            rows = len(contract.probes.depths)
            each = pace.degrading[kind] + rows * draws * pace.gradient[name]
            total += speaking * slices * each
    return total


def between(bucket: int) -> float:
    """A number of patients for a whole bucket: no further, as a ratio, from its least than most."""
    larger = [one for one in PATIENT_BUCKETS if one > bucket]
    return float((bucket * (larger[0] if larger else 2 * bucket)) ** 0.5)


def _asked(contract: RunContract) -> list[tuple[str, Name]]:
    """Kind and network of each round, as the aggregator's schedule has them."""
    networks = contract.probes.networks
    probes = [("gradients", networks[n % len(networks)]) for n in range(contract.probes.requests)]
    anchor: tuple[str, Name] = ("local-steps", "anchor")
    return [anchor] * contract.anchor.rounds + probes


def _drawn(contract: RunContract) -> int:
    """Degraded versions of one slice: each part of a multi-task has as many."""
    single = len(parts(contract.task))
    return -(-contract.probes.draws // single) * single


def _each(work: Callable[[int], None], most: int) -> float:
    """Seconds of one, where ``work(count)`` does so many: of ``most`` together where it is quick.

    What is done once for a machine, or a shape, is done before. Of several tries the
    quickest: what else the machine does at the moment is no part of it.
    """
    first = _seconds(partial(work, 1))
    if first > WITHIN_S:
        return first
    again = _seconds(partial(work, 1))
    if again * most > _PART_S:
        return min(first, again)
    tries = [_seconds(partial(work, most)) / most]
    while len(tries) < _TRIES and tries[0] * most * len(tries) < _PART_S / 2:
        tries.append(_seconds(partial(work, most)) / most)
    return min(tries)


def _seconds(work: Callable[[], None]) -> float:
    started = _clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return _clock() - started


def _shape(contract: RunContract) -> str:
    """What the time of a part depends on."""
    about = {
        "task": contract.task.model_dump(mode="json"),
        "networks": [
            contract.network(name).model_dump(mode="json") for name in ("student", "anchor")
        ],
        "asked": sorted(set(_asked(contract))),
        "draws": contract.probes.draws,
        "step": [contract.anchor.batch, contract.anchor.crop_px, contract.privacy.directions],
    }
    return hashlib.sha256(canonical_json(about)).hexdigest()
