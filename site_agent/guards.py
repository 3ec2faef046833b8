"""Guards against chosen weights: a request's weights must be such as honest training gives.

Whoever chooses weights freely chooses what a gradient shows: filters that pass an image on and a
ladder of biases that picks out single places of it ("imprint"; Fowl et al., ICLR 2022, Boenisch et
al., EuroS&P 2023), one filter that nobody but one patient moves ("fishing"; Wen et al., ICML 2022).
So the site takes no weights but those that

1. are finite, as many as the contract's network has, and as many vectors as it has depths;
2. have come from the initial weights that the contract names no farther than so many steps of
   training take them, layer by layer and filter by filter;
3. have no filter that has faded, and no two that have become alike or opposite;
4. as probes of one request differ everywhere, as along a training, not in a part of the network
   that their gradients' difference would then show;
5. as an anchor's, are no farther from those of the last request than a round moves them.

What is left is what training itself could reach: weights trained on purpose, within these
distances, pass. The bound on how much one patient counts, and noise, do not depend on this.

Pure: weights and contract in, a reason out. Measured on trainings of all networks, see
``docs/decisions/0008-chosen-weights.md``.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.bounds import TAIL, TOLERANCE
from shared.contract import Kind, Name, RunContract
from shared.families import Layer, layers
from shared.messages import FloatArray
from shared.networks import initial_weights, parameter_count
from shared.training import LEARNING_RATE
from shared.trajectory import judge_seed, noise_deviation, start, step_bound, stride

LONGEST = LEARNING_RATE * math.sqrt(5_000)
"""Stride of 5,000 steps: no training is given more."""
WIDEST = 64
"""Channels from which on a wider layer moves no less."""
KERNEL, BIAS, FILTER = 18.0, 25.0, 36.0
"""RMS travel of a layer's kernel, of its biases, of one filter, in strides / sqrt(channels)."""
FADED = 0.3
"""Norm of a filter, in units of its initial one, below which it was faded out."""
NARROWED = 0.4
"""Angle between two filters, in units of the initial one, below which they were made alike."""
APART = 1e-4
"""RMS by which a filter of two probes of a request differs where it does."""
EVERYWHERE = 0.5
"""Share of the filters of which it must, in the first layer and in the whole network."""


def weights_violation(
    weights: FloatArray,
    *,
    contract: RunContract,
    kind: Kind,
    network: Name,
    round: int,
    last: tuple[int, FloatArray] | None = None,
) -> str | None:
    """Why ``weights`` (K, D) are none of an honest request; None if they may be.

    ``last`` are round and weights (D,) of the last request for local steps that was answered. The
    text is for the site's own log.
    """
    violation = _malformed(weights, contract, kind, network)
    if violation is not None:
        return violation
    table = layers(contract.network(network))
    begun = list(_parts(start(contract, kind=kind, network=network, round=round), table))
    rows = torch.from_numpy(np.array(weights, dtype=np.float32))
    noise = noise_deviation(contract) * math.sqrt(round - 1) if kind == "local-steps" else 0.0
    for number, (row, length) in enumerate(zip(rows, _strides(contract, kind, round), strict=True)):
        for place, (now, then) in enumerate(zip(_parts(row, table), begun, strict=True)):
            violation = _travelled(now, then, stride=length, noise=noise)
            if violation is None and not noise:  # which may do to a filter what it likes
                violation = _alike(now, then)
            if violation is not None:
                return f"vector {number}, layer {place}: {violation}"
    return _too_close(rows, table) or _jumped(rows[0], contract, round=round, last=last)


def judged_violation(
    weights: FloatArray,
    anchor: FloatArray | None,
    *,
    contract: RunContract,
    last: tuple[int, FloatArray] | None = None,
) -> str | None:
    """Why networks are none that a contract's judges can be; None if they may be.

    ``weights`` (K, D) are students, training after training of each set in turn; ``anchor`` (1, D')
    is the anchor after its rounds. What is far from where training starts, or has a filter turned
    off, is refused as in a request for gradients.
    """
    plan = contract.evaluation
    expected = parameter_count(contract.student)
    if weights.ndim != 2 or weights.shape[1] != expected or len(weights) % plan.seeds:
        return f"judges of shape {weights.shape}, not (n * {plan.seeds}, {expected})"
    if not bool(np.isfinite(weights).all()):
        return "not finite"
    table = layers(contract.student)
    begun = [
        list(_parts(initial_weights(contract.student, seed=judge_seed(contract, number)), table))
        for number in range(plan.seeds)
    ]
    length = min(stride(plan.steps, of=plan.steps), LONGEST)
    for number, row in enumerate(torch.from_numpy(np.array(weights, dtype=np.float32))):
        before = begun[number % plan.seeds]
        for place, (now, then) in enumerate(zip(_parts(row, table), before, strict=True)):
            violation = _travelled(now, then, stride=length, noise=0.0) or _alike(now, then)
            if violation is not None:
                return f"judge {number}, layer {place}: {violation}"
    if anchor is None:
        return None
    after = contract.anchor.rounds + 1
    return weights_violation(
        anchor, contract=contract, kind="local-steps", network="anchor", round=after, last=last
    )


def _malformed(weights: FloatArray, contract: RunContract, kind: Kind, network: Name) -> str | None:
    """Why ``weights`` are not so many finite vectors of the network's length."""
    expected = parameter_count(contract.network(network))
    vectors = 1 if kind == "local-steps" else len(contract.probes.depths)
    if kind == "local-steps" and network != "anchor":
        return "descents are asked of the anchor alone"
    if weights.shape != (vectors, expected):
        return f"weights of shape {weights.shape}, not ({vectors}, {expected})"
    if not bool(np.isfinite(weights).all()):
        return "not finite"
    return None


def _strides(contract: RunContract, kind: Kind, round: int) -> list[float]:
    """How far training may have gone to each of a request's vectors."""
    if kind == "gradients":
        depths = sorted(contract.probes.depths)
        strides = [stride(depth, of=depths[-1]) for depth in depths]
    else:
        plan = contract.anchor
        public = stride(plan.public_steps, of=plan.public_steps)
        local = stride(plan.local_steps, of=plan.local_steps, learning_rate=plan.learning_rate)
        strides = [math.hypot(public, local * math.sqrt(round - 1))]
    return [min(one, LONGEST) for one in strides]


@dataclass(frozen=True)
class _Part:
    """A layer's share of a flat vector."""

    layer: Layer
    kernel: Tensor  # (out, in * k * k)
    bias: Tensor  # (out,)


def _parts(vector: Tensor, table: tuple[Layer, ...]) -> Iterator[_Part]:
    offset = 0
    for layer in table:
        after = offset + layer.weights
        kernel, bias = vector[offset:after].double(), vector[after : after + layer.outputs].double()
        offset += layer.parameters
        if layer.transposed:
            kernel = kernel.view(layer.inputs, layer.outputs, -1).transpose(0, 1)
        yield _Part(layer, kernel.reshape(layer.outputs, -1), bias)


def _travelled(now: _Part, then: _Part, *, stride: float, noise: float) -> str | None:
    """Whether a layer is farther from its start than ``stride`` allows, and ``noise`` adds."""
    layer = now.layer
    unit = stride / math.sqrt(min(WIDEST, max(layer.inputs, layer.outputs)))
    moved, shifted = now.kernel - then.kernel, now.bias - then.bias
    for what, part, factor in (
        ("kernel", moved.flatten(), KERNEL),
        ("biases", shifted, BIAS),
        ("filter", moved[moved.norm(dim=1).argmax()], FILTER),
    ):
        numbers = len(part)
        allowed = factor * unit * math.sqrt(numbers)
        allowed += noise * (math.sqrt(numbers) + TAIL)
        # Of untrained weights nothing may have moved, but they were rounded.
        if float(part.norm()) > allowed + 1e-6 * math.sqrt(numbers):
            return f"{what} moved {float(part.norm()):.3g}, at most {allowed:.3g} is honest"
    return None


def _alike(now: _Part, then: _Part) -> str | None:
    """Whether a filter has faded, or two have been made the same up to a factor."""
    if float((now.kernel.norm(dim=1) / then.kernel.norm(dim=1)).min()) < FADED:
        return "a filter has faded"
    if now.layer.outputs == 1:
        return None
    if bool((_angles(now.kernel) < NARROWED * _angles(then.kernel)).any()):
        return "two filters have become alike"
    return None


def _angles(kernel: Tensor) -> Tensor:
    """Angles between the lines along all pairs of filters (out, n), in radians: (pairs,)."""
    unit = kernel / kernel.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return torch.arccos((unit @ unit.T)[first, second].abs().clamp(max=1.0))


def _too_close(rows: Tensor, table: tuple[Layer, ...]) -> str | None:
    """Whether two probes (of K, D) differ in a part of the network alone, or hardly at all.

    What differs in the first layer differs in all that follows. Units may die in training, most of
    a layer of them, and stand still from then on.
    """
    for one, other in itertools.combinations(range(len(rows)), 2):
        between = _parts(rows[other] - rows[one], table)
        moved = [part.kernel.square().mean(dim=1).sqrt() >= APART for part in between]
        shares = [float(each.double().mean()) for each in (moved[0], torch.cat(moved))]
        if min(shares) < EVERYWHERE:
            return f"of vectors {one} and {other} too few filters differ"
    return None


def _jumped(
    weights: Tensor, contract: RunContract, *, round: int, last: tuple[int, FloatArray] | None
) -> str | None:
    """Whether an anchor (D,) moved more since the ``last`` request than its rounds allow."""
    if last is None:
        return None
    before, weights_before = last
    moved = float((weights.double() - torch.from_numpy(weights_before.astype(np.float64))).norm())
    allowed = step_bound(contract) * (round - before) * TOLERANCE
    if moved > allowed:
        return f"the anchor moved {moved:.3g} since round {before}, at most {allowed:.3g} is honest"
    return None
