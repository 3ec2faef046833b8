"""Three hospitals, an aggregator and a researcher on this machine, from images to figures."""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from aggregator.utility import UTILITY, gate
from deploy.demo import federation as commands
from deploy.demo.cohorts import HOSPITALS, Cohorts, CohortsError, arrange
from deploy.demo.federation import DemoError, Federation
from deploy.demo.memory import MemoryWatch
from deploy.demo.narration import Narrator, clock
from deploy.demo.report import build_report, print_report, write_report
from shared.contract import ContractError, read_contract
from shared.processes import become_subreaper, die_with_parent, remains_of

CONTRACT = Path(__file__).with_name("contract.toml")
PHASES = 7
BROUGHT = "volumes that came with the demo's images; their licence is to be seen there"
LOCK = "demo.lock"
EXIT_FAILED, EXIT_USAGE = 1, 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo",
        description="Distils a training set out of three hospitals, shows what it is worth, "
        "publishes it if it is worth something, downloads and verifies it: every real part, on "
        "this machine, with simulated patients unless --data names others. Ends with report.json "
        "in the folder.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with hospital-a, -b and -c (one folder a patient, DICOM or NIfTI) and maybe "
        "public-prior; some patients of each are kept back to evaluate on",
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="made anew each time")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="stay up at the end, for a look at the API (Ctrl-C ends)",
    )
    parser.add_argument("--contract", type=Path, default=CONTRACT, help="another contract, TOML")
    parser.add_argument(
        "--patients", type=int, default=14, help="simulated patients a hospital, 6 or more"
    )
    parser.add_argument("--steps", type=int, default=2000, help="training steps of the evaluation")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row of the table")
    return parser.parse_args()


def main() -> int:
    """Runs the demo; gives the exit code. Whatever happens, no process is left behind."""
    given = arguments()
    console = Console()
    if "MAKELEVEL" in os.environ:
        die_with_parent()  # a killed `make` must not leave the demo running
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    become_subreaper()
    try:
        with fresh_folder(given.folder) as folder:
            return play(given, Federation(folder), console)
    except (CohortsError, ContractError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_USAGE
    except (DemoError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_FAILED


def play(given: argparse.Namespace, federation: Federation, console: Console) -> int:
    """The seven phases, the table and the report."""
    narrator = Narrator(console, phases=PHASES)
    folder = federation.folder
    began = time.monotonic()
    watch = MemoryWatch()
    try:
        with watch:
            cohorts = images(given, federation, narrator)
            contract = write_contract(given.contract, folder, public=cohorts.public is not None)
            if read_contract(contract).prior.kind == "phantom":
                cohorts = dataclasses.replace(cohorts, public=None)
            with narrator.phase("enrolment", "keys, certificates, enrolment"):
                url = commands.enrol(federation, cohorts.sites)
            with narrator.phase("index", "each hospital reads its images"):
                commands.index(federation, list(cohorts.sites), on_line=narrator.step)
            with narrator.phase(
                "start", "starting SuperLink, API, three workers, three SuperNodes"
            ):
                commands.start(federation, list(cohorts.sites), on_ready=narrator.step)
            with narrator.phase("distillation", "distilling"):
                run = commands.distil(federation, contract, cohorts.public, on_line=narrator.step)
                federation.stop(cohorts.sites)  # the hospitals are done: room for what follows
            with narrator.phase("utility", "training on it, and on what it is compared with"):
                figures = evaluate(given, federation, run, cohorts, narrator)
            decided = gate(figures)
            narrator.say(f"      gate: {decided.reason}")
            release, fetched = None, None
            if decided.passed:
                with narrator.phase("publication", "publishing; download over HTTP, verified"):
                    release = commands.publish(federation, contract, cohorts.public)
                    fetched = commands.fetch(federation, release, url=url)
        seconds = {**narrator.seconds, "total": round(time.monotonic() - began, 2)}
        report = build_report(
            figures=figures,
            result=json.loads((run / "result.json").read_bytes()),
            release=release,
            seconds=seconds,
            peak_mib=watch.peak_mib,
            simulated=given.data is None,
        )
        write_report(folder / "report.json", report)
        console.print()
        print_report(console, report, patients=describe(given, cohorts))
        if release is None:
            narrator.say(f"report  {folder / 'report.json'}, after {clock(seconds['total'])}")
            raise DemoError(f"nothing was published: {decided.reason}")
        narrator.say(
            f"release {release['name']} v{release['version']}: {release['url']}\n"
            f"        verified copy in {fetched}, digest {release['digest'][:16]}\n"
            f"report  {folder / 'report.json'}, after {clock(seconds['total'])}"
        )
        if given.keep:
            narrator.say(f"still up: {url}/api/datasets (Ctrl-C ends it)")
            while True:
                time.sleep(1)
        return 0
    finally:
        federation.stop()


def images(given: argparse.Namespace, federation: Federation, narrator: Narrator) -> Cohorts:
    """The hospitals' images: simulated, or those given."""
    folder = federation.folder
    if given.data is not None:
        with narrator.phase("images", f"images of {given.data}"):
            return arrange(given.data, folder=folder)
    with narrator.phase("images", "writing simulated patients as DICOM"):
        data = folder / "simulated"
        many = ["--patients", str(given.patients)]
        write = ["python", "-m", "deploy.demo.hospitals"]
        federation.run(
            {f"{name}-images": [*write, str(data / name), *many] for name in HOSPITALS},
            on_line=narrator.step,
        )
        return arrange(data, folder=folder)


def write_contract(source: Path, folder: Path, *, public: bool) -> Path:
    """The contract to launch: the source's, with the public prior where volumes are there.

    Raises ``ContractError``.
    """
    read_contract(source)
    text = source.read_text("utf-8")
    if public and "prior" not in tomllib.loads(text):
        text = (
            f'prior = {{ kind = "both", license = "NOASSERTION", statement = "{BROUGHT}" }}\n{text}'
        )
    path = folder / "contract.toml"
    path.write_text(text, encoding="utf-8")
    return path


def evaluate(
    given: argparse.Namespace,
    federation: Federation,
    run: Path,
    cohorts: Cohorts,
    narrator: Narrator,
) -> dict[str, Any]:
    """The utility table of the run, from a program of its own, which leaves it in the folder."""
    command = [
        *("python", "-m", "deploy.demo.evaluation", str(run)),
        *("--train", str(cohorts.training), "--holdout", str(cohorts.evaluation)),
        *("--steps", str(given.steps), "--seeds", str(given.seeds)),
        *("--workers", str(min(2, commands.cores()))),
    ]
    if cohorts.public is not None:
        command += ["--public", str(cohorts.public)]
    federation.run({"utility": command}, on_line=narrator.step)
    figures: dict[str, Any] = json.loads((run / UTILITY).read_bytes())
    return figures


def describe(given: argparse.Namespace, cohorts: Cohorts) -> str:
    """Whom the table is about."""
    kept_back = sum(1 for _ in cohorts.evaluation.iterdir())
    kind = "simulated patients (phantoms: nobody was scanned)" if given.data is None else "patients"
    return f"{kept_back} {kind} who were kept out of the federation"


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Empties the demo's folder, and holds it against a second demo.

    Raises ``DemoError`` where another demo is running in it, or it is not a demo's folder.
    """
    folder = folder.absolute()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise DemoError(f"{folder} is not empty and not a demo's: name another one with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        earlier = os.read(descriptor, 32).decode("ascii", "replace").strip()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"a demo is running in {folder} (process {earlier}): wait for it, stop it, or name "
                "another folder with --folder"
            ) from None
        if earlier.isdigit():
            _await_end(int(earlier))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        for entry in folder.iterdir():
            if entry.name != LOCK:
                _remove(entry)
        yield folder
    finally:
        os.close(descriptor)


def _remove(entry: Path) -> None:
    """Removes a file, a folder, or a link but never what it points to."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _await_end(earlier: int) -> None:
    """Waits until the guardians of a demo that was killed have tidied up after it."""
    deadline = time.monotonic() + 15
    while remains_of(earlier) and time.monotonic() < deadline:
        time.sleep(0.2)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
