"""The table of faults in docs/coordinator.md: what a run does when something dies, and how long.

Real processes on loopback: `aggregator up`, connectors, SuperNodes and ClientApps; the sites'
workers answer at once and compute nothing (tests/e2e/fake_worker.py). Needs a quarter of an hour.

    python tests/benchmarks/faults.py --frozen-s 90 --cut-s 60 --kills 10 [--seed 0] [--json]
"""

import argparse
import json
import random
import secrets
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from shared.processes import become_subreaper, stop_all
from tests.e2e import faults, kills
from tests.e2e.deployment import Deployment, marked


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def deployed(name: str, keep: Path | None) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        deployment = Deployment((keep or Path(folder)) / name, secrets.token_hex(8))
        deployment.root.mkdir(parents=True)
        try:
            yield deployment
        finally:
            stop_all(list(deployment.processes.values()), grace_s=10)
            assert marked(deployment.token) == []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frozen-s", type=float, default=90)
    parser.add_argument("--cut-s", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10, help="of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for all that the processes write")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    become_subreaper()
    outcomes: list[faults.Outcome] = []
    if wanted.frozen_s > 0:
        with deployed("sites", wanted.keep) as deployment, faults.federation(deployment) as there:
            outcomes = faults.site_faults(
                there, frozen_s=wanted.frozen_s, cut_s=wanted.cut_s, say=note
            )
    with deployed("kills", wanted.keep) as deployment, kills.aggregator(deployment):
        programs = [one for one in kills.PROGRAMS for _ in range(wanted.kills)]
        random.Random(wanted.seed).shuffle(programs)
        killed = kills.kills(deployment, programs, seed=wanted.seed, say=note)
    if wanted.json:
        found = {"sites": [asdict(one) for one in outcomes]}
        print(json.dumps({**found, "kills": [asdict(one) for one in killed]}))
    else:
        print_tables(outcomes, killed)
    failed = [one for one in outcomes if one.problems]
    for one in failed:
        note(f"{one.fault}: {'; '.join(one.problems)}")
    return 1 if failed else 0


def print_tables(outcomes: Sequence[faults.Outcome], killed: Sequence[kills.Kill]) -> None:
    print("| a site | away, s | the journal says | why | heard again after, s |")
    print("|---|---|---|---|---|")
    for one in outcomes:
        away, back = ("–" if s is None else f"{s:.0f}" for s in (one.away_s, one.back_s))
        print(f"| {one.fault} | {away} | {', '.join(one.states)} | {one.reason} | {back} |")
    print("\n| killed | times | in | goes on after, s: median, longest |")
    print("|---|---|---|---|")
    for program in kills.PROGRAMS:
        of = [one for one in killed if one.program == program]
        if of:
            phases = Counter(one.during.split()[0] for one in of)
            during = ", ".join(f"{phase} {count}" for phase, count in phases.items())
            times = [one.goes_on_s for one in of]
            middle, longest = statistics.median(times), max(times)
            print(f"| {program} | {len(of)} | {during} | {middle:.0f}, {longest:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
