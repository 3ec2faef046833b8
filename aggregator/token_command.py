"""``aggregator token``: access tokens of researchers and coordinators."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from aggregator.access.tokens import MAX_DAYS, Token, Tokens
from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing
from aggregator.database import Database
from shared.release.client import NAMESPACE

app = typer.Typer(help="Access tokens for the HTTP routes.", no_args_is_help=True)


@app.command()
def create(
    principal: Annotated[str, typer.Argument(help="Whose it is: a person or a service.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read:dataset (the default), launch:run or admin; repeat."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="A dataset that read:dataset is restricted to; repeat."),
    ] = None,
    days: Annotated[int, typer.Option(help=f"Days until it ends, at most {MAX_DAYS}.")] = 90,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Makes a token and shows it, this one time."""
    with clear_errors():
        database = Database(existing(home).catalog)
        try:
            secret, token = Tokens(database).create(
                principal,
                scopes=scope or ["read:dataset"],
                datasets=[full_name(name) for name in dataset or ()],
                days=days,
            )
        finally:
            database.close()
    if as_json:
        typer.echo(json.dumps({"token": secret, **asdict(token)}))
        return
    typer.echo(secret)
    typer.echo(f"token {_line(token)}\nIt is shown this once: hand it over safely.", err=True)


@app.command("list")
def list_tokens(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows the tokens, newest first, without the secrets, which nobody has but their owners."""
    with clear_errors():
        database = Database(existing(home).catalog)
        tokens = Tokens(database).all()
        database.close()
    if as_json:
        typer.echo(json.dumps({"tokens": [{**asdict(one), "state": one.state} for one in tokens]}))
        return
    for one in tokens:
        typer.echo(_line(one))
    if not tokens:
        typer.echo("there is no token: `aggregator token create NAME`")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="A token's id, or a name: all of its tokens.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Ends tokens for good, within a second, also where the API is running."""
    with clear_errors():
        database = Database(existing(home).catalog)
        try:
            ended = Tokens(database).revoke(name)
        finally:
            database.close()
    if as_json:
        typer.echo(json.dumps({"revoked": [one.id for one in ended]}))
        return
    for one in ended:
        typer.echo(_line(one))


def full_name(name: str) -> str:
    """``namespace/name`` of a dataset that was given with or without the namespace."""
    return name if "/" in name else f"{NAMESPACE}/{name}"


def _line(token: Token) -> str:
    named = f" of {', '.join(token.datasets)}" if token.datasets else ""
    return (
        f"{token.id}  {token.principal}  {', '.join(token.scopes)}{named}"
        f"  {token.state}  until {token.expires_at[:10]}"
    )
