"""Faults of sites, each at a site of its own, in runs of one federation.

``site_faults`` brings them about in the second round of a run, which waits for those who were lost
and goes on without those who are late, and says what the run's journal told of each.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.guardian import signal_all
from tests.e2e.deployment import CONTRACT, Deployment, until
from tests.e2e.wire import Wire

WELL, KILLED, FROZEN, CUT, DEAF, ODD = "well", "killed", "frozen", "cut", "deaf", "odd"
SITES = (WELL, KILLED, FROZEN, CUT, DEAF, ODD)
BACK_WITHIN_S = 90.0
FAULTY, LATE = "faults", "late"
"""Names of the two contracts."""
KILLED_S = 5.0
LATE_AFTER_S = 8.0


@dataclass(frozen=True)
class Outcome:
    """What a run's journal told of a site that was at fault."""

    fault: str
    ends: str
    """As docs/coordinator.md has it: the last state of the faulty round, then of the run."""
    states: tuple[str, ...]
    reason: str
    away_s: float | None
    back_s: float | None
    """From its return to the line that says it has answered."""
    problems: tuple[str, ...]


@dataclass
class Federation:
    """A deployment with the sites above; some are reached through wires that can be cut."""

    deployment: Deployment
    wires: dict[str, Wire]

    def play(self, site: str, faults: dict[str, dict[str, str]]) -> None:
        """Writes what the site's fake worker does wrong from now on."""
        file = self.deployment.root / site / "play.json"
        file.with_suffix(".part").write_text(json.dumps(faults))
        file.with_suffix(".part").replace(file)

    def said(self, site: str) -> list[list[str]]:
        """The words of the lines that its fake worker has printed."""
        lines = self.deployment.processes[f"worker-{site}"].log.read_text().splitlines()
        return [line.split() for line in lines]

    def holds(self, site: str) -> bool:
        """Whether its worker has a question before it and is silent."""
        return any(words[0] == "holds" for words in self.said(site) if words)


@contextmanager
def federation(deployment: Deployment) -> Iterator[Federation]:
    """All sites, connected."""
    deployment.init()
    port = deployment.home.settings.superlink_port
    wires = {name: Wire(port) for name in (CUT, DEAF)}
    try:
        for name in SITES:
            deployment.enrol_before_up(name, port=wires[name].port if name in wires else None)
        deployment.up()
        deployment.connect(*SITES)
        yield Federation(deployment, wires)
    finally:
        for wire in wires.values():
            wire.close()


def told(run: Path, site: str) -> list[dict[str, Any]]:
    """What the journal says of a site, without repetitions: time, round, state and reason."""
    found: list[dict[str, Any]] = []
    try:
        lines = (run / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        event = json.loads(line)
        one = event.get("sites", {}).get(site)
        if one is None:
            continue
        news = {"round": event["round"], "state": one["state"]}
        if not found or {key: found[-1][key] for key in news} != news:
            found.append({"time": event["time"], "reason": one["reason"], **news})
    return found


def is_told(run: Path, site: str, state: str, *, round: int) -> bool:
    return any((one["state"], one["round"]) == (state, round) for one in told(run, site))


def site_faults(
    there: Federation, *, frozen_s: float, cut_s: float, say: Callable[[str], None] = print
) -> list[Outcome]:
    """Brings all faults about and gives what became of each; takes the longest, and a little."""
    deployment = there.deployment
    text = CONTRACT.replace("rounds = 2", "rounds = 1")
    file, run = deployment.write_contract(FAULTY, text.replace("tiny", FAULTY))
    late_file, late_run = deployment.write_contract(LATE, text.replace("tiny", LATE))
    held = {FAULTY: {"2": "hold"}}
    for site in (KILLED, FROZEN, CUT):
        there.play(site, held)
    there.play(WELL, {FAULTY: {"1": "hold"}})
    there.play(ODD, {FAULTY: {"1": "refuse", "2": "nan"}, LATE: {"2": "hold"}})
    left: dict[str, float] = {}
    back: dict[str, float] = {}
    with deployment.launching(file, "--no-publish", "--quorum", "0.5") as launcher:
        # The second round begins once nobody hears what the deaf one is told.
        until(
            lambda: (
                all(is_told(run, one, "answered", round=1) for one in SITES[1:])
                and there.holds(WELL)
            ),
            within_s=120,
        )
        there.wires[DEAF].cut(answers_only=True)
        left[DEAF] = time.time()
        there.play(WELL, {})
        until(lambda: all(map(there.holds, (KILLED, FROZEN, CUT))), within_s=60)
        until(lambda: is_told(run, ODD, "answered", round=2), within_s=60)
        begun = time.monotonic()
        frozen = deployment.site_processes(FROZEN)
        signal_all(deployment.site_processes(KILLED), signal.SIGKILL)
        signal_all(frozen, signal.SIGSTOP)
        there.wires[CUT].cut()
        left.update(dict.fromkeys((KILLED, FROZEN, CUT), time.time()))
        say(f"killed, frozen for {frozen_s:g} s, cut off for {cut_s:g} s")

        def at(seconds: float) -> None:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))

        at(KILLED_S)
        there.play(KILLED, {})
        for part in ("worker", "node"):
            deployment.processes[f"{part}-{KILLED}"].wait(10)
        deployment.start_site(KILLED)
        back[KILLED] = time.time()
        arguments = ("--site", WELL, "--site", ODD, "--round-timeout", f"{LATE_AFTER_S:g}")
        with deployment.launching(late_file, "--no-publish", *arguments) as late:
            pending = {CUT: cut_s, DEAF: cut_s, FROZEN: frozen_s}
            deadline = time.monotonic() + 400
            while time.monotonic() < deadline:
                if ODD not in back and is_told(late_run, ODD, "late", round=2):
                    left[ODD] = next(
                        one["time"] for one in told(late_run, ODD) if one["round"] == 2
                    )
                    time.sleep(1)
                    there.play(ODD, {FAULTY: {"1": "refuse", "2": "nan"}})
                    back[ODD] = time.time()
                if CUT in pending and time.monotonic() > begun + cut_s / 2:
                    there.play(CUT, {})  # its answer is there, and cannot leave
                for site in [one for one, s in pending.items() if time.monotonic() > begun + s]:
                    if site in there.wires:
                        there.wires[site].heal()
                    else:
                        there.play(site, {})
                        signal_all(frozen, signal.SIGCONT)
                    del pending[site]
                    back[site] = time.time()
                if not pending and None not in (launcher.poll(), late.poll()):
                    break
                time.sleep(0.1)
            else:
                launcher.terminate()
                late.terminate()
            for one in (launcher, late):
                _, words = one.communicate()
                assert one.returncode == 0, words
    return list(_outcomes(there, run, late_run, left=left, back=back))


EXPECTED = {
    KILLED: ("killed in a round (SIGKILL, all its processes)", "offline", "answered"),
    FROZEN: ("frozen in a round (SIGSTOP)", "offline", "answered"),
    CUT: ("cut off in a round, its answer ready meanwhile", "", "answered"),
    DEAF: ("cut off as it is asked: the question is lost", "offline", "answered"),
}


def _outcomes(
    there: Federation,
    run: Path,
    late_run: Path,
    *,
    left: dict[str, float],
    back: dict[str, float],
) -> Iterator[Outcome]:
    result = json.loads((run / "result.json").read_text())["sites"]
    shown = _shown(there, run)
    for site, (fault, _, ends) in EXPECTED.items():
        # In its second round, or where that went on without it, in the next.
        after = [one for one in told(run, site) if one["round"] >= 2]
        answered = [one["time"] for one in after if one["state"] == ends]
        problems = list(_twice(there, site))
        back_s = answered[0] - back[site] if answered else None
        if back_s is None or back_s > BACK_WITHIN_S:
            problems.append(f"not heard again within {BACK_WITHIN_S:g} s")
        if result[site]["releases"] != result[WELL]["releases"]:
            problems.append("not each of its answers was used once")
        if shown[site]["state"] != "answered":
            problems.append(f"the run shows it as {shown[site]['state']}")
        yield Outcome(
            fault=fault,
            ends=ends,
            states=tuple(one["state"] for one in after if one["round"] == 2),
            reason="; ".join(dict.fromkeys(one["reason"] for one in after if one["reason"])),
            away_s=round(back[site] - left[site], 1),
            back_s=None if back_s is None else round(back_s, 1),
            problems=tuple(problems),
        )
    yield _late(there, late_run, left=left, back=back)
    for number, fault, ends in ((1, "refuses by policy", "refused"), (2, "sends NaN", "rejected")):
        news = [one for one in told(run, ODD) if one["round"] == number]
        fits = news[-1]["state"] == ends and news[-1]["reason"].startswith(f"{ODD}: ")
        yield Outcome(
            fault=fault,
            ends=ends,
            states=tuple(one["state"] for one in news),
            reason=news[-1]["reason"],
            away_s=None,
            back_s=None,
            problems=() if fits else ("not told",),
        )


def _late(
    there: Federation, run: Path, *, left: dict[str, float], back: dict[str, float]
) -> Outcome:
    result = json.loads((run / "result.json").read_text())["sites"]
    news = [one for one in told(run, ODD) if one["round"] >= 2]
    answered = [one["time"] for one in news if one["round"] == 3 and one["state"] == "answered"]
    problems = list(_twice(there, ODD))
    if [one["state"] for one in news if one["round"] == 2][-1:] != ["late"]:
        problems.append("not late in its round")
    back_s = answered[0] - back[ODD] if answered else None
    if back_s is None or back_s > BACK_WITHIN_S:
        problems.append("not heard in the next round")
    # Of the second round the well one alone: what came late was not used, then or later.
    if not 0 < result[ODD]["releases"] < result[WELL]["releases"]:
        problems.append("its late answer was used")
    return Outcome(
        fault="late: it answers after the round's deadline",
        ends="late, then answered",
        states=tuple(one["state"] for one in news),
        reason="; ".join(dict.fromkeys(one["reason"] for one in news if one["reason"])),
        away_s=round(back[ODD] - left[ODD], 1),
        back_s=None if back_s is None else round(back_s, 1),
        problems=tuple(problems),
    )


def _shown(there: Federation, run: Path) -> dict[str, dict[str, Any]]:
    """The sites as `aggregator run show` has them."""
    shown = there.deployment.aggregator("run", "show", run.name, "--json")
    assert shown.returncode == 0, shown.stderr
    return {one["name"]: one for one in json.loads(shown.stdout)["sites"]}


def _twice(there: Federation, site: str) -> Iterator[str]:
    """Questions that its worker has computed an answer to more than once."""
    computed = [words[1] for words in there.said(site) if words[:1] == ["computes"]]
    for digest in {one for one in computed if computed.count(one) > 1}:
        yield f"computed {digest[:8]} more than once"
