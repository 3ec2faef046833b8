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

from collections.abc import Sequence

import torch
from torch import Tensor

from aggregator.distill.anchor import averaged, balanced, descend
from aggregator.distill.bank import Bank, Entry, dealt
from aggregator.distill.directions import Foundation, OnStep, free_network
from aggregator.distill.matching import (
    after,
    distance_to,
    robust_mean,
    variance_of_mean,
    watched,
)
from aggregator.distill.observation import Observer
from aggregator.distill.personas import persona_distances
from aggregator.distill.prior import Prior
from aggregator.distill.schedule import LEARNING_RATE, Ask, ask_of_round
from aggregator.distill.shrinkage import noise_deviation, shrunk
from aggregator.distill.spg import Parameters, identity_parameters, personalise_at_price
from aggregator.distill.tiles import Tiles, tiling
from shared.contract import RunContract
from shared.gradients import patient_parts, request_seed
from shared.reduction import sketched, sketches_of
from shared.sketch import Sketch, layer_scales
from shared.subspace import lift
from shared.tasks.degradation import degrade, parts
from shared.training import dihedral, enhance, enhance_symmetric, fit_pairs, noisy_pool
from shared.trajectory import start_seed, step_bound

EMA = 0.98
LOSS_STEPS = 20
CURVES = ("tone", "spectrum")
CURVE_RATE = 0.05
"""Adam's step for the few parameters of the curves; pixels and grids move a tenth as fast."""
ROUGHNESS_WEIGHT = 10.0
PROBE_POOL_DRAWS = 8
RECENT_REQUESTS = 2


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
        foundation: Foundation | None = None,
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
        self.loss: float | None = None
        """Matching distance () over the last steps of the last match."""
        self.cosines: tuple[float, ...] | None = None
        """Of each persona's gradient with its target of the last round, over the same steps."""
        self._asked: Tensor | None = None
        self._basis: Tensor | None = None
        self._spread: Tensor | None = None
        self._sketches: list[Sketch] = []
        if foundation is not None:
            self._start_from(foundation.public_weights.to(device))
            self._basis = None if foundation.basis is None else foundation.basis.to(device)
            self._spread = None if foundation.spread is None else foundation.spread.to(device)

    @property
    def finished(self) -> bool:
        """Whether every round of the contract has been absorbed."""
        return self.round >= self.contract.rounds

    def prepare(self) -> None:
        """Trains the free public network where that has not been done."""
        if self.public_weights is None:
            self._start_from(
                free_network(self.contract, self.prior, device=self.device, on_step=self._on_step)
            )

    def _start_from(self, public_weights: Tensor) -> None:
        self.public_weights = public_weights
        self.anchor_weights = public_weights.clone()  # a checkpoint shares no memory

    def ask(self) -> tuple[Ask, Tensor]:
        """The next round's question and its weights (K, D); ``RuntimeError`` when finished."""
        if self.finished or self.anchor_weights is None:
            raise RuntimeError("nothing to ask: finished, or not prepared")
        ask, self._sketches = ask_of_round(self.contract, self.round + 1), []
        if ask.kind == "local-steps":
            self._asked = self.anchor_weights[None]
        else:
            self._asked = self._probe_weights(ask)
            if self.contract.privacy.sketch:
                self._sketches = self._sketches_at(self._asked, ask)
        return ask, self._asked

    def reducing(self) -> dict[str, Tensor]:
        """What goes with the last question, for its answers to be reduced with: arrays by name."""
        if self._sketches:
            return {"scales": torch.stack([sketch.scales for sketch in self._sketches])}
        asks_descents = self.round < self.contract.anchor.rounds
        return {"basis": self._basis} if asks_descents and self._basis is not None else {}

    def sketched(self, rows: Tensor) -> Tensor:
        """Gradients (K, D) at the last question's weights, reduced as hospitals' are: (K, R)."""
        return sketched(self._sketches, rows) if self._sketches else rows

    def absorb(
        self, values: Sequence[Tensor], *, patients: Sequence[int], sites: int | None = None
    ) -> None:
        """Takes the sites' answers to the last question and does the round's steps.

        ``values`` are (K, R) a site, or (P, K, R) of its patients; ``patients`` weight the sites.
        ``sites`` says of how many a single answer is the sum.
        """
        if self._asked is None:
            raise RuntimeError("absorb() before ask()")
        ask = ask_of_round(self.contract, self.round + 1)
        # A site's answer for itself is one block of its own; patients are one block each.
        blocks = [value.to(self.device).view(-1, *value.shape[-2:]) for value in values]
        means = [block.mean(dim=0) for block in blocks]
        mean = averaged(means, patients=patients)
        if ask.kind == "local-steps":
            noise = noise_deviation(
                self.contract, ask.kind, rows=len(mean), sites=sites or len(values)
            )
            mean = shrunk(mean, deviation=noise, spread=self._spread)
            descent = mean if self._basis is None else lift(self._basis, mean)
            at_most = step_bound(self.contract)
            self.anchor_weights = descend(self._asked[0], descent[0], at_most=at_most)
        else:
            persona, everyone = self.contract.spg.persona, torch.cat(balanced(blocks))
            followed = {"federation": [mean], "cohort": means, "patient": list(everyone)}[persona]
            self.bank.add(
                round=ask.round,
                network=ask.network,
                weights=self._asked,
                targets=dealt(torch.stack(followed), self.contract.images),
                variance=variance_of_mean(everyone),
                sketches=self._sketches,
            )
            self._match(ask.round)
        self.round, self._asked = ask.round, None

    def pairs(self, of: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The pairs to release, LQ and HQ, both (T * N, 1, S, S) on the CPU, task by task.

        ``of`` numbers some of the N images; their noise is drawn as if there were no others.
        """
        start = self.contract.anchor.rounds and self.contract.anchor.inputs == "start"
        hq = self.start if start else self.images
        if of is not None:
            hq = hq[list(of)]
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
        seed = start_seed(self.contract, kind="gradients", round=ask.round)
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

    def _sketches_at(self, weights: Tensor, ask: Ask) -> list[Sketch]:
        """The sketch of each probe (K, D), whitened by the free images' gradient there."""
        (public,) = patient_parts(
            contract=self.contract,
            kind="gradients",
            network=ask.network,
            weights=weights,
            patients=[self.prior.free],
            seed=self._seed("scales", ask.round),
            device=self.device,
        )
        network = self.contract.network(ask.network)
        scales = torch.stack([layer_scales(network, row) for row in public])
        return sketches_of(self.contract, scales, network=ask.network, round=ask.round)

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
        entries = [(entry, self._sketch(entry)) for entry in self.bank.recent(requests)]
        observer = Observer(self.contract.task, self.images, generator=generator)
        kept, sweep = self.images.clone(), list[Tiles]()
        distances, cosines = list[Tensor](), list[tuple[int, Tensor]]()
        for step in range(1, steps + 1):
            if not sweep:
                sweep = tiling(kept.shape[-1]).sweep(len(kept), generator=generator)
                observer.renew()
            entry, sketch = entries[int(torch.randint(len(entries), (1,), generator=generator))]
            turn = int(torch.randint(8, (1,), generator=generator))
            images, roughness = personalise_at_price(self.start, leaves, spg)
            observed = observer.observe(images)
            distance, agreeing = self._distance(images, observed, entry, sketch, sweep.pop(), turn)
            distances = [*distances[1 - LOSS_STEPS :], distance.detach()]
            cosines = [*cosines[1 - LOSS_STEPS :], (entry.round, agreeing)]
            optimiser.zero_grad(set_to_none=True)
            total = distance + ROUGHNESS_WEIGHT * roughness
            total.backward(inputs=moved)  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            kept.lerp_(images.detach(), 1 - EMA)
            self._on_step("distil", step, steps)
        self.loss = float(torch.stack(distances).mean())
        # An earlier round may have had other personas.
        newest = [agreeing for asked, agreeing in cosines if asked == round]
        self.cosines = tuple(torch.stack(newest).mean(dim=0).tolist()) if newest else None
        self.images = kept
        self.parameters = {name: value.detach() for name, value in leaves.items()}

    def _sketch(self, entry: Entry) -> Sketch | None:
        if not len(entry.scales):
            return None
        network, size = self.contract.network(entry.network), self.contract.privacy.sketch
        return Sketch(network, size=size, seed=entry.seed, scales=entry.scales)

    def _distance(
        self,
        images: Tensor,
        observed: Tensor,
        entry: Entry,
        sketch: Sketch | None,
        tiles: Tiles,
        turn: int,
    ) -> tuple[Tensor, Tensor]:
        """Matching distance () of the set at one probe, over its personas; their cosines (G,)."""
        probes, network = self.contract.probes, self.contract.network(entry.network)
        division = tiling(images.shape[-1])
        windows = division.cut(torch.cat([observed, images], dim=1), tiles)
        inside = division.inside(tiles, device=images.device)
        cosines: list[Tensor] = []
        distances = [
            watched(
                distance_to(target, name=probes.distance, network=network, variance=entry.variance),
                target=target,
                cosines=cosines,
            )
            for target in entry.targets
        ]
        if sketch is not None:
            distances = [after(sketch, distance) for distance in distances]
        found = persona_distances(
            network,
            weights=entry.weights,
            windows=dihedral(windows, turn),
            counted=dihedral(inside, turn) * division.weight,
            distances=distances,
            form=probes.form,
            together=images.is_cuda,
        )
        return robust_mean(found), torch.stack(cosines)
