"""Milliseconds of every task and of the training steps, on one core.

``python tests/benchmarks/degrade.py`` prints one JSON object; the minimum over repetitions, since
anything above it is other work's.
"""

import json
import time
from collections.abc import Callable

import torch

from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import build_prior
from shared.architectures import Residual
from shared.contract import RunContract
from shared.networks import parameter_count
from shared.tasks import ct_denoise
from shared.tasks.degradation import level_of, observe
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    SingleTask,
)
from shared.training import fit_pairs, noisy_pool

REPETITIONS = 7
BATCH = 8
KERNEL = CtKernel(transfer=(1.0, 1.1, 1.3, 1.6, 1.9), noise_hu=(20.0, 15.0, 18.0, 18.0, 14.0))
TASKS: dict[str, SingleTask] = {
    "ct-denoise": CtDenoise(),
    "ct-sr x2": CtSr(),
    "ct-sr x4": CtSr(factor=4),
    "ct-sr x4, slice": CtSr(factor=4, direction="slice"),
    "ct-kernel": KERNEL,
    "mr-denoise": MrDenoise(),
    "mr-sr x2": MrSr(factor=2),
    "mr-sr x4, noise": MrSr(sigma=0.02),
    "mr-undersampled": MrUndersampled(),
    "mr-undersampled, noise": MrUndersampled(sigma=0.02),
}


def fastest_ms(work: Callable[[], object], *, share: int = 1) -> float:
    """Best time of one call divided by ``share``, in milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(1000 * min(times) / share, 2)


def task_ms(task: SingleTask, hq: torch.Tensor) -> dict[str, float]:
    """Milliseconds a batch: what draws share, one draw, and a draw with its derivative in HQ."""
    level = level_of(task, hq)
    generator = torch.Generator().manual_seed(0)
    leaf = hq.clone().requires_grad_(True)
    return {
        "level": fastest_ms(lambda: level_of(task, hq)),
        "draw": fastest_ms(lambda: observe(task, hq, level, generator=generator)),
        "draw_and_derivative": fastest_ms(
            lambda: torch.autograd.grad(observe(task, leaf, level, generator=generator).sum(), leaf)
        ),
    }


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    contract = RunContract(name="benchmark")
    task, cpu = contract.task, torch.device("cpu")
    start = time.perf_counter()
    prior = build_prior(contract, public=None)
    prior_s = time.perf_counter() - start
    hq = prior.start[:BATCH]
    level = ct_denoise.dose(task, hq)
    generator = torch.Generator().manual_seed(0)
    lq = noisy_pool(task, hq, draws=1, seed=0)

    def steps(network: Residual) -> float:
        return fastest_ms(
            lambda: fit_pairs(lq=lq, hq=hq, network=network, steps=5, seed=0, device=cpu), share=5
        )

    distiller = Distiller(contract, prior, device=cpu)
    parameters = parameter_count(contract.student)
    distiller.bank.add(
        round=1,
        network="student",
        weights=torch.randn(1, parameters) * 0.05,
        targets=torch.randn(1, 1, parameters) * 0.001,  # of one persona
        variance=torch.ones(1, parameters),
    )
    one_step = contract.model_copy(
        update={"probes": contract.probes.model_copy(update={"steps": 1})}
    )
    distiller.contract = one_step
    print(
        json.dumps(
            {
                "threads": 1,
                "size_px": task.size_px,
                "batch": BATCH,
                "tasks_ms_a_batch": {name: task_ms(one, hq) for name, one in TASKS.items()},
                "dose_ms_a_slice": fastest_ms(lambda: ct_denoise.dose(task, hq), share=BATCH),
                "draw_ms": fastest_ms(
                    lambda: ct_denoise.draw(task, level, generator=generator), share=BATCH
                ),
                "student_step_ms": steps(contract.student),
                "anchor_step_ms": steps(contract.anchor_network),
                "matching_step_ms": fastest_ms(lambda: distiller._match(1)),
                "prior_s": round(prior_s, 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
