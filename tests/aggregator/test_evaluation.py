"""The hospitals' table: the right figures of the right patients, whoever answers and whenever."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.numpy import load_file, save_file

from aggregator.evaluation import judge_run
from aggregator.federation import federate
from aggregator.gates import run_gates
from aggregator.hospital_table import is_judged, read_judgement
from aggregator.runs import NETWORKS
from aggregator.simulate import PSEUDONYM_KEY, Hospital, in_process, open_hospitals
from aggregator.utility import GateError
from shared.architectures import Residual
from shared.contract import Anchor, Evaluation, Probes, RunContract
from shared.gradients import request_seed
from shared.images import psnr_db, ssim
from shared.judging import EvaluationHeader
from shared.messages import Message, decode, encode, patient_bucket, refusal
from shared.networks import apply_network
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise
from site_agent.kept_back import divided

CONTRACT = RunContract(
    name="judged",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    min_patients=2,
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    probes=Probes(requests=1, depths=(3, 6), steps=5),
    anchor=Anchor(rounds=1, local_steps=5, public_steps=5, crop_px=16),
    evaluation=Evaluation(sites=True, veto=True, steps=30, seeds=2),
)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Hospital]:
    """Two, of smooth random patients: one keeps back two, the other some more."""
    place = tmp_path_factory.mktemp("hospitals")
    for name, count in (("a", 6), ("b", 30)):
        for number in range(count):
            folder = place / "data" / f"hospital-{name}" / f"p{number}"
            folder.mkdir(parents=True)
            generator = torch.Generator().manual_seed(1000 * ord(name) + number)
            coarse = torch.rand(2, 1, 5, 5, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
            voxels = (smooth[:, 0].clamp(0, 1) * 1400 - 900).round().numpy().astype(np.int16)
            volume = SimpleITK.GetImageFromArray(voxels)
            volume.SetSpacing((2.0, 2.0, 3.0))
            SimpleITK.WriteImage(volume, str(folder / "ct.nii.gz"))
    opened, _ = open_hospitals(
        place / "data", contract=CONTRACT, homes=place / "homes", split=None, sequence=None
    )
    return opened


class Federation:
    """The hospitals in this process, some of whom may be silent or lie; counts the questions."""

    def __init__(self, hospitals: Sequence[Hospital], run: Path) -> None:
        self._ask = in_process(hospitals, modality="CT", outboxes=run / "outbox")
        self.silent: set[str] = set()
        self.finer = False
        self.asked: list[tuple[str, str]] = []

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        self.asked += [(decode(payload).header.type, site) for site in sites]
        answers = dict(self._ask(payload, round, [one for one in sites if one not in self.silent]))
        for site, answer in answers.items():
            header = decode(answer).header
            if self.finer and isinstance(header, EvaluationHeader):
                told = tuple(one + 0.01 for one in header.psnr_db)
                forged = header.model_copy(update={"psnr_db": told})
                answers[site] = encode(Message(header=forged))
        return answers


def finished(hospitals: Sequence[Hospital], run: Path) -> Federation:
    ask = Federation(hospitals, run)
    names = [one.name for one in hospitals]
    federate(contract=CONTRACT, sites=names, exchange=ask, run=run)
    ask.asked.clear()
    return ask


def judged(ask: Federation, run: Path) -> None:
    judge_run(
        contract=CONTRACT, sites=["hospital-a", "hospital-b"], exchange=ask, run=run, public=None
    )


def kept_back(hospital: Hospital) -> list[torch.Tensor]:
    """The patients a hospital keeps back, window units, read from its cohort by hand."""
    used, kept = divided(hospital.cohort, key=PSEUDONYM_KEY, share=0.2)
    assert used is not None
    assert kept is not None
    names = hospital.cohort.index.patients
    images = hospital.training_images(CONTRACT.task)
    assert sorted([*used.index.patients, *kept.index.patients]) == names
    return [torch.from_numpy(images[names.index(name)]) for name in kept.index.patients]


def by_hand(hospital: Hospital, row: np.ndarray | None) -> np.ndarray:
    """Mean PSNR and SSIM over the patients kept back, of a student or of the input."""
    found = []
    for place, slices in enumerate(kept_back(hospital)):
        seed = request_seed(CONTRACT.digest(), "evaluate", hospital.name) + place
        lq = degrade(CONTRACT.task, slices, seed=seed)
        if row is not None:
            lq = apply_network(CONTRACT.student, torch.from_numpy(row), lq)
        pairs = list(zip(lq[:, 0].numpy(), slices[:, 0].numpy(), strict=True))
        found.append([np.mean([of(a, b) for a, b in pairs]) for of in (psnr_db, ssim)])
    return np.mean(found, axis=0)


def test_a_row_is_what_the_hospitals_patients_give(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    ask = finished(hospitals, tmp_path)
    judged(ask, tmp_path)
    table = json.loads((tmp_path / "utility.json").read_text())
    assert list(table["rows"]) == [
        *("input", "prior", "prior_textured", "public_anchored", "distilled", "anchor")
    ]
    weights = load_file(tmp_path / NETWORKS)["weights"]
    shares = np.array([patient_bucket(len(kept_back(one))) for one in hospitals], float)
    assert len(set(shares)) == 2, "hospitals that weigh differently"
    shares /= shares.sum()
    rows = {"input": [None], "prior": weights[:2], "distilled": weights[6:8]}
    for name, networks in rows.items():
        runs = [
            sum(w * by_hand(h, one) for w, h in zip(shares, hospitals, strict=True))
            for one in networks
        ]
        expected = np.mean(runs, axis=0)
        row = table["rows"][name]
        assert row["psnr"]["mean"] == pytest.approx(expected[0], abs=0.051)
        assert row["ssim"]["mean"] == pytest.approx(expected[1], abs=0.0026)
        assert row["psnr"]["n"] == len(networks)
        assert row["measured_at"] == "hospitals"
        assert "patients" not in row
    assert table["gain_over_best_null"] == pytest.approx(
        table["rows"]["distilled"]["psnr"]["mean"]
        - max(table["rows"][one]["psnr"]["mean"] for one in list(table["rows"])[:4])
    )
    assert is_judged(tmp_path, CONTRACT)
    judgement = read_judgement(tmp_path)
    assert judgement is not None
    assert set(judgement.verdicts) == {"hospital-a", "hospital-b"}
    assert [kind for kind, _ in ask.asked] == ["evaluate"] * 2 + ["veto-query"] * 2
    events = [json.loads(one) for one in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["phase"] == "done"


def test_who_was_silent_is_asked_again_and_nobody_else(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    ask = finished(hospitals, tmp_path)
    ask.silent = {"hospital-b"}
    judged(ask, tmp_path)
    assert not is_judged(tmp_path, CONTRACT)
    kept = read_judgement(tmp_path)
    assert kept is not None
    assert kept.problems == {"hospital-b": "evaluate: no answer, veto-query: no answer"}
    sent = (tmp_path / NETWORKS).read_bytes()
    ask.silent, ask.asked = set(), []
    judged(ask, tmp_path)
    assert ask.asked == [("evaluate", "hospital-b"), ("veto-query", "hospital-b")]
    assert is_judged(tmp_path, CONTRACT)
    assert (tmp_path / NETWORKS).read_bytes() == sent
    ask.asked = []
    judged(ask, tmp_path)
    assert ask.asked == []
    # The whole again, from nothing, at sites that have answered: the same question, the same word.
    before = read_judgement(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    (tmp_path / NETWORKS).unlink()
    judged(ask, tmp_path)
    assert read_judgement(tmp_path) == before


def test_finer_figures_than_are_told_are_not_taken(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    ask = finished(hospitals, tmp_path)
    ask.finer = True
    judged(ask, tmp_path)
    kept = read_judgement(tmp_path)
    assert kept is not None
    assert not kept.figures
    assert "finer" in kept.problems["hospital-a"]
    assert not (tmp_path / "utility.json").exists()


def test_a_patient_among_the_pairs_is_objected_to_and_never_published(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    ask = finished(hospitals, tmp_path)
    pairs = load_file(tmp_path / "pairs.safetensors")
    judged(ask, tmp_path)
    honest = read_judgement(tmp_path)
    assert honest is not None
    assert all(not verdict.too_alike for verdict in honest.verdicts.values())
    # The same run, had its second image become a slice of a patient whose gradients were used.
    home = tmp_path / "copied"
    ask = finished(hospitals, home)
    used, _ = divided(hospitals[0].cohort, key=PSEUDONYM_KEY, share=0.2)
    assert used is not None
    (first, *_) = used.images(size_px=32, low=-1000, high=1000)
    save_file({**pairs, "hq": np.stack([pairs["hq"][0], first[0]])}, home / "pairs.safetensors")
    judged(ask, home)
    kept = read_judgement(home)
    assert kept is not None
    assert kept.verdicts["hospital-a"].too_alike == (1,)
    report = run_gates(
        home, CONTRACT, pairs_sha256=kept.pairs_sha256, required=False, by="somebody"
    )
    (veto,) = [one for one in report.findings if one.gate == "veto"]
    assert not veto.passed
    assert "hospital-a objects to images 1 (" in veto.reason
    with pytest.raises(GateError):
        report.refuse_failed()


def test_a_table_measured_elsewhere_stays(hospitals: list[Hospital], tmp_path: Path) -> None:
    ask = finished(hospitals, tmp_path)
    (tmp_path / "utility.json").write_text('{"rows": {}}')
    judged(ask, tmp_path)
    assert json.loads((tmp_path / "utility.json").read_text()) == {"rows": {}}
    assert (tmp_path / "evaluation.json").exists()


def test_a_contract_that_says_nothing_asks_nothing(tmp_path: Path) -> None:
    plain = CONTRACT.model_copy(update={"evaluation": Evaluation()})

    def nobody(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        raise AssertionError

    judge_run(contract=plain, sites=["a"], exchange=nobody, run=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert is_judged(tmp_path, plain)


def test_a_refusal_is_named_with_its_code(hospitals: list[Hospital], tmp_path: Path) -> None:
    ask = finished(hospitals, tmp_path)

    def refusing(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        said = {"code": "policy", "incident": "0" * 12}
        return {site: encode(refusal(site=site, **said)) for site in sites}  # type: ignore[arg-type]

    judge_run(contract=CONTRACT, sites=["hospital-a"], exchange=refusing, run=tmp_path, public=None)
    kept = read_judgement(tmp_path)
    assert kept is not None
    assert "refused: policy (incident 000000000000)" in kept.problems["hospital-a"]
    assert ask.asked == []
