import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aggregator import judges
from aggregator.arms import Arm, Distillation, Teacher, drawn
from aggregator.distill.prior import build_prior
from aggregator.judges import Judge, Judged, judge_arms, table_rows, utility_rows
from aggregator.utility import pairs_digest
from shared.architectures import Residual
from shared.contract import Anchor, RunContract
from shared.gradients import request_seed
from shared.networks import initial_weights
from shared.tasks.settings import CtDenoise
from shared.training import Score, evaluate, fit_pairs, score

TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)
SMALL = Residual(depth=2, width=4)
JUDGE = Judge(task=TASK, network=SMALL, steps=6, seeds=2)
CONTRACT = RunContract(
    name="ct", task=TASK, images=2, student=SMALL, anchor=Anchor(crop_px=16, rounds=1)
)
HOLDOUT = [np.random.default_rng(n).random((2, 1, 32, 32), dtype=np.float32) for n in range(2)]


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def silent(done: int, total: int, eta_s: float | None) -> None:
    pass


def scores(*psnr: float) -> Judged:
    return Judged(Score(list(psnr), [one / 50 for one in psnr]), 1.0)


@pytest.mark.slow
def test_a_training_is_that_of_its_seed_and_is_scored_as_every_other(tmp_path: Path) -> None:
    arm = Arm("distilled", images(2), lq=images(2, 1))
    ((first, second),) = judge_arms([arm], HOLDOUT, judge=JUDGE, cache=tmp_path, on_progress=silent)
    torch.set_num_threads(1)
    for number, judged in enumerate((first, second)):
        weights = fit_pairs(
            lq=images(2, 1),
            hq=images(2),
            network=SMALL,
            steps=6,
            seed=request_seed("judge", number),
            device=torch.device("cpu"),
        )
        expected = evaluate(
            weights=weights,
            network=SMALL,
            patients=[torch.from_numpy(one) for one in HOLDOUT],
            task=TASK,
            seed=request_seed("judge-noise"),
            device=torch.device("cpu"),
        )
        assert judged.score.psnr_db == pytest.approx(expected.psnr_db, abs=1e-4)
        assert judged.score.ssim == pytest.approx(expected.ssim, abs=1e-5)


@pytest.mark.slow
def test_what_was_judged_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [Arm("input"), Arm("distilled", images(2), lq=images(2, 1)), drawn("prior", images(2))]
    once = judge_arms(arms, HOLDOUT, judge=JUDGE, cache=tmp_path, on_progress=silent)
    assert [len(of_arm) for of_arm in once] == [1, 2, 2]
    assert len(list(tmp_path.glob("*.json"))) == 5

    damaged, lost = sorted(tmp_path.glob("*.json"))[:2]
    damaged.write_text('{"psnr_db": [')
    lost.unlink()
    done: list[tuple[str, int]] = []
    real = judges._work_off

    def counted(todo, *more, **named):  # type: ignore[no-untyped-def]
        done.extend((arms[number].name, seed) for number, seed in todo)
        return real(todo, *more, **named)

    monkeypatch.setattr(judges, "_work_off", counted)
    again = judge_arms(arms, HOLDOUT, judge=JUDGE, cache=tmp_path, on_progress=silent)
    assert len(done) == 2, "only what is damaged or missing"
    assert [[one.score for one in of_arm] for of_arm in again] == [
        [one.score for one in of_arm] for of_arm in once
    ]


@pytest.mark.slow
def test_an_interrupted_benchmark_keeps_what_was_finished(tmp_path: Path) -> None:
    arms = [Arm("distilled", images(2, n), lq=images(2, n + 9)) for n in range(4)]
    judge = Judge(task=TASK, network=SMALL, steps=20, seeds=1)

    def interrupt(done: int, total: int, eta_s: float | None) -> None:
        if list(tmp_path.glob("*.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_arms(arms, HOLDOUT, judge=judge, cache=tmp_path, on_progress=interrupt)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert kept
    judge_arms(arms, HOLDOUT, judge=judge, cache=tmp_path, on_progress=silent)
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())


def test_the_name_of_a_training_changes_with_what_it_depends_on() -> None:
    arm = Arm("distilled", images(2), lq=images(2, 1))
    names = {
        judges._name(arm, JUDGE, 0, "x"),
        judges._name(arm, JUDGE, 1, "x"),
        judges._name(arm, JUDGE, 0, "y"),
        judges._name(Arm("distilled", images(2), lq=images(2, 2)), JUDGE, 0, "x"),
        judges._name(arm, Judge(TASK, SMALL, 7, 2), 0, "x"),
        judges._name(arm, Judge(TASK, Residual(depth=2, width=5), 6, 2), 0, "x"),
        judges._name(arm, Judge(CtDenoise(size_px=32, photons=9), SMALL, 6, 2), 0, "x"),
        judges._name(arm, Judge(TASK, SMALL, 6, 2, device="cuda"), 0, "x"),
    }
    assert len(names) == 8
    more_workers = Judge(TASK, SMALL, 6, 9, workers=4)
    assert judges._name(arm, more_workers, 0, "x") == judges._name(arm, JUDGE, 0, "x")


def test_runs_of_a_row_are_over_distillations_and_seeds() -> None:
    arms = [Arm("distilled", images(1)), Arm("distilled", images(1, 1)), Arm("input")]
    rows = table_rows(
        arms, [[scores(30, 32), scores(31, 33)], [scores(33, 35), scores(34, 36)], [scores(28, 28)]]
    )
    means = [31.0, 32.0, 34.0, 35.0]
    assert rows["distilled"]["psnr"]["mean"] == pytest.approx(np.mean(means))
    assert rows["distilled"]["psnr"]["std"] == pytest.approx(np.std(means, ddof=1))
    assert rows["distilled"]["psnr"]["n"] == 4
    assert rows["distilled"]["patients"] == pytest.approx([32.0, 34.0])
    assert rows["input"]["psnr"] == {"mean": 28.0, "std": 0.0, "n": 1}


def test_of_variants_the_best_is_the_row_and_all_are_named() -> None:
    arms = [
        Arm("public_and_textured", images(1), variant="8 phantoms"),
        Arm("public_and_textured", images(2), variant="48 phantoms"),
    ]
    row = table_rows(arms, [[scores(31, 31)], [scores(32, 34)]])["public_and_textured"]
    assert row["variant"] == "48 phantoms"
    assert row["psnr"]["mean"] == pytest.approx(33.0)
    assert {name: one["mean"] for name, one in row["variants"].items()} == {
        "8 phantoms": 31.0,
        "48 phantoms": 33.0,
    }


@pytest.mark.slow
def test_the_table_of_chosen_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    taught, free = (
        Teacher(SMALL, initial_weights(SMALL, seed=seed), symmetric=False) for seed in (1, 2)
    )
    distillation = Distillation(
        CONTRACT, lq=images(2, 1), hq=images(2, 2), anchor=taught, public=free
    )
    table = utility_rows(
        contract=CONTRACT,
        distillations=[distillation],
        prior=build_prior(CONTRACT, public=None),
        train=[one + 0 for one in HOLDOUT],
        holdout=HOLDOUT,
        public=None,
        judge=Judge(task=TASK, network=SMALL, steps=30, seeds=2, workers=2),
        cache=tmp_path,
        rows=("input", "prior", "prior_textured", "public_direct", "distilled", "anchor", "full"),
        on_progress=lambda done, total, eta_s: seen.append((done, total)),
    )
    wanted = ["input", "prior", "prior_textured", "distilled", "anchor", "full"]
    assert list(table["rows"]) == wanted
    trained = set(wanted) - {"input", "anchor"}
    assert {table["rows"][name]["psnr"]["n"] for name in trained} == {2}
    patients = [torch.from_numpy(one) for one in HOLDOUT]
    before, after = (
        np.mean(
            score(
                one.restore,
                patients=patients,
                task=TASK,
                seed=request_seed("judge-noise"),
                device=torch.device("cpu"),
            ).psnr_db
        )
        for one in (free, taught)
    )
    assert table["anchor_gain"] == pytest.approx(after - before, abs=1e-4)
    assert seen[-1] == (30 * 2 * 4, 30 * 2 * 4)
    assert table["bytes_published"] == 2 * 2 * 32 * 32 * 4
    assert table["bytes_raw"] == sum(one.nbytes for one in HOLDOUT)
    assert table["pairs_sha256"] == [pairs_digest(distillation.lq.numpy(), distillation.hq.numpy())]
    assert table["judged_patients"] == 2
    assert table["judged_slices"] == 4
    json.dumps(table, allow_nan=False)
