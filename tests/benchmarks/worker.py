"""Gradients a second of the worker, beside a bare PyTorch loop that computes the same gradients.

``python tests/benchmarks/worker.py [--patients 10] [--json FILE]``

Both take the same request: gradients at several weights, per patient, over the same noisy slices,
clipped and averaged. The loop has modules of ``torch.nn`` and images in memory; the worker decodes
the request, obeys its policy, holds the weights against what training can have led to, reads its
cohort, leaves out what one patient alone moves, and writes audit log and outbox before it answers.
Rounds alternate, so that both see the same machine; the ratio is of medians. Runs on the first CUDA
device where there is one.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aggregator.distill.prior import phantoms
from shared.contract import RunContract
from shared.gradients import request_seed
from shared.messages import decode, encode, probe_batch
from shared.training import fit_pairs, noisy_pool
from shared.trajectory import start
from site_agent.cohort import Cohort, build_cohort, open_cohort
from site_agent.enrolment import enrol
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.outbox import Outbox
from site_agent.settings import SiteSettings
from site_agent.summaries import device
from site_agent.worker import answer

SITE = "site-a"
BAR = 0.95
DEPTHS = (0, 30, 120)


class Bare(nn.Module):
    """The default student as one would write it: a residual stack of 3x3 convolutions."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        channels = [1, *[width] * (depth - 1), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(channels)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Enhances (N, 1, H, W)."""
        hidden = image
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        return image + self.layers[-1](hidden)


def bare_mean(
    contract: RunContract, weights: Tensor, patients: list[Tensor], seeds: list[int]
) -> Tensor:
    """Mean over patients of clipped gradients (K, D)."""
    network = contract.student
    assert network.kind == "residual"
    model = Bare(network.depth, network.width).to(weights.device, memory_format=torch.channels_last)
    total = torch.zeros_like(weights)
    for slices, seed in zip(patients, seeds, strict=True):
        hq = slices.to(weights.device)
        lq = noisy_pool(contract.task, hq, draws=contract.probes.draws, seed=seed)
        lq = lq.contiguous(memory_format=torch.channels_last)
        hq = hq.repeat(len(lq) // len(hq), 1, 1, 1)
        for row, theta in enumerate(weights):
            nn.utils.vector_to_parameters(theta, model.parameters())
            model.zero_grad(set_to_none=True)
            for inputs, targets in zip(lq.split(8), hq.split(8), strict=True):
                loss = nn.functional.mse_loss(model(inputs), targets) * (len(inputs) / len(lq))
                loss.backward()
            found = torch.cat([one.grad.flatten() for one in model.parameters()])
            total[row] += found * min(1.0, contract.probes.clip_norm / float(found.norm()))
    return total / len(patients)


def site(folder: Path, contract: RunContract, patients: int, slices: int) -> Cohort:
    """A cohort of phantoms, some slices a patient."""
    low, high = contract.task.window
    drawn = phantoms(contract, count=patients * slices, textured=True)[:, 0].numpy()
    hounsfield = (drawn * (high - low) + low).round().astype(np.int16)
    build_cohort(
        folder,
        (
            PatientSlices(
                f"{number:032x}",
                [Slice(one, (2.8, 2.8), 2.0) for one in hounsfield[number::patients]],
            )
            for number in range(patients)
        ),
        modality="CT",
    )
    return open_cohort(folder)


def request(contract: RunContract, round: int) -> bytes:
    """Weights such as an aggregator sends: along a trajectory from the contract's start."""
    images = phantoms(contract, count=8, textured=True)
    begun = start(contract, kind="gradients", network="student", round=round)
    weights = fit_pairs(
        lq=noisy_pool(contract.task, images, draws=2, seed=round),
        hq=images,
        network=contract.student,
        steps=max(DEPTHS),
        seed=round,
        device=torch.device("cpu"),
        start=begun,
        checkpoints=DEPTHS,
    )
    return encode(
        probe_batch(
            contract=contract,
            round=round,
            kind="gradients",
            network="student",
            weights=weights.numpy(),
        )
    )


def measure(patients: int, slices: int, rounds: int) -> dict[str, Any]:
    """Gradients a second of both, round by round."""
    contract = RunContract(name="speed")
    contract = contract.model_copy(
        update={
            "anchor": contract.anchor.model_copy(update={"rounds": 0}),
            "probes": contract.probes.model_copy(update={"requests": rounds + 1}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings: SiteSettings = enrol(
            home=home / "home", name=SITE, aggregator="localhost:1", images=home
        )
        cohort = site(settings.cohort_path, contract, patients, slices)
        outbox = Outbox(settings.outbox_path)
        images = [
            torch.from_numpy(one)
            for one in cohort.images(
                size_px=contract.task.size_px,
                low=contract.task.window[0],
                high=contract.task.window[1],
            )
        ]
        spent: dict[str, list[float]] = {"worker": [], "bare loop": []}
        apart = 0.0
        for number in range(1, rounds + 2):
            payload = request(contract, number)
            began = time.perf_counter()
            reply = answer(payload, settings=settings, cohort=cohort, outbox=outbox)
            worker_s = time.perf_counter() - began
            answered = decode(reply)
            if answered.header.type != "summary":
                raise SystemExit(f"the worker refused: {answered.header}")
            weights = torch.from_numpy(np.array(decode(payload).arrays["weights"])).to(device())
            seed = request_seed(contract.digest(), number, SITE)
            seeds = [patient_seed(seed, one) for one in images]
            began = time.perf_counter()
            mean = bare_mean(contract, weights, images, seeds).cpu()
            bare_s = time.perf_counter() - began
            theirs = torch.from_numpy(np.array(answered.arrays["values"]))
            apart = max(apart, float((theirs - mean).norm() / mean.norm()))
            if number > 1:  # the first warms both up
                spent["worker"].append(worker_s)
                spent["bare loop"].append(bare_s)
    gradients = patients * len(DEPTHS)
    rates = {name: gradients / statistics.median(seconds) for name, seconds in spent.items()}
    return {
        "device": str(device()),
        "threads": torch.get_num_threads(),
        "patients": patients,
        "slices_per_patient": slices,
        "gradients_a_round": gradients,
        "rounds": rounds,
        "gradients_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["worker"] / rates["bare loop"], 3),
        "bar": BAR,
        "largest_relative_difference": apart,
    }


def patient_seed(seed: int, slices: Tensor) -> int:
    """The seed of one patient's noise, as sites have it."""
    return request_seed(seed, hashlib.sha256(slices.numpy().tobytes()).hexdigest())


def main() -> int:
    """Prints one table; 0 where the bar is cleared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--slices", type=int, default=4, help="of a patient")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one to warm up")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.patients, given.slices, given.rounds)
    for name, rate in found["gradients_per_second"].items():
        print(f"{name:<12} {rate:8.2f} gradients/s")
    cleared = found["ratio"] >= BAR
    print(f"{'ratio':<12} {found['ratio']:8.3f}  >= {BAR}: {'cleared' if cleared else 'MISSED'}")
    print(f"largest relative difference of the means {found['largest_relative_difference']:.1e}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if cleared else 1


if __name__ == "__main__":
    sys.exit(main())
