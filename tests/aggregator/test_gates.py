"""The gates between a run and its publication: whatever is not known to pass is not published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from aggregator import publishing
from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog
from aggregator.cli import app
from aggregator.database import Database
from aggregator.gates import run_gates
from aggregator.home import AggregatorHome, create_home
from aggregator.hospital_table import (
    Judgement,
    SiteFigures,
    SiteVerdict,
    hospital_table,
    is_judged,
    keep_judgement,
)
from aggregator.launch import publish
from aggregator.lifecycle import STATE, RunState, read_state
from aggregator.release import publish_run
from aggregator.runs import RunError
from aggregator.store import BlobStore
from aggregator.utility import GateError, pairs_digest
from shared.contract import Evaluation, PriorSource, RunContract
from shared.release.provenance import read_predicate
from shared.tasks.settings import CtDenoise

CONTRACT = RunContract(
    name="judged",
    images=2,
    task=CtDenoise(size_px=32),
    anchor={"crop_px": 16},
    evaluation=Evaluation(sites=True, veto=True, seeds=2, margin_db=0.2),
)
RESULT = {"sites": {"a": {"releases": 3}}, "rounds": 1, "releases": 3, "provenance": {}}
SETS = ("prior", "prior_textured", "distilled")
IMAGES = np.random.default_rng(0).random((2, 2, 1, 32, 32), dtype=np.float32)
PAIRS = pairs_digest(IMAGES[0], IMAGES[1])
GOOD = SiteVerdict(passed=True, ratio_ssim=1.0, ratio_ncc=1.05, too_alike=())


def figures(distilled: float, patients: int = 5) -> SiteFigures:
    """Of the input, two networks a set, and the anchor."""
    psnr_db = (20.0, 30.0, 30.2, 31.0, 31.2, distilled, distilled + 0.2, 33.0)
    return SiteFigures(psnr_db=psnr_db, ssim=(0.8,) * 8, patients_at_least=patients)


def judgement(contract: RunContract = CONTRACT, **changes: Any) -> Judgement:
    fields: dict[str, Any] = {
        "contract_digest": contract.digest(),
        "pairs_sha256": PAIRS,
        "sets": SETS,
        "seeds": 2,
        "anchor": True,
        "source_ssim": (0.7, 0.8),
        "source_ncc": (0.9, 0.9),
        "asked": ("a", "b"),
        "figures": {"a": figures(32.0, 5), "b": figures(31.4, 10)},
        "verdicts": {"a": GOOD, "b": GOOD},
    }
    return Judgement(**{**fields, **changes})


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path / "home", {})


def run_of(home: AggregatorHome, contract: RunContract = CONTRACT) -> Path:
    folder = home.run_folder(contract.digest())
    folder.mkdir(parents=True)
    save_file({"lq": IMAGES[0], "hq": IMAGES[1]}, folder / "pairs.safetensors")
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "contract.json").write_text(contract.model_dump_json())
    (folder / "plan.json").write_text(json.dumps({"sites": ["a", "b"]}))
    return folder


def measure(run: Path, contract: RunContract = CONTRACT, **changes: Any) -> None:
    said = judgement(contract, **changes)
    keep_judgement(run, said)
    if table := hospital_table(said, contract, result=RESULT):
        (run / "utility.json").write_text(json.dumps(table))


def version_of(home: AggregatorHome) -> int:
    catalog = Catalog(home.root / "catalog.sqlite")
    found = catalog.find("fedstill", "judged", "main")
    catalog.close()
    return 0 if found is None else found.number


def test_a_table_weighs_hospitals_by_their_buckets() -> None:
    table = hospital_table(judgement(), CONTRACT, result=RESULT)
    assert table is not None
    row = table["rows"]["distilled"]
    first, second = (5 * 32.0 + 10 * 31.4) / 15, (5 * 32.2 + 10 * 31.6) / 15
    assert row["psnr"]["mean"] == pytest.approx((first + second) / 2)
    assert row["psnr"]["std"] == pytest.approx(np.std([first, second], ddof=1))
    assert row["psnr"]["n"] == 2
    assert table["best_null"] == "prior_textured"
    assert table["gain_interval"] is None, "no patient's figure, no interval"
    assert hospital_table(judgement(figures={}), CONTRACT, result=RESULT) is None


@pytest.mark.parametrize(
    ("step", "after"),
    [("write_durably", True), ("publish_files", False), ("mark_published", False)],
)
def test_a_publication_that_was_killed_half_way_is_made_whole_by_the_next(
    home: AggregatorHome, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a version itself is written, to the sync: tests/aggregator/test_killed_publishers.py."""
    run = run_of(home)
    measure(run)
    done = getattr(publishing, step)

    def killed(*arguments: Any, **named: Any) -> None:
        if after:
            done(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(publishing, step, killed)
        publish(home, run, CONTRACT)
    first = publish(home, run, CONTRACT)
    assert (first["version"], version_of(home)) == (1, 1)
    assert read_state(run).state == "published"
    undisturbed = create_home(home.root.parent / "undisturbed", {})
    run = run_of(undisturbed)
    measure(run)
    assert publish(undisturbed, run, CONTRACT)["digest"] == first["digest"]


def test_a_judged_run_is_published_and_says_where_it_was_measured(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run)
    assert is_judged(run, CONTRACT)
    assert publish(home, run, CONTRACT)["version"] == 1
    report = json.loads((run / "gates.json").read_text())
    assert [one["gate"] for one in report["findings"]] == [
        *("utility", "hospitals", "copying", "veto")
    ]
    catalog = Catalog(home.root / "catalog.sqlite")
    version = catalog.find("fedstill", "judged", "v1")
    catalog.close()
    assert version is not None
    blobs = {one.path: BlobStore(home.root / "blobs").path(one.sha256) for one in version.files}
    utility = read_predicate(blobs["provenance.json"].read_bytes())["utility"]
    assert utility["rows"]["distilled"]["measured_at"] == "hospitals"
    assert "2 hospitals" in utility["evaluation"]
    assert "measured at the hospitals" in blobs["README.md"].read_text()


FAILURES: dict[str, dict[str, Any]] = {
    "is of other pairs": {"pairs_sha256": "ab" * 32},
    "0 of 2 hospitals gave figures": {"figures": {}},
    "a gave no verdict; b gave no verdict": {"verdicts": {}},
    r"b gave no verdict \(b: veto-query: no answer\)": {
        "verdicts": {"a": GOOD},
        "problems": {"b": "veto-query: no answer"},
    },
    r"b objects to images 1 \(ratios 1, 1.05\)": {
        "verdicts": {"a": GOOD, "b": GOOD.model_copy(update={"passed": False, "too_alike": (1,)})}
    },
    # 31.2 of the phantoms and the contract's 0.2 are not reached.
    "0.20 dB are wanted": {"figures": {"a": figures(31.2), "b": figures(31.2)}},
}


@pytest.mark.parametrize("reason", list(FAILURES))
def test_what_is_not_known_to_pass_is_not_published(home: AggregatorHome, reason: str) -> None:
    run = run_of(home)
    measure(run, **FAILURES[reason])
    with pytest.raises(GateError, match=reason):
        publish(home, run, CONTRACT)
    assert version_of(home) == 0
    assert not all(
        one["passed"] for one in json.loads((run / "gates.json").read_text())["findings"]
    )


def test_a_run_that_nobody_judged_is_refused_whatever_its_table_says(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run)
    (run / "evaluation.json").unlink()
    with pytest.raises(GateError, match="have not judged these pairs"):
        publish(home, run, CONTRACT)


def test_a_better_table_from_elsewhere_does_not_outvote_the_hospitals(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run, figures={"a": figures(30.0), "b": figures(30.0)})
    boast = hospital_table(judgement(), CONTRACT, result=RESULT)
    (run / "utility.json").write_text(json.dumps(boast))
    with pytest.raises(GateError, match=r"evaluation.json: not published: the distilled set"):
        publish(home, run, CONTRACT)


def test_a_silent_site_is_left_out_where_the_contract_says_so(home: AggregatorHome) -> None:
    evaluation = CONTRACT.evaluation.model_copy(update={"silent": "skip"})
    contract = CONTRACT.model_copy(update={"evaluation": evaluation})
    run = run_of(home, contract)
    measure(run, contract, verdicts={"a": GOOD})
    assert not is_judged(run, contract)
    assert publish(home, run, contract)["version"] == 1
    measure(run, contract, verdicts={})
    with pytest.raises(GateError, match="no hospital gave a verdict"):
        publish(home, run, contract)


@pytest.mark.parametrize(("kind", "passes"), [("phantom", True), ("public", False)])
def test_a_copy_of_somebody_it_was_started_from_is_named(
    home: AggregatorHome, kind: Any, passes: bool
) -> None:
    contract = CONTRACT.model_copy(update={"prior": PriorSource(kind=kind)})
    run = run_of(home, contract)
    measure(run, contract, source_ssim=(0.99, 0.5))
    report = run_gates(run, contract, pairs_sha256=PAIRS, required=False, by="me")
    (found,) = [one for one in report.findings if one.gate == "copying"]
    assert found.passed is passes
    assert ("images 0 are copies" in found.reason) is not passes


def aggregator(home: AggregatorHome, *arguments: str, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        app, ["release", *arguments, "--home", str(home.root)], env=environment
    )
    return done.exit_code, done.output


def test_three_commands_publish_what_one_would(home: AggregatorHome, tmp_path: Path) -> None:
    run = run_of(home)
    measure(run)
    code, said = aggregator(home, "publish", "judged")
    assert (code, "run `aggregator release build` first" in said) == (1, True), said
    code, said = aggregator(home, "build", "judged", "--as", "ada")
    assert code == 0, said
    assert "built by ada, not published" in said
    assert version_of(home) == 0
    code, said = aggregator(home, "publish", CONTRACT.digest())
    assert (code, "gates were not asked" in said) == (4, True), said
    code, said = aggregator(home, "gate", run.name[:8])
    assert code == 0, said
    assert said.count("passed:") == 4
    code, said = aggregator(home, "publish", "judged", "--json")
    assert code == 0, said
    other = create_home(tmp_path / "other", {})
    straight = publish_run(
        home=other.root,
        contract=CONTRACT,
        pairs=run / "pairs.safetensors",
        result=RESULT,
        utility=json.loads((run / "utility.json").read_text()),
    )
    published = json.loads(said)
    assert (published["digest"], published["version"]) == (straight.digest, 1)
    assert json.loads(aggregator(home, "publish", "judged", "--json")[1])["version"] == 1


def test_what_was_gated_is_what_is_published(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run)
    for step in ("build", "gate"):
        assert aggregator(home, step, "judged")[0] == 0
    card = run / "release" / "README.md"
    kept = card.read_bytes()
    card.write_bytes(kept + b"\nCures everything.\n")
    code, said = aggregator(home, "publish", "judged")
    assert (code, "not those that were built" in said) == (1, True), said
    card.write_bytes(kept)
    # Measured again after the gates: they have not seen it.
    measure(run, figures={"a": figures(40.0), "b": figures(40.0)})
    code, said = aggregator(home, "publish", "judged")
    assert (code, "the run has changed since" in said) == (4, True), said
    assert aggregator(home, "build", "judged")[0] == 0
    code, said = aggregator(home, "publish", "judged")
    assert (code, "of something else than was built" in said) == (4, True), said
    assert version_of(home) == 0
    assert aggregator(home, "gate", "judged")[0] == 0
    assert aggregator(home, "publish", "judged")[0] == 0


def test_a_refusing_gate_ends_the_command_with_its_code(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run, verdicts={})
    assert aggregator(home, "build", "judged")[0] == 0
    code, said = aggregator(home, "gate", "judged")
    assert code == 4
    assert "veto       REFUSED: not published: a gave no verdict" in said
    code, said = aggregator(home, "publish", "judged")
    assert (code, "not published" in said) == (4, True)
    code, said = aggregator(home, "build", "nothing")
    assert (code, "no run is called nothing" in said) == (1, True)


def test_a_run_aborted_while_it_was_judged_is_not_published(home: AggregatorHome) -> None:
    run = run_of(home)
    measure(run)
    (run / STATE).write_text(RunState(state="aborted", since=0).model_dump_json())
    with pytest.raises(RunError, match="aborted"):
        publish(home, run, CONTRACT)
    assert version_of(home) == 0


def test_where_two_are_wanted_the_builder_cannot_publish(
    home: AggregatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = create_home(home.root, {"two_principals": True})
    run = run_of(strict)
    measure(run)
    database = Database(strict.catalog)
    tokens = {
        name: Tokens(database).create(name, scopes=[scope])[0]
        for name, scope in (
            *(("ada", "launch:run"), ("bob", "launch:run")),
            ("reader", "read:dataset"),
        )
    }
    database.close()
    code, said = aggregator(strict, "build", "judged", "--as", "ada")
    assert (code, "must show a token" in said) == (1, True), said
    code, said = aggregator(strict, "build", "judged", FEDSTILL_TOKEN=tokens["reader"])
    assert (code, "lacks the scope" in said) == (1, True), said
    file = tmp_path / "token"
    file.write_text(tokens["ada"] + "\n")
    for step in ("build", "gate"):
        assert aggregator(strict, step, "judged", "--token-file", str(file))[0] == 0
    code, said = aggregator(strict, "publish", "judged", "--token-file", str(file))
    assert (code, "ada built this release" in said) == (1, True), said
    code, said = aggregator(
        strict, "publish", "judged", "--as", "bob", FEDSTILL_TOKEN=tokens["ada"]
    )
    assert (code, "the token is ada's" in said) == (1, True), said
    assert version_of(strict) == 0
    code, said = aggregator(strict, "publish", "judged", FEDSTILL_TOKEN=tokens["bob"])
    assert code == 0, said
    assert version_of(strict) == 1
    # The one-command path stops before the last step.
    monkeypatch.setenv("FEDSTILL_TOKEN", tokens["ada"])
    left = publish(strict, run, CONTRACT)
    assert (left["by"], "version" in left) == ("ada", False)
