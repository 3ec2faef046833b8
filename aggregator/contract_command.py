"""``aggregator contract``: contracts as files, before anything is launched."""

import json
from pathlib import Path
from typing import Annotated

import typer

from aggregator.command_line import (
    DEFAULT_HOME,
    Home,
    Json,
    clear_errors,
)
from aggregator.coordinators import CoordinatorError, coordinators, mandate_of
from aggregator.home import AggregatorHome
from shared.contract import ContractError, RunContract, read_contract
from shared.durable import write_durably

app = typer.Typer(help="Contracts as files, before anything is launched.", no_args_is_help=True)


@app.command()
def new(
    task: Annotated[str, typer.Option(help="The task: ct-denoise, mr-sr, ...")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; without it: standard output.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset the run publishes.")] = None,
) -> None:
    """Writes a contract with every field explained, and its default commented out."""
    from aggregator.contract_file import new_contract, task_names

    with clear_errors():
        if task not in task_names():
            raise ContractError(f"--task {task}: there are {', '.join(task_names())}")
        if out is not None and out.exists():
            raise ContractError(f"--out {out} exists: choose another name, or remove it")
        text = new_contract(task, name=name or f"my-{task}")
        if out is None:
            typer.echo(text, nl=False)
            return
        try:
            write_durably(out, text.encode(), mode=0o644)
        except OSError as error:
            raise ContractError(f"--out {out}: cannot be written ({error.strerror})") from None
    typer.echo(f"{out}\nNext: `aggregator contract check {out}`.")


@app.command()
def check(
    contract: Annotated[Path, typer.Argument(help="The contract, TOML.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Validates a contract; prints its digest, what it costs a site, and who has signed or would.

    Works without a home too. Of a secure sum, or with public directions, the digest is only final
    once `launch` has filled in members and basis.
    """
    with clear_errors():
        read = read_contract(contract)
        signed, would = _signers(AggregatorHome(home.resolve()), read)
        from aggregator.costs import cost_of, in_words

        cost = cost_of(read)
    final = not (read.granularity == "federation" and not read.members) and not (
        read.privacy.directions and read.privacy.basis is None
    )
    document = {
        "digest": read.digest(),
        "final": final,
        "name": read.name,
        "task": read.task.name,
        "granularity": read.granularity,
        **cost.model_dump(),
        "signed_by": signed,
        "would_sign": would,
    }
    if as_json:
        typer.echo(json.dumps(document))
        return
    unsigned = f"nobody yet; launch signs as {would or 'nobody: there is no key here'}"
    typer.echo(
        f"{read.name}: {read.task.name}, granularity {read.granularity}\n"
        f"  digest {read.digest()}{'' if final else ' until launch fills in the rest'}\n"
        f"  costs a site {in_words(cost)}\n"
        f"  signed by {signed or unsigned}"
    )


def _signers(home: AggregatorHome, contract: RunContract) -> tuple[str | None, str | None]:
    """The coordinator who signed the run of this contract, and who would by default."""
    from aggregator.runs import read_mandate

    run = home.run_folder(contract.digest())
    mandate = read_mandate(run)
    named = {one.key: one.name for one in coordinators(home)}
    signed = named.get(mandate.coordinator, mandate.coordinator) if mandate else None
    try:
        key = mandate_of(home, None, contract_digest=contract.digest()).coordinator
    except CoordinatorError:
        return signed, None
    return signed, named[key]
