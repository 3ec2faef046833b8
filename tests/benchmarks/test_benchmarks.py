"""The benchmark scripts, small: what they decide, draw and time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from aggregator.utility import figures, row
from shared.architectures import Residual
from shared.contract import Anchor, RunContract
from shared.networks import apply_network, initial_weights, parameter_count
from shared.tasks.settings import CtDenoise, MrSr

HERE = Path(__file__).parent
SMALL = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=SMALL,
    anchor=Anchor(crop_px=16),
)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(contract: RunContract, *, distilled: float = 33.5, **more: Any) -> dict[str, Any]:
    psnr = {"prior": 32.0, "distilled": distilled, "real_same_bytes": 33.0, "full": 34.0}
    rows = {name: row([[value - 1, value + 1]], [[0.8, 0.9]]) for name, value in psnr.items()}
    return {
        "label": "a benchmark",
        "network_named": "student",
        "task": contract.task.name,
        "contract": contract.model_dump(mode="json"),
        "judge": contract.student.model_dump(mode="json"),
        "converged": True,
        "rows": rows,
        "releases": 30,
        "requests": 6,
        "bytes_published": contract.images * 8192,
        **figures(rows),
        **more,
    }


def test_bars_are_those_of_the_task_and_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    utility = script("utility", monkeypatch)

    def of(contract: RunContract, network: str = "student") -> dict[str, str]:
        made = table(contract, network_named=network)
        return {name: bar for name, bar, _ in utility.bars(made)}

    whole = CONTRACT.model_copy(update={"task": CtDenoise()})
    assert of(whole)["gain_over_best_null"] == ">= 0.3, above 0"
    assert of(whole)["share_recovered"] == ">= 65%"
    assert "gain_over_best_null" not in of(CONTRACT), "the bar is for 128 pixels"
    assert of(CONTRACT.model_copy(update={"task": MrSr()}))["share_recovered"] == ">= 85%"
    assert of(whole, "unet") == {"share_recovered": ">= 50%"}


def test_the_overview_says_what_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    utility = script("utility", monkeypatch)
    text = utility.overview([table(CONTRACT), table(CONTRACT, distilled=33.9, converged=False)])
    share = [line for line in text.splitlines() if "share_recovered" in line]
    assert "75%" in share[0]
    assert share[0].endswith(">= 65%: cleared")
    distance = [line for line in text.splitlines() if "distance_to_full" in line]
    assert [line.rsplit(" ", 1)[1] for line in distance] == ["MISSED", "cleared"]
    assert "NOT CONVERGED" in text


def test_a_row_that_was_left_out_is_no_bar_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    utility = script("utility", monkeypatch)
    text = utility.overview([table(CONTRACT, above_real_same_bytes=None)])
    (line,) = [line for line in text.splitlines() if "above_real_same_bytes" in line]
    assert line.endswith("> 0: not measured")


def test_a_field_of_a_contract_is_varied_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    utility = script("utility", monkeypatch)
    assert utility.with_field(CONTRACT, "anchor.rounds", 2).anchor.rounds == 2
    assert utility.with_field(CONTRACT, "images", 5).images == 5
    with pytest.raises(ValueError, match="images"):
        utility.with_field(CONTRACT, "images", 0)


def test_curves_are_drawn_from_tables(tmp_path: Path) -> None:
    tables = [
        table(CONTRACT.model_copy(update={"images": n}), distilled=32 + n / 9) for n in (1, 8)
    ]
    tables += [table(CONTRACT, releases=n) for n in (10, 20)]
    (tmp_path / "tables.json").write_text(json.dumps({"tables": tables}))
    command = [sys.executable, HERE / "figure.py", tmp_path / "out.png", tmp_path / "tables.json"]
    subprocess.run(list(map(str, command)), check=True)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width > 1500


def test_a_curve_holds_all_but_its_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = script("figure", monkeypatch)
    tables = [table(CONTRACT.model_copy(update={"images": n})) for n in (8, 1, 2)]
    tables += [table(CONTRACT, releases=n) for n in (10, 20)]
    along = figure.series(tables, "images")["ct-denoise"]
    assert [one["contract"]["images"] for one in along] == [1, 2, 8]
    assert {one["releases"] for one in along} == {30}
    along = figure.series(tables, "releases")["ct-denoise"]
    assert [one["releases"] for one in along] == [10, 20, 30]
    assert {one["contract"]["images"] for one in along} == {2}


def test_the_plain_loop_is_judged_at_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    distill = script("distill", monkeypatch)
    assert distill.marks(3.0, 8.0) == [3.0, 6.0, 12.0, 24.0]
    assert distill.marks(3.0, 5.0) == [3.0, 6.0, 12.0, 15.0]
    generator = torch.Generator().manual_seed(0)
    start, real = (torch.rand(n, 1, 32, 32, generator=generator) for n in (2, 20))
    stops = distill.condensed(CONTRACT, start, real, device=torch.device("cpu"), marks=[0.01, 0.05])
    (first_s, first), (second_s, second) = stops
    assert 0.01 <= first_s < second_s
    assert not torch.equal(first, second)
    assert not torch.equal(first, start)
    assert 0 <= float(second.min()) <= float(second.max()) <= 1


def test_the_plain_loops_gradient_reaches_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    distill = script("distill", monkeypatch)
    theta = initial_weights(SMALL, seed=0)
    hq = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    gradient = distill.gradient_at(
        SMALL, theta, CONTRACT.task, hq, torch.Generator().manual_seed(2), graph=True
    )
    assert gradient.shape == (parameter_count(SMALL),)
    (slope,) = torch.autograd.grad(gradient.square().sum(), hq)
    assert float(slope.abs().max()) > 0
    moved = distill.trained_on(
        SMALL, theta, CONTRACT.task, hq.detach(), torch.Generator().manual_seed(3)
    )
    assert moved.shape == theta.shape
    assert not torch.equal(moved, theta)
    assert apply_network(SMALL, moved, hq.detach()).shape == hq.shape


def test_the_cost_of_a_secure_sum_is_that_of_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    secure_sum = script("secure_sum", monkeypatch)
    monkeypatch.setattr(secure_sum, "REPETITIONS", 1)
    cost = secure_sum.measured(3, 1000)
    assert (cost["sites"], cost["numbers"]) == (3, 1000)
    # Numbers of eight bytes and not of four, then three small answers.
    assert 4000 < cost["up"] - cost["clear_up"] < 6000
    assert cost["clear_down"] < cost["down"] < cost["clear_down"] + 5000
    assert cost["site_ms"] > 0 < cost["aggregator_ms"]


def test_a_sketched_step_is_timed_beside_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    report = script("sketch", monkeypatch).measure(CONTRACT, sizes=[8], steps=2)
    assert report["whole_ms"] > 0
    assert report["sketched_over_whole"][8] == pytest.approx(
        report["sketched_ms"][8] / report["whole_ms"], rel=0.05
    )


def test_a_catalogue_is_filled_served_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    report = script("catalogue", monkeypatch).measure(datasets=60, versions=3, requests=3)
    assert (report["datasets"], report["versions_each"], report["database"]) == (60, 3, "SQLite")
    assert len(report["lists"]) == 7
    for spent in report["lists"].values():
        assert 0 < spent["median_ms"] <= spent["p99_ms"]
    first = report["lists"]["first page of 50"]
    assert report["cleared"] == (first["median_ms"] < 50)


def test_serving_reads_wrk_and_judges_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = script("serving", monkeypatch)
    said = (
        "  Latency Distribution\n     50%  1.00ms\n     99%    1.50s \n"
        "  1000 requests in 1.00s, 1.00MB read\n"
        "  Socket errors: connect 1, read 0, write 0, timeout 2\n"
        "  Non-2xx or 3xx responses: 4\nRequests/sec:   1234.50\n"
    )
    load = serving.read_wrk(said)
    assert (load.per_s, load.p99_ms, load.errors, load.answered) == (1234.5, 1500.0, 7, 1000)

    def loads(*rates: float) -> list[Any]:
        return [serving.Load(per_s=rate, p99_ms=1.0, errors=0, answered=9) for rate in rates]

    found = {
        "256 KB": {
            "nginx": loads(4000),
            "api": loads(999, 1001, 5000),
            "api behind nginx": loads(9),
            "edge": loads(3200),
        },
        "50 MB": {"nginx": loads(10), "api": loads(5), "api behind nginx": loads(7.9)},
    }
    memory = {"before": 100e6, "most": 119e6, "after": 100e6}
    judged = serving.judged(found, memory, missing=0)
    assert judged["share_of_nginx"]["50 MB"]["api behind nginx"] == pytest.approx(0.79)
    assert judged["cleared"] == {
        "256 KB": True,
        "redirected, 50 MB": False,
        "edge, 256 KB": True,
        "edge, recorded": True,
        "memory": True,
        "no errors": True,
    }
    found["256 KB"]["api"] = loads(999)  # below 1,000 and below a quarter
    found["256 KB"]["edge"] = loads(3199)
    worse = serving.judged(found, {**memory, "most": 121e6}, missing=1)["cleared"]
    assert not any(worse[bar] for bar in ("256 KB", "memory", "edge, 256 KB", "edge, recorded"))


def test_a_rounds_cost_is_what_it_waits_beyond_shared_work(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = script("federation", monkeypatch)
    rounds = [
        {"waited_s": waited, "round_s": waited + 1, "worker_s": 0.5} for waited in (9.0, 4.0, 5.0)
    ]
    used = {"worker": 3.5, "superlink": 1.5}
    work = {"processor_s": 0.3, "clock_s": 0.4}
    about = {"patients": 6, "rounds": rounds, "processor_s": used, "work": work, "cores": 2}
    ten = federation.row(sites=10, load=1.0, **about)
    assert (ten["waited_s"], ten["ideal_s"], ten["overhead_s"]) == (5.0, 1.5, 3.5)
    assert ten["processor_beyond_pure_s"] == 2.0
    assert federation.row(sites=1, load=1.0, **about)["ideal_s"] == 0.3, "one core, not half of two"
    line = federation.fit([1, 3, 10], [2.5, 6.5, 20.5])
    assert (line["slope"], line["intercept"], line["r2"]) == (2.0, 0.5, 1.0)
    assert federation.fit([1, 2, 3], [1.0, 3.0, 1.0])["r2"] == 0.0


def test_processes_are_counted_by_kind_and_gradients_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    federation = script("federation", monkeypatch)
    spin = "import sys; [None for _ in range(10**7)]; print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"{spin} # site_agent.cli worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        look = federation.census(os.getpid())
        process.communicate()
    worker = look["worker"]
    assert worker.processes == 1 and worker.processor_s > 0
    assert 1 < worker.pss_mib <= worker.rss_mib < 1000
    assert federation.spent({}, look)["worker"] == worker.processor_s
    assert federation.spent(look, look)["worker"] == 0
    cohort = script("worker", monkeypatch).site(tmp_path / "cohort", CONTRACT, 2, 1)
    assert 0 < federation.pure(CONTRACT, cohort, repeats=1)["processor_s"] < 60


def test_rounds_are_read_from_journal_and_outboxes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    federation = script("federation", monkeypatch)
    ended = [{"round": n, "ended": {"waited_s": 2.0 * n, "seconds": 9.0}} for n in (1, 2)]
    lines = [*map(json.dumps, [{"round": 1, "phase": "probes"}, *ended]), '{"half']
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    rounds = federation.rounds_of(tmp_path, [tmp_path / "outbox"], digest="d" * 64)
    assert [one["waited_s"] for one in rounds] == [2.0, 4.0]
