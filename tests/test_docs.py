"""A command, setting, route or code that no page explains fails here."""

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from aggregator.api import create_app
from aggregator.events import FIELDS as AGGREGATOR_FIELDS
from aggregator.home import AggregatorSettings
from aggregator.lifecycle import ALLOWED
from shared.contract import RunContract
from shared.messages import RefusalCode
from shared.release.errors import KINDS
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
)
from site_agent.events import FIELDS
from site_agent.figures import Figures
from site_agent.intake.reasons import SkipReason
from site_agent.monitoring import SiteCollector, _of_worker
from site_agent.policy import Policy
from site_agent.settings import SiteSettings

ROOT = Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text("utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}


def members(annotation: Any) -> list[Any]:
    """The types of a possibly annotated union; one that is none is its own only member."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in members(part)]
    return [annotation]


def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of a model's settings, those of nested models and of each of a union too."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        kinds = [
            kind
            for kind in members(field.annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        for kind in kinds:
            names += fields(kind, f"{prefix}{name}.")
        if not kinds:
            names.append(f"{prefix}{name}")
    return list(dict.fromkeys(names))


def choices(model: type[BaseModel]) -> list[str]:
    """The words among which a model's fields choose, those of nested models and unions too."""
    words: list[str] = []
    for field in model.model_fields.values():
        for kind in members(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                words += choices(kind)
            elif get_origin(kind) is tuple:
                words += [word for part in get_args(kind) for word in _words(part)]
            else:
                words += _words(kind)
    return list(dict.fromkeys(words))


def _words(kind: Any) -> list[str]:
    literal = get_origin(kind) is Literal
    return [word for word in get_args(kind) if isinstance(word, str)] if literal else []


def test_fields_and_choices_are_found_in_every_member_of_a_union() -> None:
    found = fields(RunContract)
    assert {"task.photons", "task.acceleration", "student.blocks", "anchor.symmetric"} <= set(found)
    assert "task" not in found
    assert {"mr-sr", "unet", "slice", "anchor"} <= set(choices(RunContract))


def test_every_choice_of_a_contract_is_documented() -> None:
    page = PAGES["docs/coordinator.md"]
    missing = [word for word in choices(RunContract) if f"`{word}`" not in page]
    assert not missing, f"docs/coordinator.md does not explain {missing}"


@pytest.mark.parametrize(
    ("program", "commands"),
    [
        (
            "site-agent",
            [
                "init",
                "join",
                "separate",
                "index",
                "preflight",
                "worker",
                "connect",
                "up",
                "status",
                "budget",
                "policy",
                "audit show",
                "audit verify",
                "outbox",
                "kernel-fit",
                "report",
            ],
        ),
        (
            "aggregator",
            [
                "init",
                "up",
                "site add",
                "site revoke",
                "site list",
                "launch",
                "contract new",
                "contract check",
                "run list",
                "run show",
                "run watch",
                "run pause",
                "run stop",
                "run resume",
                "run abort",
                "key list",
                "key rotate",
                "key revoke",
                "release build",
                "release gate",
                "release publish",
                "release list",
                "release withdraw",
                "token create",
                "token list",
                "token revoke",
                "dataset set",
                "downloads",
                "doctor",
                "backup",
                "restore",
                "vacuum",
                "simulate",
                "attack",
            ],
        ),
        ("distilled", ["get", "verify", "info", "accept", "train"]),
    ],
)
def test_every_command_is_documented(program: str, commands: list[str]) -> None:
    import aggregator.cli
    import shared.release.cli
    import site_agent.cli

    app = {
        "site-agent": site_agent.cli.app,
        "aggregator": aggregator.cli.app,
        "distilled": shared.release.cli.app,
    }[program]
    named = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in app.registered_commands
    }
    assert named <= {command.split()[0] for command in commands}, (
        "a command this test does not know"
    )
    everything = "\n".join(PAGES.values())
    for command in commands:
        assert f"{program} {command}" in everything, f"{program} {command} is on no page"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (
            "docs/hospital.md",
            [f for f in fields(SiteSettings) if f != "home" and not f.startswith("policy.")],
        ),
        ("docs/hospital.md", fields(Policy)),
        ("docs/coordinator.md", fields(AggregatorSettings)),
        ("docs/coordinator.md", fields(RunContract)),
    ],
)
def test_every_setting_is_documented(page: str, names: list[str]) -> None:
    assert names
    missing = [name for name in names if f"`{name}`" not in PAGES[page]]
    assert not missing, f"{page} does not explain {missing}"


def test_every_task_and_its_parameters_are_documented() -> None:
    section = PAGES["docs/method.md"].split("## Tasks\n")[1].split("\n## ")[0]
    for kind in (CtDenoise, CtSr, CtKernel, MrDenoise, MrSr, MrUndersampled, MultiTask):
        name = kind.model_fields["name"].default
        missing = [field for field in (name, *kind.model_fields) if f"`{field}`" not in section]
        assert not missing, f"docs/method.md does not explain {missing} of {name}"


def test_every_route_is_documented(tmp_path: Path) -> None:
    paths = list(create_app(tmp_path).openapi()["paths"])
    assert len(paths) >= 8
    missing = [path for path in paths if path not in PAGES["docs/coordinator.md"]]
    assert not missing


def test_every_exit_code_and_refusal_is_documented() -> None:
    for kind in KINDS:
        assert f"| {kind.exit_code} | `{kind.code}` |" in PAGES["docs/researcher.md"]
    for code in [*RefusalCode, *SkipReason]:
        assert f"`{code}`" in PAGES["docs/hospital.md"]


def test_every_log_event_and_its_fields_are_documented() -> None:
    page = PAGES["docs/hospital.md"]
    for event, names in FIELDS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{event}` |")]
        assert re.findall(r"`(\w+)`", row.split("|")[2]) == list(names), event


def test_every_metric_is_documented(tmp_path: Path) -> None:
    settings = SiteSettings(home=tmp_path, name="a", aggregator="localhost:1", images=tmp_path)
    figures = Figures(
        version="1",
        started=0,
        policy_valid=True,
        cohort_present=True,
        patients_at_least=5,
        events={},
        refusals={},
        answer_bytes=0,
        answer_seconds=0,
    )
    for metric in [*SiteCollector(settings).collect(), *_of_worker(figures)]:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"| `{name}" in PAGES["docs/hospital.md"], name


def test_every_link_between_pages_leads_somewhere() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_every_state_of_a_run_and_what_may_follow_is_documented() -> None:
    table = PAGES["docs/coordinator.md"].split("### What becomes of a run")[1]
    for state, after in ALLOWED.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{state}` |")]
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) <= after, state


def test_the_terms_of_a_run_are_documented() -> None:
    for option in ("--quorum", "--round-timeout", "--patience", "below_quorum"):
        assert option in PAGES["docs/coordinator.md"]


def test_every_event_of_the_aggregator_and_its_fields_are_documented() -> None:
    page = PAGES["docs/deployment.md"]
    for event, names in AGGREGATOR_FIELDS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{event.value}` |")]
        assert all(f"`{name}`" in row for name in names), f"docs/deployment.md: {event.value}"
