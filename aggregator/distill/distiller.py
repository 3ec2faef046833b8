"""The distiller: from banked summaries to a small set of high-/low-quality pairs.

1. A network is trained on public images alone (*free*: nothing of a hospital is in it).
2. Anchor rounds: hospitals answer with accumulated gradients; the network moves to their optimum.
3. Probe rounds: a fresh student is trained on the current set; at points of its trajectory the
   hospitals' mean gradients are asked for and banked; many optimisation steps pull the set's own
   gradients towards them by moving the SPG's parameters.
4. The released pairs: LQ = degrade(image) with a fixed seed, HQ = anchor(LQ).

Pure: no files, no sockets, no clock. Everything random follows from the contract's digest, so a
state restored from a checkpoint goes on exactly as the one it was taken from.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aggregator.distill.anchor import averaged, descend
from aggregator.distill.bank import Bank, Entry
from aggregator.distill.matching import relative_squared_distance
from aggregator.distill.prior import Prior
from aggregator.distill.schedule import LEARNING_RATE, Ask, ask_of_round
from aggregator.distill.spg import Parameters, identity_parameters, personalise, roughness
from shared.contract import RunContract
from shared.gradients import request_seed
from shared.networks import apply_network, restoration_loss
from shared.tasks.degradation import Level, degrade, level_of, observe, parts
from shared.training import dihedral, enhance, fit_pairs, noisy_pool

EMA = 0.98
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
        self.prior = prior.start.to(device)
        self._free = prior.free
        self.provenance = prior.provenance
        self._on_step = on_step
        self._digest = contract.digest()
        self.round = 0
        self.anchor_weights: Tensor | None = None
        self.parameters: Parameters = {
            name: value.to(device)
            for name, value in identity_parameters(contract.images, contract.task.size_px).items()
        }
        self.images = self.prior.clone()
        self.bank = Bank()
        self._asked: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether every round of the contract has been absorbed."""
        return self.round >= self.contract.rounds

    def prepare(self) -> None:
        """Trains the free public network where that has not been done."""
        if self.anchor_weights is not None:
            return
        seed = self._seed("public")
        self.anchor_weights = fit_pairs(
            lq=noisy_pool(
                self.contract.task, self._free.to(self.device), draws=FREE_POOL_DRAWS, seed=seed
            ),
            hq=self._free,
            network=self.contract.anchor_network,
            steps=self.contract.anchor.public_steps,
            seed=seed,
            device=self.device,
            on_step=lambda done, total: self._on_step("public", done, total),
        )

    def ask(self) -> tuple[Ask, Tensor]:
        """The next round's question and its weights (K, D); ``RuntimeError`` when finished."""
        if self.finished or self.anchor_weights is None:
            raise RuntimeError("nothing to ask: finished, or not prepared")
        ask = ask_of_round(self.contract, self.round + 1)
        if ask.kind == "local-steps":
            self._asked = self.anchor_weights[None]
        else:
            self._asked = self._probe_weights(ask.round)
        return ask, self._asked

    def absorb(self, values: Sequence[Tensor], *, patients: Sequence[int]) -> None:
        """Takes the sites' answers (K, D) to the last question and does the round's steps."""
        if self._asked is None:
            raise RuntimeError("absorb() before ask()")
        ask = ask_of_round(self.contract, self.round + 1)
        mean = averaged([value.to(self.device) for value in values], patients=patients)
        if ask.kind == "local-steps":
            self.anchor_weights = descend(self._asked[0], mean[0])
        else:
            self.bank.add(round=ask.round, weights=self._asked, targets=mean)
            self._match(ask.round)
        self.round, self._asked = ask.round, None

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs to release, LQ and HQ, both (N, 1, S, S) on the CPU."""
        lq = degrade(parts(self.contract.task)[0], self.images, seed=self._seed("release"))
        hq = self.images
        if self.contract.anchor.rounds and self.anchor_weights is not None:
            hq = enhance(self.contract.anchor_network, self.anchor_weights, lq)
        return lq.detach().cpu(), hq.detach().cpu()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as CPU tensors."""
        state = {"round": torch.tensor(self.round), "images": self.images}
        state |= {f"spg.{name}": value for name, value in self.parameters.items()}
        state |= {f"bank.{name}": value for name, value in self.bank.state().items()}
        if self.anchor_weights is not None:
            state["anchor"] = self.anchor_weights
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes over a :meth:`state`. Raises ``KeyError`` on one that is not complete."""
        on_device = {name: value.to(self.device) for name, value in state.items()}
        self.round = int(state["round"])
        self.images = on_device["images"]
        self.parameters = {name: on_device[f"spg.{name}"] for name in self.parameters}
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

    def _probe_weights(self, round: int) -> Tensor:
        """Weights (K, D) along the trajectory of a fresh student trained on the current set."""
        seed = self._seed("probe", round)
        depths = sorted(self.contract.probes.depths)
        return fit_pairs(
            lq=noisy_pool(self.contract.task, self.images, draws=PROBE_POOL_DRAWS, seed=seed),
            hq=self.images,
            network=self.contract.student,
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
        steps = self.contract.probes.steps
        optimiser = torch.optim.Adam(leaves.values(), lr=LEARNING_RATE, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
        entries = self.bank.recent(RECENT_REQUESTS)
        level = level_of(parts(self.contract.task)[0], self.images)
        for step in range(1, steps + 1):
            entry = entries[int(torch.randint(len(entries), (1,), generator=generator))]
            images = personalise(self.prior, leaves)
            loss = self._distance(images, entry, level, generator)
            loss = loss + ROUGHNESS_WEIGHT * roughness(leaves, size_px=images.shape[-1])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                self.images = EMA * self.images + (1 - EMA) * personalise(self.prior, leaves)
            self._on_step("distil", step, steps)
        self.parameters = {name: value.detach() for name, value in leaves.items()}

    def _distance(
        self, images: Tensor, entry: Entry, level: Level, generator: torch.Generator
    ) -> Tensor:
        """Matching distance of the set at one probe: fresh noise, one random symmetry a step.

        The noise level is that of the images at the round's start: a hundred small steps hardly
        move it, and a projection a step is saved.
        """
        observed = observe(parts(self.contract.task)[0], images, level, generator=generator)
        turn = int(torch.randint(8, (1,), generator=generator))
        hq, lq = dihedral(images, turn), dihedral(observed, turn)
        theta = entry.weights.detach().requires_grad_(True)
        loss = restoration_loss(apply_network(self.contract.student, theta, lq), hq)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        return relative_squared_distance(gradient, entry.target)
