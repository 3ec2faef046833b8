"""The distiller: from banked summaries to a small set of high-/low-quality pairs.

1. A network is trained on public images alone (*free*: nothing of a hospital is in it).
2. Anchor rounds: hospitals answer with accumulated gradients; the network moves to their optimum.
3. Probe rounds: a fresh student is trained on the current set; at points of its trajectory the
   hospitals' mean gradients are asked for and banked; many optimisation steps pull the set's own
   gradients towards them by moving the SPG's parameters.
4. The released pairs: LQ = degrade(image) with a fixed seed, HQ = anchor(LQ), where the contract
   says so averaged over the square's symmetries.

A matching step looks at one random tile of every image, through fresh noise, under one random
symmetry. With a finer persona than the federation each image group has a target of its own.

Pure: no files, no sockets, no clock. Everything random follows from the contract's digest, so a
state restored from a checkpoint goes on exactly as the one it was taken from.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aggregator.distill.anchor import averaged, descend
from aggregator.distill.bank import Bank, Entry, dealt
from aggregator.distill.matching import (
    distance_to,
    exact_match,
    finite_difference_match,
    variance_of_mean,
)
from aggregator.distill.observation import Observer
from aggregator.distill.prior import Prior
from aggregator.distill.schedule import LEARNING_RATE, Ask, ask_of_round
from aggregator.distill.spg import Parameters, identity_parameters, personalise_at_price
from aggregator.distill.tiles import Tiles, tiling
from shared.architectures import Network
from shared.contract import RunContract
from shared.gradients import request_seed
from shared.networks import apply_network
from shared.tasks.degradation import degrade, parts
from shared.training import dihedral, enhance, enhance_symmetric, fit_pairs, noisy_pool

EMA = 0.98
CURVES = ("tone", "spectrum")
CURVE_RATE = 0.05
"""Adam's step for the few parameters of the curves; pixels and grids move a tenth as fast."""
ROUGHNESS_WEIGHT = 10.0
PROBE_POOL_DRAWS = 8
FREE_POOL_DRAWS = 4
RECENT_REQUESTS = 2

OnStep = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""


def _silent(phase: str, done: int, total: int) -> None:
    """The default listener."""


class Distiller:
    """The state of one run between rounds."""

    def __init__(
        self,
        contract: RunContract,
        prior: Prior,
        *,
        device: torch.device,
        on_step: OnStep = _silent,
    ) -> None:
        self.contract = contract
        self.device = device
        self.prior = prior
        self.provenance = prior.provenance
        self._on_step = on_step
        self._digest = contract.digest()
        self.round = 0
        self.public_weights: Tensor | None = None
        self.anchor_weights: Tensor | None = None
        neutral = identity_parameters(contract.images, contract.task.size_px, contract.spg)
        self.parameters: Parameters = {name: value.to(device) for name, value in neutral.items()}
        self.start = prior.start.to(device)
        self.images = self.start.clone()
        self.bank = Bank()
        self._asked: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether every round of the contract has been absorbed."""
        return self.round >= self.contract.rounds

    def prepare(self) -> None:
        """Trains the free public network where that has not been done."""
        if self.public_weights is not None:
            return
        seed, free = (
            request_seed(self.contract.foundation(), "public"),
            self.prior.free.to(self.device),
        )
        self.public_weights = fit_pairs(
            lq=noisy_pool(self.contract.task, free, draws=FREE_POOL_DRAWS, seed=seed),
            hq=free,
            network=self.contract.anchor_network,
            steps=self.contract.anchor.public_steps,
            seed=seed,
            device=self.device,
            on_step=lambda done, total: self._on_step("public", done, total),
        )
        self.anchor_weights = self.public_weights.clone()  # a checkpoint shares no memory

    def ask(self) -> tuple[Ask, Tensor]:
        """The next round's question and its weights (K, D); ``RuntimeError`` when finished."""
        if self.finished or self.anchor_weights is None:
            raise RuntimeError("nothing to ask: finished, or not prepared")
        ask = ask_of_round(self.contract, self.round + 1)
        if ask.kind == "local-steps":
            self._asked = self.anchor_weights[None]
        else:
            self._asked = self._probe_weights(ask)
        return ask, self._asked

    def absorb(self, values: Sequence[Tensor], *, patients: Sequence[int]) -> None:
        """Takes the sites' answers to the last question and does the round's steps.

        ``values`` are (K, D) a site, or (P, K, D) of its patients; ``patients`` weight the sites.
        """
        if self._asked is None:
            raise RuntimeError("absorb() before ask()")
        ask = ask_of_round(self.contract, self.round + 1)
        # A site's answer for itself is one block of its own; patients are one block each.
        blocks = [value.to(self.device).view(-1, *self._asked.shape) for value in values]
        means = [block.mean(dim=0) for block in blocks]
        mean = averaged(means, patients=patients)
        if ask.kind == "local-steps":
            self.anchor_weights = descend(self._asked[0], mean[0])
        else:
            persona, everyone = self.contract.spg.persona, torch.cat(blocks)
            followed = {"federation": [mean], "cohort": means, "patient": list(everyone)}[persona]
            self.bank.add(
                round=ask.round,
                network=ask.network,
                weights=self._asked,
                targets=dealt(torch.stack(followed), self.contract.images),
                variance=variance_of_mean(everyone),
            )
            self._match(ask.round)
        self.round, self._asked = ask.round, None

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs to release, LQ and HQ, both (T * N, 1, S, S) on the CPU, task by task."""
        start = self.contract.anchor.rounds and self.contract.anchor.inputs == "start"
        hq = self.start if start else self.images
        if self.contract.anchor.rounds and self.anchor_weights is not None:
            return self.anchored(hq, self.anchor_weights)
        lq = self._degraded(hq)
        return lq.cpu(), hq.repeat(len(parts(self.contract.task)), 1, 1, 1).cpu()

    def anchored(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of ``images`` (N, 1, S, S) with the answers of the anchor network's ``weights``."""
        lq = self._degraded(images.to(self.device))
        answer = enhance_symmetric if self.contract.anchor.symmetric else enhance
        hq = answer(self.contract.anchor_network, weights.to(self.device), lq)
        return lq.cpu(), hq.cpu()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as CPU tensors."""
        state = {"round": torch.tensor(self.round), "images": self.images}
        state |= {f"spg.{name}": value for name, value in self.parameters.items()}
        state |= {f"bank.{name}": value for name, value in self.bank.state().items()}
        if self.public_weights is not None and self.anchor_weights is not None:
            state |= {"public": self.public_weights, "anchor": self.anchor_weights}
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes over a :meth:`state`. Raises ``KeyError`` on one that is not complete."""
        on_device = {name: value.to(self.device) for name, value in state.items()}
        self.round = int(state["round"])
        self.images = on_device["images"]
        self.parameters = {name: on_device[f"spg.{name}"] for name in self.parameters}
        self.public_weights = on_device.get("public")
        self.anchor_weights = on_device.get("anchor")
        self.bank = Bank.restored(
            {
                name.removeprefix("bank."): value
                for name, value in on_device.items()
                if name.startswith("bank.")
            }
        )

    def _seed(self, *parts: str | int) -> int:
        return request_seed(self._digest, *parts)

    def _degraded(self, images: Tensor) -> Tensor:
        """LQ of ``images``, task by task: (T * N, 1, S, S)."""
        seed = self._seed("release")
        return torch.cat([degrade(part, images, seed=seed) for part in parts(self.contract.task)])

    def _probe_weights(self, ask: Ask) -> Tensor:
        """Weights (K, D) along the trajectory of a fresh network trained on the current set."""
        seed = self._seed("probe", ask.round)
        depths = sorted(self.contract.probes.depths)
        return fit_pairs(
            lq=noisy_pool(self.contract.task, self.images, draws=PROBE_POOL_DRAWS, seed=seed),
            hq=self.images,
            network=self.contract.network(ask.network),
            steps=max(depths),
            seed=seed,
            device=self.device,
            checkpoints=depths,
            on_step=lambda done, total: self._on_step("probes", done, total),
        )

    def _match(self, round: int) -> None:
        """Optimisation steps on the bank; the exponential mean of the images is what is kept."""
        generator = torch.Generator().manual_seed(self._seed("match", round))
        leaves = {
            name: value.detach().clone().requires_grad_(True)
            for name, value in self.parameters.items()
        }
        if not leaves:
            return
        steps, spg = self.contract.probes.steps, self.contract.spg
        moved = list(leaves.values())
        rates = [
            {"params": [leaf], "lr": CURVE_RATE if name in CURVES else LEARNING_RATE}
            for name, leaf in leaves.items()
        ]
        optimiser = torch.optim.Adam(rates, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
        requests = max(RECENT_REQUESTS, len(set(self.contract.probes.networks)))
        entries = self.bank.recent(requests)
        observer = Observer(self.contract.task, self.images, generator=generator)
        kept, sweep = self.images.clone(), list[Tiles]()
        for step in range(1, steps + 1):
            if not sweep:
                sweep = tiling(kept.shape[-1]).sweep(len(kept), generator=generator)
                observer.renew()
            entry = entries[int(torch.randint(len(entries), (1,), generator=generator))]
            turn = int(torch.randint(8, (1,), generator=generator))
            images, roughness = personalise_at_price(self.start, leaves, spg)
            observed = observer.observe(images)
            distance = self._distance(images, observed, entry, sweep.pop(), turn)
            optimiser.zero_grad(set_to_none=True)
            total = distance + ROUGHNESS_WEIGHT * roughness
            total.backward(inputs=moved)  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            kept.lerp_(images.detach(), 1 - EMA)
            self._on_step("distil", step, steps)
        self.images = kept
        self.parameters = {name: value.detach() for name, value in leaves.items()}

    def _distance(
        self, images: Tensor, observed: Tensor, entry: Entry, tiles: Tiles, turn: int
    ) -> Tensor:
        """Matching distance () of the set at one probe, the mean over its personas."""
        probes, network = self.contract.probes, self.contract.network(entry.network)
        division = tiling(images.shape[-1])
        windows = division.cut(torch.cat([observed, images], dim=1), tiles)
        inside = division.inside(tiles, device=images.device)
        windows, inside = dihedral(windows, turn), dihedral(inside, turn)
        match = exact_match if probes.form == "exact" else finite_difference_match
        groups, total = len(entry.targets), images.new_zeros(())
        for group, target in enumerate(entry.targets):
            mine, counted = windows[group::groups], inside[group::groups]
            total = total + match(
                functools.partial(_loss_inside, network, counted * (division.weight / len(mine))),
                weights=entry.weights,
                lq=mine[:, :1],
                hq=mine[:, 1:],
                distance=distance_to(
                    target, name=probes.distance, network=network, variance=entry.variance
                ),
            )
        return total / groups


def _loss_inside(
    network: Network, counted: Tensor, theta: Tensor, lq: Tensor, hq: Tensor
) -> Tensor:
    """Squared error () of a network's answers to windows, each pixel as often as ``counted``."""
    return (counted * (apply_network(network, theta, lq) - hq).square()).sum()
