import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.contract_file import EXAMPLE, PARTS, new_contract, task_names
from aggregator.coordinators import add_coordinator, mandate_of
from aggregator.costs import cost_of
from aggregator.home import create_home
from aggregator.runs import keep_mandate, prepare_run
from shared.architectures import Residual
from shared.contract import Anchor, Privacy, Probes, RunContract, read_contract
from tests.test_docs import fields


def contract(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["contract", *map(str, arguments)])
    return result.exit_code, result.output


def bare(task: str) -> RunContract:
    """A contract that says no more than it must."""
    said: dict[str, object] = {"name": task}
    if task == "ct-kernel":
        said |= EXAMPLE
    if task == "multi":
        said["parts"] = [{"name": part} for part in PARTS]
    return RunContract.model_validate({"name": f"my-{task}", "task": said})


@pytest.mark.parametrize("task", task_names())
def test_a_new_contract_is_accepted_and_has_the_digest_of_the_defaults(
    task: str, tmp_path: Path
) -> None:
    file = tmp_path / "contract.toml"
    assert contract("new", "--task", task, "--out", file)[0] == 0
    code, told = contract("check", file, "--home", tmp_path, "--json")
    assert code == 0
    assert json.loads(told)["digest"] == bare(task).digest() == read_contract(file).digest()


def uncommented(text: str) -> str:
    """The file with every default that it shows taken over."""
    lines = []
    for line in text.splitlines():
        inside = line.removeprefix("# ")
        shown = line.startswith("# ") and inside.partition(" = ")[0].isidentifier()
        lines.append(inside if shown and " = " in inside else line)
    return "\n".join(lines)


@pytest.mark.parametrize("task", task_names())
def test_the_defaults_it_shows_are_the_defaults(task: str) -> None:
    text = new_contract(task, name=f"my-{task}")
    whole = RunContract.model_validate(tomllib.loads(uncommented(text)))
    assert whole.digest() == bare(task).digest()
    assert len(text.splitlines()) > 120 and max(map(len, text.splitlines())) <= 160


def test_every_field_is_in_it_with_what_it_means() -> None:
    shown = "".join(new_contract(task, name="x") for task in task_names())
    of_others = {"blocks", "levels"}  # of networks that are not the default
    by_launch = {"members", "signing_key", "parts"}
    for field in fields(RunContract):
        name = field.rpartition(".")[2]
        if name not in of_others | by_launch:
            assert f"\n# {name} =" in shown or f"\n{name} =" in shown, field


def test_a_task_that_is_none_and_a_file_that_exists_are_named(tmp_path: Path) -> None:
    code, told = contract("new", "--task", "ct-magic")
    assert code == 1 and "--task ct-magic: there are ct-denoise" in told
    (tmp_path / "there").touch()
    code, told = contract("new", "--task", "mr-sr", "--out", tmp_path / "there")
    assert code == 1 and "exists" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\n[probes]\nstep = 3', "probes.step: Extra inputs"),
        ('name = "x"\n[anchor]\nbatch = 0', "anchor.batch: Input should be greater"),
        ("seed = 1", "name: Field required"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "contract.toml"
    file.write_text(text)
    code, told = contract("check", file, "--home", tmp_path)
    assert code == 1 and message in told and "Traceback" not in told


def test_who_would_sign_and_who_has_signed_is_told(tmp_path: Path) -> None:
    file, home = tmp_path / "contract.toml", create_home(tmp_path / "home", {})
    file.write_text('name = "x"')
    asked = read_contract(file)
    told = json.loads(contract("check", file, "--home", home.root, "--json")[1])
    assert (told["signed_by"], told["would_sign"], told["final"]) == (None, "first", True)
    add_coordinator(home, "anna")
    run = prepare_run(home, asked, sites=["a"], public=None)
    mandate = mandate_of(home, "anna", contract_digest=asked.digest())
    keep_mandate(run, mandate, trusted=[mandate.coordinator])
    assert "signed by anna" in contract("check", file, "--home", home.root)[1]
    assert "launch signs as nobody" in contract("check", file, "--home", tmp_path / "none")[1]


def test_what_a_site_pays_is_reckoned_from_shapes() -> None:
    tiny = RunContract(
        name="x",
        student=Residual(depth=2, width=4),
        anchor_network=Residual(depth=2, width=4),
        probes=Probes(requests=2, depths=(1, 2, 3)),
        anchor=Anchor(rounds=1, descent="patient"),
        privacy=Privacy(sketch=50, epsilon=4.0),
    )
    weights = 9 * 4 + 4 + 9 * 4 + 1  # two layers of 3x3, with biases
    cost = cost_of(tiny)
    assert (cost.rounds, cost.releases, cost.epsilon, cost.delta) == (3, 7, 4.0, 1e-5)
    assert cost.bytes_down == 4 * weights * (1 + 2 * 3) + 3 * 4096
    assert cost.bytes_up == 4 * (weights + 2 * 3 * 50) + 3 * 4096
    by_patient = tiny.model_copy(update={"granularity": "patient", "min_patients": 5})
    assert cost_of(by_patient).bytes_up - 3 * 4096 == 4 * (weights + 5 * 2 * 3 * 50)
