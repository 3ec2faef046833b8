"""A new contract as a TOML file: every field with what it means, its default, and its range.

Written from the contract's own fields, so that it cannot fall behind them. Defaults are commented
out: the file's digest is that of a contract that says as little.
"""

import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.contract import RunContract
from shared.tasks.settings import Task

EXAMPLE = {"transfer": (1.0, 0.8, 0.4, 0.1), "noise_hu": (0.0, 2.0, 4.0, 2.0)}
"""Curves that show the form; those of a site are what `site-agent kernel-fit` prints."""
PARTS = ("ct-denoise", "ct-sr")
"""Of a new contract of several tasks."""


def sparse(document: Mapping[str, Any]) -> str:
    """A contract's document as TOML: exactly what it says, tables last."""
    lines = [f"{name} = {_toml(value)}" for name, value in document.items() if _is_plain(value)]
    for name, value in document.items():
        if isinstance(value, Mapping):
            plain = {key: one for key, one in value.items() if _is_plain(one)}
            lines += ["", f"[{name}]", *(f"{key} = {_toml(one)}" for key, one in plain.items())]
            for key in value.keys() - plain.keys():
                for part in value[key]:
                    lines += ["", f"[[{name}.{key}]]"]
                    lines += [f"{inner} = {_toml(one)}" for inner, one in part.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _is_plain(value: Any) -> bool:
    tables = isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value)
    return not isinstance(value, Mapping) and not tables


def task_names() -> tuple[str, ...]:
    """The tasks that a contract may name."""
    return tuple(one.model_fields["name"].default for one in models_of(Task))


def new_contract(task: str, *, name: str) -> str:
    """The text of a contract for ``task``; raises ``KeyError`` where there is no such task."""
    model = {one.model_fields["name"].default: one for one in models_of(Task)}[task]
    example = RunContract.model_validate({"name": name, "task": _task(task)})
    lines = [
        "# A contract: what every hospital agrees to before it computes anything.",
        "# Lines that begin with '#' show defaults; take the '#' away to change one.",
        "# Check it with `aggregator contract check`. Any change makes another digest, and run.",
        "",
    ]
    tables: list[str] = []
    for field, about in RunContract.model_fields.items():
        value = getattr(example, field)
        if field == "task":
            tables += ["", *_task_table(model, value)]
        elif isinstance(value, BaseModel):
            tables += ["", f"# {first_line(type(value))}", f"[{field}]", *_fields(value)]
        elif field == "members":
            lines += [f"# {about.description} (nothing to write here)", "# members = []", ""]
        else:
            lines += [*_field(field, value, about, fixed=field == "name"), ""]
    return "\n".join([*lines[:-1], *tables]) + "\n"


def _task(name: str) -> dict[str, Any]:
    if name == "multi":
        return {"name": name, "parts": [{"name": part} for part in PARTS]}
    return {"name": name, **(EXAMPLE if name == "ct-kernel" else {})}


def _task_table(model: type[BaseModel], value: BaseModel) -> Iterator[str]:
    yield f"# {first_line(model)}"
    yield "[task]"
    yield f'name = "{getattr(value, "name")}"  # {", ".join(task_names())}'  # noqa: B009
    parts: tuple[BaseModel, ...] = getattr(value, "parts", ())
    if not parts:
        yield from _fields(value, but=("name",))
    for part in parts:
        yield from ("", f"# {first_line(type(part))}", "[[task.parts]]")
        yield f'name = "{getattr(part, "name")}"'  # noqa: B009
        yield from _fields(part, but=("name",))


def _fields(value: BaseModel, *, but: tuple[str, ...] = ()) -> Iterator[str]:
    for field, about in type(value).model_fields.items():
        if field not in but:
            present = getattr(value, field)
            # A table's own defaults may be others: the anchor's network is not any network.
            fixed = about.is_required() or present != about.default
            yield from _field(field, present, about, fixed=fixed)


def _field(name: str, value: Any, about: FieldInfo, *, fixed: bool) -> Iterator[str]:
    meant = [about.description or name.replace("_", " "), range_of(about)]
    yield f"# {'; '.join(part for part in meant if part)}"
    if value is None:
        yield f"# {name} ="
    else:
        yield f"{'' if fixed else '# '}{name} = {_toml(value)}"


def range_of(about: FieldInfo) -> str:
    """What a field may be, in words; nothing where everything is said."""
    words = choices_of(about.annotation)
    if words:
        return " | ".join(words)
    ends: dict[str, str] = {}
    for limit in about.metadata:
        for attribute, text in (
            ("ge", "at least"),
            ("gt", "above"),
            ("le", "at most"),
            ("lt", "below"),
        ):
            if getattr(limit, attribute, None) is not None:
                ends[text] = str(getattr(limit, attribute))
    return ", ".join(f"{text} {end}" for text, end in ends.items())


def choices_of(annotation: Any) -> list[str]:
    """The values of an enumeration, as TOML; none of anything else."""
    if get_origin(annotation) is Literal:
        return [json.dumps(one) for one in get_args(annotation)]
    if get_origin(annotation) is tuple:
        return choices_of(get_args(annotation)[0])
    return []


def _toml(value: Any) -> str:
    """Of a boolean, a number, a plain text or a list of them: the same as JSON's."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation, or a union of them, names."""
    if get_origin(annotation) is Annotated:
        return models_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [model for part in get_args(annotation) for model in models_of(part)]
    return [annotation]


def first_line(model: type[BaseModel]) -> str:
    """What a part of the contract is about."""
    return (model.__doc__ or model.__name__).splitlines()[0]
