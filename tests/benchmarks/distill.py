"""The distillation's wall time beside a plain condensation loop, at equal utility, in one run.

``python tests/benchmarks/distill.py --data ../shared/data/ct [--device cuda] [--json out.json]``

1. Hospitals are simulated from the folder and the contract is distilled with them; counted are the
   free training, the sites' answers and the distiller's steps, nothing of transport.
2. A judge trains on the pairs (patient-mean PSNR on patients kept apart).
3. Plain dataset condensation (Zhao, Mopuri, Bilen, ICLR 2021, algorithm 1) of the same prior, with
   the hospitals' images in its hands, as a federation could not have them: pixels are free, each
   outer iteration draws a new network, each inner one asks for a raw gradient on real images,
   matches it filter by filter through exact double backward, and trains the network a little on
   the set. It runs for 1, 2, 4, ... times the distiller's seconds and is judged each time, until
   its set is as good as the distilled one, or the cap is reached: "not reached".
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from aggregator.arms import Arm
from aggregator.benchmark import PRIOR_FOLDER
from aggregator.benchmark_contract import settled
from aggregator.distill.matching import filterwise_cosine
from aggregator.distill.prior import build_prior
from aggregator.federation import PAIRS, RESULT, federate
from aggregator.judges import Judge, judge_arms
from aggregator.simulate import in_process, open_hospitals
from shared.contract import RunContract
from shared.networks import apply_network, initial_weights, restoration_loss
from shared.readers import read_images
from shared.tasks.degradation import degrade, level_of, observe, parts

COUNTED = ("public", "sites-anchor", "sites-probes", "anchor", "probes", "distil")
"""Phases of a run that are computing, not waiting."""
INNER = 10
"""Matching steps on one network before the next is drawn: the paper's for ten images a class."""
NETWORK_STEPS = 5
REAL_BATCH = 16
PIXEL_RATE = 0.01
NETWORK_RATE = 2e-3


def main() -> int:
    """Measures and prints; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with hospital-*")
    parser.add_argument("--contract", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--prior", default="both", choices=("phantom", "public", "both"))
    parser.add_argument("--split", default="choosing", choices=("choosing", "reporting"))
    parser.add_argument("--sequence")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of the distiller and of the loop")
    parser.add_argument("--cap", type=float, default=8.0, help="times the distiller's seconds")
    parser.add_argument("--steps", type=int, default=4800, help="training steps of each judge")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a third of the distillation's steps")
    parser.add_argument("--workers", type=int, default=2, help="judging processes; not timed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.device == "cpu" and torch.cuda.is_available():
        parser.error("this machine has a GPU, which the sites would use: say --device cuda")
    torch.set_num_threads(given.threads)
    contract = settled(
        given.contract, task=given.task, prior=given.prior, images=None, quick=given.quick
    )
    with tempfile.TemporaryDirectory() as place:
        report = compare(given, contract, Path(place))
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0


def compare(given: argparse.Namespace, contract: RunContract, place: Path) -> dict[str, Any]:
    """Both sides, their seconds and what their sets are worth."""
    task, device = contract.task, torch.device(given.device)
    hospitals, holdout = open_hospitals(
        given.data,
        contract=contract,
        homes=place / "sites",
        split=given.split,
        sequence=given.sequence,
    )
    folder = None if contract.prior.kind == "phantom" else given.data / PRIOR_FOLDER
    judge = Judge(task, contract.student, given.steps, given.seeds, given.workers, given.device)

    def judged(lq: Tensor, hq: Tensor) -> float:
        arm = Arm("distilled", hq.cpu(), lq=lq.cpu())
        (runs,) = judge_arms(
            [arm], holdout, judge=judge, cache=place / "judged", on_progress=lambda *_: None
        )
        return statistics.mean(statistics.mean(one.score.psnr_db) for one in runs)

    run = place / "run"
    federate(
        contract=contract,
        sites=[one.name for one in hospitals],
        exchange=in_process(hospitals, modality=task.modality, outboxes=place / "outbox"),
        run=run,
        public=folder,
    )
    spent = json.loads((run / RESULT).read_bytes())["seconds"]
    ours_s = sum(spent.get(phase, 0.0) for phase in COUNTED)
    pairs = load_file(run / PAIRS)
    ours_db = judged(pairs["lq"], pairs["hq"])
    say(f"distiller: {ours_db:.2f} dB after {ours_s:.1f} s")

    public = None
    if folder is not None:
        low, high = task.window
        read = read_images(folder, size_px=task.size_px, low=low, high=high, modality=task.modality)
        public = torch.from_numpy(np.concatenate(read))
    start = build_prior(contract, public=public).start
    real = torch.from_numpy(
        np.concatenate([patient for one in hospitals for patient in one.training_images(task)])
    )
    plain = []
    stops = marks(ours_s, given.cap)
    for seconds, images in condensed(contract, start, real, device=device, marks=stops):
        lq = torch.cat([degrade(part, images, seed=1) for part in parts(task)])
        psnr = judged(lq, images.repeat(len(parts(task)), 1, 1, 1))
        plain.append({"seconds": round(seconds, 2), "times": seconds / ours_s, "psnr": psnr})
        say(f"plain loop: {psnr:.2f} dB after {seconds:.1f} s ({seconds / ours_s:.1f}×)")
        if psnr >= ours_db:
            break
    reached = plain[-1]["psnr"] >= ours_db
    return {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "threads": given.threads,
        "contract_digest": contract.digest(),
        "distiller": {"seconds": round(ours_s, 2), "psnr": ours_db, "phases": spent},
        "plain": plain,
        "prior_psnr": judged(degrade(parts(task)[0], start, seed=1), start),
        "reached": reached,
        "distiller_over_plain": ours_s / plain[-1]["seconds"],
        "says": f"equal utility in {ours_s / plain[-1]['seconds']:.3f} of the plain loop's time"
        if reached
        else f"the plain loop did not reach it in {plain[-1]['times']:.1f} times the seconds",
    }


def marks(unit_s: float, cap: float) -> list[float]:
    """Seconds at which the plain loop is judged: 1, 2, 4, ... units, the cap last."""
    times = [2.0**power for power in range(16) if 2.0**power < cap]
    return [unit_s * one for one in [*times, cap]]


def condensed(
    contract: RunContract,
    start: Tensor,
    real: Tensor,
    *,
    device: torch.device,
    marks: Sequence[float],
) -> Iterator[tuple[float, Tensor]]:
    """Plain dataset condensation; yields (seconds of its own, images) at every mark.

    Whole images, no bank: algorithm 1 with the filter-wise distance and fresh noise at every step.
    Adam moves pixels and network, as it does in our own distiller, where the paper has SGD.
    """
    network, single = contract.student, parts(contract.task)
    generator = torch.Generator().manual_seed(contract.seed)
    pixels = start.clone().to(device).requires_grad_(True)
    moves = torch.optim.Adam([pixels], lr=PIXEL_RATE)
    real = real.to(device)
    left, spent, outer = list(marks), 0.0, 0
    while True:
        theta = initial_weights(network, seed=outer).to(device)
        for step in range(INNER):
            began = time.perf_counter()
            part = single[step % len(single)]
            chosen = torch.randint(len(real), (REAL_BATCH,), generator=generator)
            target = gradient_at(network, theta, part, real[chosen], generator)
            own = gradient_at(network, theta, part, pixels, generator, graph=True)
            distance = filterwise_cosine(network, own, target.detach())
            moves.zero_grad(set_to_none=True)
            distance.backward(inputs=[pixels])
            moves.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
            theta = trained_on(network, theta, part, pixels.detach(), generator)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent += time.perf_counter() - began
            if spent >= left[0]:
                yield spent, pixels.detach().cpu().clone()
                left.pop(0)
                if not left:
                    return
        outer += 1


def gradient_at(
    network: Any,
    weights: Tensor,
    part: Any,
    hq: Tensor,
    generator: torch.Generator,
    *,
    graph: bool = False,
) -> Tensor:
    """Gradient (D,) of the restoration loss at ``weights``, fresh noise on every image."""
    theta = weights.detach().requires_grad_(True)
    lq = observe(part, hq, level_of(part, hq.detach()), generator=generator)
    loss = restoration_loss(apply_network(network, theta, lq), hq)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=graph)
    return gradient


def trained_on(
    network: Any, weights: Tensor, part: Any, hq: Tensor, generator: torch.Generator
) -> Tensor:
    """``weights`` after a few plain steps on the set."""
    theta = weights.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=NETWORK_RATE)
    level = level_of(part, hq)
    for _ in range(NETWORK_STEPS):
        lq = observe(part, hq, level, generator=generator)
        loss = restoration_loss(apply_network(network, theta, lq), hq)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return theta.detach()


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
