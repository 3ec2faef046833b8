"""One bad site of five: what no honest site could send is rejected, what one could costs little."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from aggregator.admission import Rejected, admit
from aggregator.attacks import byzantine
from aggregator.attacks.lies import PLAUSIBLE, STRUCTURAL, Vantage
from aggregator.distill.anchor import averaged
from aggregator.distill.phantom import person_slice
from aggregator.federation import federate
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.messages import (
    Message,
    ProbeHeader,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
    probe_batch,
)
from shared.networks import parameter_count
from shared.tasks.settings import CtDenoise

NETWORK = Residual(depth=3, width=8)
CONTRACT = RunContract(
    name="byzantine",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    min_patients=5,
    student=NETWORK,
    anchor_network=NETWORK,
    probes=Probes(requests=0),
    anchor=Anchor(rounds=2, local_steps=30, public_steps=60, crop_px=16, clip_norm=3.0),
)
NAMES = tuple(f"site-{number}" for number in range(1, 6))


class Sites:
    """Four sites with an answer of their own, and a fifth that lies."""

    def __init__(self, lie: str | None = None) -> None:
        self.lie = None if lie is None else {**STRUCTURAL, **PLAUSIBLE}[lie]
        self.earlier = b""

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        answers = {site: self.honest(payload, site) for site in sites}
        if self.lie is not None:
            own = decode(answers["site-5"])
            assert isinstance(own.header, SummaryHeader)
            vantage = Vantage(
                header=own.header,
                values=own.arrays["values"],
                others=tuple(decode(answers[name]).arrays["values"] for name in NAMES[:4]),
                earlier=self.earlier or answers["site-1"],
                longest=CONTRACT.anchor.clip_norm,
            )
            self.earlier = answers["site-5"]
            answers["site-5"] = self.lie(vantage)
        return answers

    def honest(self, payload: bytes, site: str) -> bytes:
        header = decode(payload).header
        assert isinstance(header, ProbeHeader)
        random = np.random.default_rng([header.round, NAMES.index(site)])
        values = 0.02 + random.normal(0, 0.01, (1, parameter_count(NETWORK)))
        said = SummaryHeader(
            contract_digest=header.contract_digest,
            request_digest=payload_digest(payload),
            round=header.round,
            kind=header.kind,
            site=site,
            patients_at_least=5,
            seconds=0.1,
        )
        return encode(Message(header=said, arrays={"values": values.astype(np.float32)}))


@pytest.mark.parametrize("lie", STRUCTURAL)
def test_what_no_honest_site_could_send_is_rejected_and_the_round_completes(
    tmp_path: Path, lie: str
) -> None:
    federate(contract=CONTRACT, sites=NAMES, exchange=Sites(lie), run=tmp_path)
    sites = json.loads((tmp_path / "result.json").read_text())["sites"]
    assert [sites[name]["releases"] for name in NAMES] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize("lie", PLAUSIBLE)
def test_what_one_could_send_is_taken(lie: str) -> None:
    """The positive control of the figures below: these lies do get through to the rules."""
    rows = np.zeros((1, parameter_count(NETWORK)), np.float32)
    request = probe_batch(
        contract=CONTRACT, round=1, kind="local-steps", network="anchor", weights=rows
    )
    assert isinstance(request.header, ProbeHeader)
    payload = encode(request)
    told = Sites(lie)(payload, 1, NAMES)["site-5"]
    about = {"request": request.header, "request_digest": payload_digest(payload), "weights": rows}
    admit(told, site="site-5", **about)  # type: ignore[arg-type]
    with pytest.raises(Rejected):
        admit(told, site="site-4", **about)  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", PLAUSIBLE)
def test_no_coordinate_leaves_what_the_honest_span(lie: str) -> None:
    rows = np.zeros((1, parameter_count(NETWORK)), np.float32)
    request = probe_batch(
        contract=CONTRACT, round=1, kind="local-steps", network="anchor", weights=rows
    )
    answers = Sites(lie)(encode(request), 1, NAMES)
    decoded = [decode(answer) for answer in answers.values()]
    values = [torch.from_numpy(one.arrays["values"]) for one in decoded]
    claims = [one.header.patients_at_least for one in decoded]  # type: ignore[union-attr]
    honest = torch.stack(values[:4])
    mean = averaged(values, patients=claims)
    assert bool((mean <= honest.amax(0)).all() and (mean >= honest.amin(0)).all())
    if lie in ("sign-flipped", "scaled", "random", "huge-claim"):
        plain = byzantine.plain_mean(values, patients=claims)
        assert not bool((plain <= honest.amax(0)).all() and (plain >= honest.amin(0)).all())


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """Sixteen virtual people in two hospitals, two slices each."""
    for number in range(16):
        folder = tmp_path / "data" / f"hospital-{'ab'[number % 2]}" / f"p{number}"
        folder.mkdir(parents=True)
        slices = [
            person_slice(
                anatomy="thorax",
                modality="CT",
                contrast="T1w",
                person=(900 + number, 0),
                share=share,
                size_px=64,
                textured=True,
            )
            for share in (0.35, 0.5)
        ]
        volume = SimpleITK.GetImageFromArray(np.stack(slices).round().astype(np.int16))
        volume.SetSpacing((4.5, 4.5, 5.0))
        SimpleITK.WriteImage(volume, str(folder / "ct.nii.gz"))
    return tmp_path / "data"


@pytest.mark.slow
def test_one_bad_site_of_five_costs_the_anchor_little(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("nan", "replay")
    monkeypatch.setattr(byzantine, "STRUCTURAL", {name: STRUCTURAL[name] for name in few})
    small = CONTRACT.model_copy(update={"min_patients": 2})  # ten people at five sites, six apart
    measured = byzantine.measure(contract=small, data=hospitals, split="choosing", quiet=True)
    json.dumps(measured)
    assert measured["structural_rejected"] == measured["structural"] == 2
    rows = {(row["lie"], row["rule"]): row for row in measured["rows"]}
    assert len(rows) == 2 + 2 + len(PLAUSIBLE) + len(byzantine.CONTROLS)
    assert all(row["loss_db"] <= 0.3 for row in measured["rows"] if row["rule"] == "robust")
    assert rows["sign-flipped", "robust"]["rejected"] == 0
    assert measured["most_lost_db"] <= 0.3
    assert measured["robust_rules_cost_db"] <= 0.1
    # The positive control: the same lies do harm where nothing is done against them.
    assert measured["most_lost_by_plain_mean_db"] > 0.3
    assert rows["nan", "robust"]["psnr_db"] == rows["replay", "robust"]["psnr_db"]
