"""What a round costs beyond its gradients: over real Flower, with 1, 3 and 10 sites on one machine.

``python tests/benchmarks/federation.py [--sites 1 3 10] [--patients 6 12 24] [--json FILE]``

Every part is the real one: SuperLink, API, and for each site its supervisor, worker, connector and
SuperNode. The sites hold simulated patients of the demo, all of them the same ones. A run has a
round to warm up, then the measured ones. Of each round:

- *waited*: from the request until the last answer was there (the run's journal);
- *worker*: what the slowest site's worker says it spent (the sites' outboxes);
- *pure*: the same gradients of one site, in one process on one thread that does nothing else, timed
  at both ends of the runs: its processor's seconds, which do not grow while others use the machine;
- *ideal*: the pure work of all sites, shared evenly by the machine's cores (never less than one
  site's): a round without Flower, sockets, processes or waiting;
- *overhead*: waited beyond the ideal. It is waiting where the processor's seconds of a kind of
  process, counted over the measured rounds, do not account for it.

Cost over patients is fitted with one site, cost over sites with the fewest patients: least squares,
slope and R². The workers' processor's seconds are the ones to trust where the machine has other
work; the SuperLink's grow with the time waited, for it is asked all the while. The load averages
are in the table.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from aggregator.home import AggregatorHome
from deploy.demo import federation as commands
from deploy.demo.federation import DemoError, Federation
from deploy.demo.hospitals import SCANNERS, write_patient
from deploy.demo.memory import kind_of
from shared.contract import RunContract, read_contract
from shared.gradients import patient_gradients
from shared.guardian import descendants
from shared.networks import initial_weights
from shared.processes import become_subreaper
from site_agent.cohort import Cohort, open_cohort
from site_agent.outbox import Outbox
from site_agent.settings import read_settings

POLL_S = 0.1
IDLE_S = 5.0
SETTLED_S = 5.0
TICKS = os.sysconf("SC_CLK_TCK")
CONTRACT = """\
name = "rounds"
seed = {seed}
images = 2
task = {{ size_px = {size_px}, angles = 120, bins = {bins}, pixel_mm = {pixel_mm} }}
probes = {{ requests = {requests}, depths = [1, 2, 3], steps = 1 }}
anchor = {{ rounds = 0, crop_px = 16, public_steps = 2 }}
"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Census:
    """Processes of one kind."""

    processes: int = 0
    pss_mib: float = 0.0
    rss_mib: float = 0.0
    processor_s: float = 0.0
    """Theirs, and that of their children who have ended."""

    def __add__(self, other: "Census") -> "Census":
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Census(*(a + b for a, b in zip(ours, theirs, strict=True)))


def census(root: int) -> dict[str, Census]:
    """What runs below ``root``, by kind."""
    found: defaultdict[str, Census] = defaultdict(Census)
    for pid in descendants(root):
        process = Path("/proc") / str(pid)
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            sizes = dict(
                line.split(":", 1)
                for line in (process / "smaps_rollup").read_text().splitlines()[1:]
            )
            # After the name, which may hold spaces: utime, stime, cutime, cstime (proc(5), 14-17).
            ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:15]
        except (OSError, ValueError):  # ended meanwhile
            continue
        if "Pss" not in sizes:
            continue
        pss, rss = (int(sizes[name].split()[0]) / 1024 for name in ("Pss", "Rss"))
        found[kind_of(command)] += Census(1, pss, rss, sum(map(int, ticks)) / TICKS)
    return dict(found)


def spent(before: Mapping[str, Census], after: Mapping[str, Census]) -> dict[str, float]:
    """Processor's seconds between two looks, by kind; of a kind that came meanwhile, all of it."""
    none = Census()
    return {
        kind: max(0.0, now.processor_s - before.get(kind, none).processor_s)
        for kind, now in after.items()
    }


def fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares of ``y`` over ``x``: slope, intercept, and the share of variance explained."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = np.asarray(y) - np.mean(y)
    explained = 1 - float(rest @ rest) / float(spread @ spread) if spread.any() else 1.0
    return {
        "slope": round(float(slope), 4),
        "intercept": round(float(intercept), 4),
        "r2": round(explained, 4),
    }


def pure(contract: RunContract, cohort: Cohort, *, repeats: int) -> dict[str, float]:
    """Seconds of one site's gradients of one round, in this process: the least of the repeats."""
    low, high = contract.task.window
    slices = cohort.images(size_px=contract.task.size_px, low=low, high=high)
    patients = [torch.from_numpy(one) for one in slices]
    weights = initial_weights(contract.student, seed=1).repeat(len(contract.probes.depths), 1)
    clock: list[float] = []
    processor: list[float] = []
    for seed in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        patient_gradients(
            contract=contract,
            network="student",
            weights=weights,
            patients=patients,
            seed=seed,
            device=torch.device("cpu"),
        )
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {"clock_s": min(clock), "processor_s": min(processor)}


def rounds_of(run: Path, outboxes: Sequence[Path], *, digest: str) -> list[dict[str, float]]:
    """Of each round of a run: seconds waited, of the whole round, and of the slowest worker."""
    slowest: defaultdict[int, float] = defaultdict(float)
    for folder in outboxes:
        for entry in Outbox(folder).entries():
            if entry.contract == digest:
                slowest[entry.round] = max(slowest[entry.round], entry.seconds)
    told = {event["round"]: event["ended"] for event in journal(run) if "ended" in event}
    return [
        {"waited_s": one["waited_s"], "round_s": one["seconds"], "worker_s": slowest[number]}
        for number, one in sorted(told.items())
    ]


def journal(run: Path) -> list[dict[str, Any]]:
    """The run's events so far."""
    try:
        lines = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def row(
    *,
    sites: int,
    patients: int,
    rounds: Sequence[Mapping[str, float]],
    processor_s: Mapping[str, float],
    work: Mapping[str, float],
    cores: int,
    load: float,
) -> dict[str, Any]:
    """What the measured rounds of one run cost.

    ``rounds`` are without the one that warms up; ``processor_s`` is of one round, by kind of
    process; ``work`` is one site's, :func:`pure`; ``load`` the machine's average at the end.
    """
    waited = statistics.median(one["waited_s"] for one in rounds)
    ideal = work["processor_s"] * max(1.0, sites / cores)
    used = sum(processor_s.values())
    return {
        "sites": sites,
        "patients": patients,
        "rounds": len(rounds),
        "waited_s": round(waited, 3),
        "waited_least_s": round(min(one["waited_s"] for one in rounds), 3),
        "round_s": round(statistics.median(one["round_s"] for one in rounds), 3),
        "worker_s": round(statistics.median(one["worker_s"] for one in rounds), 3),
        "pure_s": round(work["processor_s"], 3),
        "ideal_s": round(ideal, 3),
        "overhead_s": round(waited - ideal, 3),
        "processor_s": {kind: round(one, 3) for kind, one in sorted(processor_s.items())},
        "processor_beyond_pure_s": round(used - sites * work["processor_s"], 3),
        "load": round(load, 1),
    }


class Bench:
    """One federation whose sites come and go."""

    def __init__(self, folder: Path, *, size_px: int, rounds: int, say: Say) -> None:
        self.federation = Federation(folder)
        self.size_px, self.rounds, self.say = size_px, rounds, say

    def prepare(self, sites: Mapping[str, int]) -> None:
        """Writes patients, enrols sites with so many of them each, and reads their images."""
        folder, most = self.federation.folder, max(sites.values())
        for number in range(most):
            self.say(f"simulated patient {number + 1}/{most}")
            place = folder / "patients" / f"{number:03d}"
            write_patient(place, scanner=SCANNERS[0], patient_id=f"BENCH-{number:03d}", seed=number)
        for name, count in sites.items():
            images = folder / "images" / name
            images.mkdir(parents=True)
            for number in range(count):
                (images / f"{number:03d}").symlink_to(folder / "patients" / f"{number:03d}")
        self.say(f"enrolling {len(sites)} sites")
        commands.enrol(self.federation, {name: folder / "images" / name for name in sites})
        self.say("reading their images")
        commands.index(self.federation, list(sites), on_line=lambda _: None)
        home = ["--home", str(self.federation.aggregator)]
        up = self.federation.start(["aggregator", "up", *home], name="aggregator")
        self.federation.await_line(up, "SuperLink ready")

    def connect(self, sites: Sequence[str]) -> None:
        """Brings sites up."""
        self.say(f"starting {', '.join(sites)}")
        started = {}
        for name in sites:
            command = ["site-agent", "up", "--home", str(self.federation.site(name))]
            started[name] = self.federation.start(command, name=name)
        for agent in started.values():
            self.federation.await_line(agent, "supernode ready")

    def cohort(self, site: str) -> Cohort:
        """A site's patients."""
        return open_cohort(read_settings(self.federation.site(site)).cohort_path)

    def contract(self, seed: int) -> tuple[Path, RunContract]:
        """A contract of its own for each run."""
        path = self.federation.folder / f"contract-{seed}.toml"
        path.write_text(
            CONTRACT.format(
                seed=seed,
                size_px=self.size_px,
                bins=round(self.size_px * 1.5),
                pixel_mm=round(360 / self.size_px, 4),
                requests=self.rounds + 1,
            ),
            encoding="utf-8",
        )
        return path, read_contract(path)

    def run(
        self, sites: Sequence[str], *, seed: int
    ) -> tuple[list[dict[str, float]], dict[str, float], float]:
        """The measured rounds, a round's processor's seconds by kind of process, and the load."""
        path, contract = self.contract(seed)
        run = AggregatorHome(self.federation.aggregator).run_folder(contract.digest())
        command = ["aggregator", "launch", str(path), "--home", str(self.federation.aggregator)]
        command += ["--no-publish", *(part for site in sites for part in ("--site", site))]
        launch = self.federation.start(command, name=f"launch-{seed}")
        looks: dict[int, dict[str, Census]] = {}
        while (code := launch.poll()) is None:
            ended = sum("ended" in event for event in journal(run))
            if ended and ended not in looks:
                looks[ended] = census(os.getpid())
                self.say(f"{len(sites)} sites, round {ended}/{self.rounds + 1}")
            time.sleep(POLL_S)
        if code:
            raise DemoError(f"a run ended with {code}: " + "\n".join(launch.lines()[-8:]))
        outboxes = [read_settings(self.federation.site(site)).outbox_path for site in sites]
        first, last = min(looks), max(looks)
        if last == first:
            raise DemoError("the rounds were too short to be looked at: give more --rounds")
        used = spent(looks[first], looks[last])
        used.pop("cli", None)  # the launcher's progress, and supervisors
        a_round = {kind: seconds / (last - first) for kind, seconds in used.items()}
        rounds = rounds_of(run, outboxes, digest=contract.digest())[1:]
        return rounds, a_round, os.getloadavg()[0]


def measure(
    folder: Path,
    *,
    sites: Sequence[int],
    patients: Sequence[int],
    size_px: int,
    rounds: int,
    say: Say,
) -> dict[str, Any]:
    """Runs everything; the rows, the memory of each kind of process, and the fits."""
    fewest, cores = min(patients), commands.cores()
    crowds = {f"patients-{count}": count for count in patients if count != fewest}
    names = [f"site-{number:02d}" for number in range(1, max(sites) + 1)]
    bench = Bench(folder, size_px=size_px, rounds=rounds, say=say)
    try:
        bench.prepare({**dict.fromkeys(names, fewest), **crowds})
        _, contract = bench.contract(0)
        holders = {fewest: names[0], **{count: name for name, count in crowds.items()}}
        cohorts = {count: bench.cohort(name) for count, name in holders.items()}
        say("the gradients alone")
        before = {n: pure(contract, one, repeats=3) for n, one in cohorts.items()}
        measured = []
        for seed, (name, count) in enumerate(crowds.items(), 1):
            bench.connect([name])
            measured.append((1, count, *bench.run([name], seed=seed)))
            bench.federation.stop([name])
        up: list[str] = []
        memory, idle = {}, {}
        for seed, count in enumerate(sorted(sites), 1 + len(crowds)):
            bench.connect(names[len(up) : count])
            up = names[:count]
            measured.append((count, fewest, *bench.run(up, seed=seed)))
            look = census(os.getpid())
            memory[count] = {
                kind: {
                    "processes": one.processes,
                    "pss_mib": round(one.pss_mib / one.processes, 1),
                    "rss_mib": round(one.rss_mib / one.processes, 1),
                }
                for kind, one in sorted(look.items())
            }
            whole = sum(look.values(), Census())
            memory[count]["all together"] = {
                "processes": whole.processes,
                "pss_mib": round(whole.pss_mib, 1),
                "rss_mib": round(whole.rss_mib, 1),
            }
            time.sleep(SETTLED_S)  # the ServerApp ends, and whose child it was is told its seconds
            look = census(os.getpid())
            time.sleep(IDLE_S)
            used = spent(look, census(os.getpid()))
            idle[count] = round(sum(used.values()) / IDLE_S, 3)
    finally:
        bench.federation.stop()
    say("the gradients alone, again")
    after = {n: pure(contract, one, repeats=3) for n, one in cohorts.items()}
    work = {n: min(before[n], after[n], key=lambda one: one["processor_s"]) for n in cohorts}
    rows = [
        row(sites=s, patients=p, rounds=r, processor_s=used, work=work[p], cores=cores, load=load)
        for s, p, r, used, load in measured
    ]
    return {"cores": cores, "size_px": size_px, "rows": rows, "memory": memory,
            "cores_busy_after_a_run": idle, "fits": fits(rows, fewest=fewest)}  # fmt: skip


def fits(rows: Sequence[Mapping[str, Any]], *, fewest: int) -> dict[str, dict[str, float]]:
    """Lines through the rows, where there are three points or more."""
    by_site = [one for one in rows if one["patients"] == fewest]
    by_patient = [one for one in rows if one["sites"] == 1]
    found = {}
    for name, over, chosen in (("sites", "sites", by_site), ("patients", "patients", by_patient)):
        if len(chosen) < 3:
            continue
        x = [float(one[over]) for one in chosen]
        total = [float(sum(one["processor_s"].values())) for one in chosen]
        found[f"waited_s over {name}"] = fit(x, [one["waited_s"] for one in chosen])
        found[f"processor_s over {name}"] = fit(x, total)
        workers = [float(one["processor_s"].get("worker", 0.0)) for one in chosen]
        found[f"workers' processor_s over {name}"] = fit(x, workers)
    return found


def printed(found: Mapping[str, Any]) -> str:
    """Tables for a terminal."""
    columns = ("sites", "patients", "waited_s", "worker_s", "pure_s", "ideal_s", "overhead_s",
               "processor_beyond_pure_s", "load")  # fmt: skip
    lines = ["  ".join(columns)]
    for one in found["rows"]:
        lines.append("  ".join(f"{one[name]:>{len(name)}}" for name in columns))
    most = max(found["memory"], default=0)
    for one in found["rows"]:
        used = ", ".join(f"{kind} {seconds}" for kind, seconds in one["processor_s"].items())
        lines.append(f"{one['sites']} sites, {one['patients']} patients, processor_s: {used}")
    lines += ["", f"memory of one process, MiB (with {most} sites)"]
    for kind, one in found["memory"].get(most, {}).items():
        sizes = f"PSS {one['pss_mib']:8.1f}  RSS {one['rss_mib']:8.1f}"
        lines.append(f"{kind:<12} {one['processes']:3}  {sizes}")
    for name, line in found["fits"].items():
        slope, intercept, r2 = line["slope"], line["intercept"], line["r2"]
        lines.append(f"{name}: {slope} each, and {intercept}; R² {r2}")
    busy = found["cores_busy_after_a_run"]
    lines.append("cores busy after a run: " + ", ".join(f"{n} sites {b}" for n, b in busy.items()))
    return "\n".join(lines)


def told(total: int) -> Say:
    """Prints steps with the time gone, and what is left by the share of steps done."""
    began, steps = time.monotonic(), 0

    def say(step: str) -> None:
        nonlocal steps
        steps += 1
        gone = time.monotonic() - began
        left = gone / steps * max(0, total - steps)
        print(f"[{gone:5.0f} s, about {left:4.0f} s left] {step}", file=sys.stderr, flush=True)

    return say


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--patients", type=int, nargs="+", default=[6, 12, 24], help="of a site")
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6, help="measured, after one to warm up")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    become_subreaper()
    runs = len(given.sites) + len(given.patients) - 1
    say = told(max(given.patients) + runs * (given.rounds + 2) + 5)
    with tempfile.TemporaryDirectory(prefix="fedstill-") as folder:
        try:
            found = measure(
                Path(folder),
                sites=given.sites,
                patients=given.patients,
                size_px=given.size_px,
                rounds=given.rounds,
                say=say,
            )
        except DemoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(printed(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
