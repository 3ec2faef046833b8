"""`aggregator attack`: what the attacks find, on images a coordinator chooses.

Folders of images stand for hospitals, as in `aggregator simulate`; a third of the patients is kept
apart and takes no part. Each kind prints its table. What is written as JSON goes into a release
where it lies as ``attacks.json`` in the run's folder.
"""

import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aggregator.attacks import byzantine, copying, identification, inversion, membership, tables
from aggregator.attacks.identification import FewPeopleError
from aggregator.attacks.scene import Scene, Sources, open_scene
from aggregator.attacks.summaries import Question, questions
from aggregator.attacks.watch import Watch, by_phase
from aggregator.benchmark import PRIOR_FOLDER
from aggregator.benchmark_contract import settled
from aggregator.federation import PAIRS, FederationError
from aggregator.foundation import FoundationError
from aggregator.privacy_report import TITLES
from aggregator.simulate import Hospital, HospitalError, Split
from aggregator.trials import Trial, distil_all
from shared.contract import ContractError, RunContract
from shared.durable import write_durably
from shared.readers import ReaderError
from shared.release.progress import progress


class Kind(StrEnum):
    """What can be attacked."""

    INVERSION = "inversion"
    IDENTIFICATION = "identification"
    MEMBERSHIP = "membership"
    COPYING = "copying"
    BYZANTINE = "byzantine"


FORMAT = "fedstill-attacks/1"
SEED = 0


class AttackError(ValueError):
    """An attack that cannot be run on what was given; the text says what is missing."""


@dataclass
class Stage:
    """What all attacks share; the questions of the run are found when the first one asks."""

    scene: Scene
    hospitals: tuple[Hospital, ...]
    contract: RunContract
    sources: Sources
    quick: bool
    quiet: bool
    watch: Watch
    _asked: list[Question] | None = None

    def run(self, kind: Kind, released: Tensor | None) -> dict[str, Any]:
        """One attack."""
        if kind is Kind.BYZANTINE:
            return self._byzantine()
        if kind is Kind.COPYING:
            return copying.measure(self.scene, self._released(released), seed=SEED)
        asked = self._questions()
        if kind is Kind.INVERSION:
            tried = inversion.QUICK if self.quick else inversion.Effort()
            return inversion.measure(self.scene, asked, seed=SEED, effort=tried, watch=self.watch)
        if kind is Kind.IDENTIFICATION:
            named = identification.QUICK if self.quick else identification.Effort()
            return identification.measure(
                self.scene, asked, seed=SEED, effort=named, watch=self.watch
            )
        played = membership.QUICK if self.quick else membership.Effort()
        return membership.measure(self.scene, asked, seed=SEED, effort=played, watch=self.watch)

    def _questions(self) -> list[Question]:
        if self._asked is None:
            with by_phase(self.watch) as on_step:
                self._asked = questions(self.scene, on_step=on_step)
        return self._asked

    def _released(self, released: Tensor | None) -> Tensor:
        """The images of a finished run, or of one that is distilled here."""
        if released is not None:
            return released
        trial = Trial(self.contract, self.hospitals, self.sources.run, self.sources.public)
        with progress("distilling", unit="rounds", quiet=self.quiet) as shown:
            distil_all([trial], workers=1, on_round=shown)
        return load_file(trial.run / PAIRS)["hq"]

    def _byzantine(self) -> dict[str, Any]:
        if self.contract.privacy.epsilon is not None or not self.contract.anchor.rounds:
            raise AttackError("needs rounds of the anchor, and no noise: give another contract")
        return byzantine.measure(
            contract=self.contract.model_copy(update={"granularity": "cohort", "members": ()}),
            data=self.sources.data,
            split=self.sources.split,
            public=self.sources.public,
            sequence=self.sources.sequence,
            quiet=self.quiet,
        )


def attack(
    contract: RunContract,
    sources: Sources,
    kinds: Sequence[Kind],
    *,
    foundation: str,
    quick: bool,
    released: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """What the attacks of these kinds find.

    ``foundation`` is that of the contract asked for: a ``quick`` attack takes fewer steps than it
    says. ``released`` is the folder of a finished run, whose pairs are looked at for copies;
    without it one is distilled. Raises ``AttackError``, ``FewPeopleError``, ``ReaderError``,
    ``HospitalError``, ``FoundationError`` or ``FederationError``.
    """
    images = None if released is None else _images(released, contract)
    watch = functools.partial(progress, unit="steps", quiet=quiet)
    with by_phase(watch) as on_step:
        scene, hospitals = open_scene(contract, sources, on_step=on_step)
    stage = Stage(scene, tuple(hospitals), contract, sources, quick, quiet, watch)
    found: dict[str, Any] = {}
    for kind in Kind:
        if kind in kinds:
            started = time.monotonic()
            found[kind.value] = stage.run(kind, images)
            found[kind.value]["seconds"] = round(time.monotonic() - started, 1)
    return {
        "format": FORMAT,
        "contract": contract.model_dump(mode="json"),
        "contract_digest": scene.contract.digest(),
        "foundation": foundation,
        "split": sources.split,
        "quick": quick,
        "sites": {name: len(patients) for name, patients in scene.sites.items()},
        "unseen": len(scene.unseen),
        "attacks": found,
    }


def _images(run: Path, contract: RunContract) -> Tensor:
    """The high-quality images of a finished run."""
    try:
        images = load_file(run / PAIRS)["hq"]
    except (OSError, SafetensorError, KeyError):
        raise AttackError(f"{run / PAIRS}: no finished run's pairs are there") from None
    size = contract.task.size_px
    if images.shape[-2:] != (size, size):
        raise AttackError(f"{run / PAIRS}: images are not of the contract's {size} pixels")
    return images


def text_of(result: dict[str, Any]) -> str:
    """Every attack's table, whether it kept to its bar, and whether its control succeeded."""
    return "\n\n".join(_told(Kind(kind), found) for kind, found in result["attacks"].items())


def _told(kind: Kind, found: dict[str, Any]) -> str:
    lines = [TITLES[kind.value], tables.text(found["rows"])]
    controls = found.get("control")
    if controls:
        lines += ["control:", tables.text(controls if isinstance(controls, list) else [controls])]
    if found.get("control_succeeded", True) is None:
        lines.append("no control: nothing is of one patient here; run it on a contract with probes")
    elif not found.get("control_succeeded", True):
        lines.append("THE CONTROL DID NOT SUCCEED: that the attack failed elsewhere says nothing")
    if "passed" in found:
        lines.append("within the bar" if found["passed"] else "BEYOND THE BAR")
    return "\n".join(lines)


def command(
    data: Annotated[Path, typer.Option(help="Folder with one folder hospital-* a site.")],
    kinds: Annotated[
        list[Kind] | None,
        typer.Argument(metavar="[KIND]...", help=f"Of {', '.join(Kind)}; all of them."),
    ] = None,
    contract: Annotated[
        Path | None, typer.Option(help="Contract in TOML; the defaults where absent.")
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Which third of each hospital's patients takes no part.")
    ] = "choosing",
    public: Annotated[
        Path | None,
        typer.Option(help=f"Public images; else {PRIOR_FOLDER} in --data, if it is there."),
    ] = None,
    sequence: Annotated[
        str | None, typer.Option(help="MR series to take, such as FLAIR, by their name.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a finished run, for copying; else one is distilled."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer trials and steps: to see that it works.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything there as JSON.")
    ] = None,
) -> None:
    """Attack what a contract's sites would send, and what is released of it.

    KIND is inversion, identification, membership, copying or byzantine; all of them where none is
    named. The hospitals are simulated, as the truth must be known: no site is asked, and nothing is
    published. Each kind has a control in which it must succeed.
    """
    with contextlib.ExitStack() as stack:
        try:
            whole = settled(contract, task=None, prior=None, images=None, quick=False)
            agreed = settled(contract, task=None, prior=None, images=None, quick=quick)
            beside = data / PRIOR_FOLDER
            if public is None and (agreed.prior.kind != "phantom" or beside.is_dir()):
                public = beside
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            result = attack(
                agreed,
                Sources(data, place, public, split, sequence),
                kinds or list(Kind),
                foundation=whole.foundation(),
                quick=quick,
                released=run,
            )
        except (
            AttackError,
            ContractError,
            FederationError,
            FewPeopleError,
            FoundationError,
            HospitalError,
            ReaderError,
        ) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
    typer.echo(text_of(result))
    if json_file is not None:
        write_durably(json_file.absolute(), json.dumps(result, indent=2).encode(), mode=0o644)
