"""A contract as a form: every field with what it means, its range and its default.

Made from the contract's own fields, so that it cannot fall behind them. A field that is left empty
is left out of the contract, as in a file that says as little.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from aggregator.contract_file import EXAMPLE, choices_of, first_line, models_of, range_of, sparse
from shared.contract import ContractError, RunContract, parsed_toml
from shared.tasks.settings import Task

LEFT_OUT = ("version", "members", "task")
"""Fields that nobody writes here; the task has a table of its own."""
LEFT_OUT_OF = {"task": ("name", "parts", "fitted_pairs"), "privacy": ("basis",)}
TASKS = tuple(
    one.model_fields["name"].default for one in models_of(Task) if "parts" not in one.model_fields
)
"""Those that a form can be made for; a contract of several tasks is pasted."""

NAMES = "1 to 63 lower-case letters, digits and hyphens, none of these first or last"


@dataclass(frozen=True)
class Entry:
    """A field of the form."""

    path: str
    """Dotted, as errors name it."""
    label: str
    about: str
    choices: tuple[str, ...]
    default: str
    value: str
    problem: str


@dataclass(frozen=True)
class Group:
    """A table of the contract."""

    name: str
    about: str
    entries: tuple[Entry, ...]

    @property
    def is_touched(self) -> bool:
        """Whether something of it is filled in, or wrong."""
        return any(one.value or one.problem for one in self.entries)


@dataclass(frozen=True)
class Draft:
    """A contract that somebody has written, and what is wrong with it."""

    toml: str
    contract: RunContract | None
    problems: Mapping[str, str]
    """By the field's dotted path; the empty one is the whole's."""


def groups(task: str, *, given: Mapping[str, str], problems: Mapping[str, str]) -> list[Group]:
    """The form for a task, with what was filled in and what is wrong with it."""
    example = RunContract.model_validate({"name": "x", "task": _least(task)})
    general, tables = [], []
    for name, about in RunContract.model_fields.items():
        value = getattr(example, name)
        if name in LEFT_OUT:
            continue
        if isinstance(value, BaseModel):
            tables.append((name, value))
        else:
            general.append(_entry(name, about, value, given, problems))
    found = [Group("run", "What the run is, and what it publishes.", tuple(general))]
    for name, value in [("task", example.task), *tables]:
        entries = tuple(
            _entry(f"{name}.{field}", about, getattr(value, field), given, problems)
            for field, about in type(value).model_fields.items()
            if field not in LEFT_OUT_OF.get(name, ())
        )
        found.append(Group(name, first_line(type(value)).replace("`", ""), entries))
    return found


def draft_of_form(task: str, given: Mapping[str, str]) -> Draft:
    """The contract that a form describes; a task that is none of ours is a problem of it."""
    if task not in TASKS:
        return Draft("", None, {"task": f"there are {', '.join(TASKS)}"})
    document: dict[str, Any] = {"task": {"name": task}}
    fields = _fields(task)
    for path, field in fields.items():
        text = given.get(path, "").strip()
        if text:
            table, _, name = path.rpartition(".")
            into = document.setdefault(table, {}) if table else document
            into[name] = _parsed(text, field)
    ordered = {name: document[name] for name in RunContract.model_fields if name in document}
    return _draft(sparse(ordered), ordered)


def draft_of_text(text: str) -> Draft:
    """The contract that a TOML text is."""
    try:
        document = parsed_toml(text)
    except ContractError as error:
        return Draft(text, None, {"": str(error)})
    return _draft(text, document)


def _draft(toml: str, document: Mapping[str, Any]) -> Draft:
    try:
        return Draft(toml, RunContract.model_validate(document), {})
    except ValidationError as error:
        problems: dict[str, str] = {}
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            # In a union the place names the kind that was chosen besides: task.ct-denoise.photons.
            place = [str(part) for part in item["loc"]]
            known = [part for at, part in enumerate(place) if not (at == 1 and "-" in part)]
            while known and known[-1].isdecimal():  # of a list that is one field
                del known[-1]
            pattern = item["type"] == "string_pattern_mismatch" and known == ["name"]
            problems.setdefault(".".join(known), NAMES if pattern else item["msg"])
        return Draft(toml, None, problems)


def _least(task: str) -> dict[str, Any]:
    return {"name": task, **(EXAMPLE if task == "ct-kernel" else {})}


def _fields(task: str) -> dict[str, FieldInfo]:
    example = RunContract.model_validate({"name": "x", "task": _least(task)})
    found: dict[str, FieldInfo] = {}
    for name, about in RunContract.model_fields.items():
        value = getattr(example, name)
        if isinstance(value, BaseModel):
            for field, inner in type(value).model_fields.items():
                if field not in LEFT_OUT_OF.get(name, ()):
                    found[f"{name}.{field}"] = inner
        elif name not in LEFT_OUT:
            found[name] = about
    return found


def _entry(
    path: str,
    about: FieldInfo,
    value: Any,
    given: Mapping[str, str],
    problems: Mapping[str, str],
) -> Entry:
    required = about.is_required()
    words = [about.description or "", "" if choices_of(about.annotation) else range_of(about)]
    return Entry(
        path=path,
        label=path.rpartition(".")[2],
        about="; ".join(word for word in words if word),
        choices=tuple(_choices(about)),
        default="" if required or value is None else _shown(value),
        value=given.get(path, ""),
        problem=problems.get(path, ""),
    )


def _choices(about: FieldInfo) -> Iterator[str]:
    if about.annotation is bool:
        yield from ("true", "false")
    elif get_origin(about.annotation) is Literal:
        yield from (str(one) for one in get_args(about.annotation))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(_shown(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parsed(text: str, about: FieldInfo) -> Any:
    """What was typed, as TOML would have it: a list, a boolean, a number, else a text."""
    if get_origin(about.annotation) is tuple:
        return [_scalar(part.strip()) for part in text.split(",") if part.strip()]
    return _scalar(text) if not _is_text(about.annotation) else text


def _is_text(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return str in kinds and not {int, float, bool} & set(kinds)


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
