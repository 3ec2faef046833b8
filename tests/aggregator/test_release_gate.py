"""Nothing worse than its prior or the best null is ever published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aggregator.catalog import Catalog
from aggregator.cli import main
from aggregator.command_line import EXIT_REFUSED
from aggregator.home import AggregatorHome, create_home
from aggregator.launch import publish
from aggregator.runs import RunError
from aggregator.store import BlobStore
from aggregator.utility import GateError, figures, pairs_digest, row
from shared.contract import RunContract
from shared.release.provenance import read_predicate
from shared.tasks.settings import CtDenoise

CONTRACT = RunContract(name="gated", images=2, task=CtDenoise(size_px=32), anchor={"crop_px": 16})
RESULT = {"sites": {"a": {"releases": 3}}, "rounds": 1, "provenance": {}}


def table(distilled: float, **more: Any) -> dict[str, Any]:
    rows = {
        name: row([[psnr, psnr + 1]], [[0.8, 0.9]])
        for name, psnr in {"prior": 30.0, "prior_textured": 31.0, "distilled": distilled}.items()
    }
    return {"rows": rows, **figures(rows), **more}


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path / "home", {})


@pytest.fixture
def run(home: AggregatorHome) -> Path:
    folder = home.run_folder(CONTRACT.digest())
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).random((2, 2, 1, 32, 32), dtype=np.float32)
    save_file({"lq": images[0], "hq": images[1]}, folder / "pairs.safetensors")
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "contract.json").write_text(CONTRACT.model_dump_json())
    (folder / "plan.json").write_text(json.dumps({"sites": ["a"]}))
    return folder


def versions(home: AggregatorHome) -> int:
    catalog = Catalog(home.root / "catalog.sqlite")
    found = catalog.find("fedstill", "gated", "main")
    catalog.close()
    return 0 if found is None else found.number


def test_a_worthy_run_is_published_with_its_gate(home: AggregatorHome, run: Path) -> None:
    (run / "utility.json").write_text(json.dumps(table(31.5)))
    publish(home, run, CONTRACT)
    catalog = Catalog(home.root / "catalog.sqlite")
    version = catalog.find("fedstill", "gated", "v1")
    catalog.close()
    assert version is not None
    provenance = next(file for file in version.files if file.path == "provenance.json")
    blob = BlobStore(home.root / "blobs").path(provenance.sha256)
    written = read_predicate(blob.read_bytes())["utility"]["gate"]
    assert written["passed"] is True
    assert "+0.50 dB over prior_textured" in written["reason"]


@pytest.mark.parametrize("psnr", [30.5, 29.0])
def test_an_unworthy_run_is_refused(home: AggregatorHome, run: Path, psnr: float) -> None:
    (run / "utility.json").write_text(json.dumps(table(psnr)))
    with pytest.raises(GateError, match="not published: the distilled set trains to"):
        publish(home, run, CONTRACT)
    assert versions(home) == 0


def test_what_the_table_claims_of_itself_does_not_count(home: AggregatorHome, run: Path) -> None:
    boast = {"gain_over_best_null": 9.0, "best_null": "prior", "gate": {"passed": True}}
    (run / "utility.json").write_text(json.dumps({**table(30.5), **boast}))
    with pytest.raises(GateError):
        publish(home, run, CONTRACT)


def test_a_table_of_other_pairs_or_another_contract_is_refused(
    home: AggregatorHome, run: Path
) -> None:
    (run / "utility.json").write_text(json.dumps(table(32.0, contract_digest="ab" * 32)))
    with pytest.raises(GateError, match="another contract"):
        publish(home, run, CONTRACT)
    (run / "utility.json").write_text(json.dumps(table(32.0, pairs_sha256=["cd" * 32])))
    with pytest.raises(GateError, match="other pairs"):
        publish(home, run, CONTRACT)


def test_a_table_of_these_pairs_is_taken(home: AggregatorHome, run: Path) -> None:
    images = np.random.default_rng(0).random((2, 2, 1, 32, 32), dtype=np.float32)
    own = {
        "contract_digest": CONTRACT.digest(),
        "pairs_sha256": ["cd" * 32, pairs_digest(images[0], images[1])],
    }
    (run / "utility.json").write_text(json.dumps(table(32.0, **own)))
    assert publish(home, run, CONTRACT)["version"] == 1


def test_without_a_table_publishing_is_possible_unless_the_home_asks(
    home: AggregatorHome, run: Path
) -> None:
    publish(home, run, CONTRACT)
    assert versions(home) == 1
    strict = create_home(home.root, {"require_utility": True})
    with pytest.raises(GateError, match="require_utility = true"):
        publish(strict, run, CONTRACT)


def test_a_damaged_table_publishes_nothing(home: AggregatorHome, run: Path) -> None:
    for content in ("{", "[]", "null"):
        (run / "utility.json").write_text(content)
        with pytest.raises(RunError, match="damaged"):
            publish(home, run, CONTRACT)
    (run / "utility.json").write_text(json.dumps({"rows": {"prior": 3}}))
    with pytest.raises(GateError, match="damaged"):
        publish(home, run, CONTRACT)


def test_the_command_ends_with_a_code_of_its_own(
    home: AggregatorHome,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contract = tmp_path / "gated.toml"
    contract.write_text(
        'name = "gated"\nimages = 2\ntask.size_px = 32\nanchor.crop_px = 16\n', "utf-8"
    )
    command = ["aggregator", "launch", str(contract), "--home", str(home.root)]
    (run / "utility.json").write_text(json.dumps(table(30.5)))
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == EXIT_REFUSED == 4
    told = capsys.readouterr().err
    assert "not published" in told
    assert "Traceback" not in told
    monkeypatch.setattr("sys.argv", [*command, "--no-publish", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(run)}
