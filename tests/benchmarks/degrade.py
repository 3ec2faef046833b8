"""Milliseconds of the ct-denoise task and of the training steps, on one core.

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
from shared.tasks import ct_denoise
from shared.training import fit_pairs, noisy_pool

REPETITIONS = 7
BATCH = 8


def fastest_ms(work: Callable[[], object], *, share: int = 1) -> float:
    """Best time of one call divided by ``share``, in milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(1000 * min(times) / share, 2)


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
    distiller.bank.add(
        round=1, weights=torch.randn(1, 4945) * 0.05, targets=torch.randn(1, 4945) * 0.001
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
