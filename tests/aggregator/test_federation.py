import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aggregator.federation import BelowQuorum, FederationError, federate
from shared.architectures import Residual
from shared.contract import Anchor, PriorSource, Probes, RunContract
from shared.gradients import cohort_gradients, local_descent, patient_gradients, request_seed
from shared.messages import (
    Message,
    ProbeHeader,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
)
from shared.tasks.settings import CtDenoise

CPU = torch.device("cpu")
CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    min_patients=2,
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    probes=Probes(requests=1, depths=(3, 6), steps=3, clip_norm=10.0),
    anchor=Anchor(rounds=2, local_steps=3, public_steps=4, crop_px=16),
)
SITES = ("a", "b", "c")


class Hospitals:
    """Three honest sites that count how often they were asked."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        self.rounds.append(round)
        return {site: self.answer(site, payload) for site in sites}

    def answer(self, site: str, payload: bytes) -> bytes:
        message = decode(payload)
        header = message.header
        assert isinstance(header, ProbeHeader)
        weights = torch.from_numpy(message.arrays["weights"])
        generator = torch.Generator().manual_seed(ord(site))
        patients = [torch.rand(1, 1, 32, 32, generator=generator) for _ in range(2)]
        seed = request_seed(header.contract_digest, header.round, site)
        if header.kind == "local-steps":
            values = local_descent(
                contract=header.contract,
                network=header.network,
                weights=weights[0],
                patients=patients,
                seed=seed,
                device=CPU,
            )[None]
        else:
            fine = header.contract.granularity == "patient"
            values = (patient_gradients if fine else cohort_gradients)(
                contract=header.contract,
                network=header.network,
                weights=weights,
                patients=patients,
                seed=seed,
                device=CPU,
            )
        summary = SummaryHeader(
            contract_digest=header.contract_digest,
            request_digest=payload_digest(payload),
            round=header.round,
            kind=header.kind,
            site=site,
            patients_at_least=1 if values.ndim == 3 else 5,
            seconds=0.1,
            audit_head=f"{header.round:064x}",
        )
        return encode(Message(header=summary, arrays={"values": values.numpy()}))


def test_a_run_ends_with_pairs_a_result_and_a_journal(tmp_path: Path) -> None:
    hospitals = Hospitals()
    federate(contract=CONTRACT, sites=SITES, exchange=hospitals, run=tmp_path)
    pairs = load_file(tmp_path / "pairs.safetensors")
    assert pairs["lq"].shape == pairs["hq"].shape == (2, 1, 32, 32)
    result = json.loads((tmp_path / "result.json").read_text())
    assert hospitals.rounds == [1, 2, 3], "one message a round carries all probes of it"
    assert result["rounds"] == 3
    assert {site: entry["releases"] for site, entry in result["sites"].items()} == dict.fromkeys(
        SITES, 2 * 1 + 2
    )
    assert (result["requests"], result["releases"]) == (3, 2 * 1 + 2)
    # The last head that each site's audit log had.
    assert {site["audit_head"] for site in result["sites"].values()} == {f"{3:064x}"}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {event["phase"] for event in events} == {"public", "anchor", "probes", "distil", "done"}


@pytest.mark.parametrize(
    ("persona", "personas"), [("federation", ["all sites"]), ("cohort", ["a, c", "b"])]
)
def test_the_journal_says_how_far_each_persona_is_met(
    tmp_path: Path, persona: str, personas: list[str]
) -> None:
    contract = RunContract.model_validate(CONTRACT.model_dump() | {"spg": {"persona": persona}})
    federate(contract=contract, sites=SITES, exchange=Hospitals(), run=tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    anchor, _, probes = [event["ended"] for event in events if "ended" in event]
    assert (anchor["cosine"], anchor["personas"]) == (None, None)
    assert probes["personas"] == personas
    assert len(probes["cosine"]) == len(personas)
    assert all(-1 <= cosine <= 1 for cosine in probes["cosine"])


@pytest.mark.parametrize("persona", ["federation", "cohort", "patient"])
def test_answers_by_patient_serve_every_persona_and_each_vector_counts(
    tmp_path: Path, persona: str
) -> None:
    contract = RunContract.model_validate(
        CONTRACT.model_dump() | {"granularity": "patient", "spg": {"persona": persona}}
    )
    hospitals = Hospitals()
    federate(contract=contract, sites=SITES, exchange=hospitals, run=tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    # Two rounds of one descent, then two probes of two patients each.
    assert (result["requests"], result["releases"]) == (3, 2 + 2 * 2)
    state = load_file(tmp_path / "checkpoint.safetensors")
    assert len(state["bank.targets.0"]) == {"federation": 1, "cohort": 2, "patient": 2}[persona]


def test_a_run_of_personas_killed_in_its_probes_ends_the_same(tmp_path: Path) -> None:
    contract = RunContract.model_validate(
        CONTRACT.model_dump()
        | {
            "spg": {"persona": "cohort"},
            "anchor": CONTRACT.anchor.model_dump() | {"rounds": 1},
            "probes": CONTRACT.probes.model_dump()
            | {"requests": 3, "networks": ("student", "anchor")},
            "anchor_network": {"kind": "residual", "depth": 3, "width": 4},
        }
    )
    federate(contract=contract, sites=SITES, exchange=Hospitals(), run=tmp_path / "straight")

    class Killed(Hospitals):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            if round == 4:
                raise KeyboardInterrupt
            return super().__call__(payload, round, sites)

    with pytest.raises(KeyboardInterrupt):
        federate(contract=contract, sites=SITES, exchange=Killed(), run=tmp_path / "killed")
    federate(contract=contract, sites=SITES, exchange=Hospitals(), run=tmp_path / "killed")
    straight, killed = (
        (tmp_path / name / "pairs.safetensors").read_bytes() for name in ("straight", "killed")
    )
    assert straight == killed


def test_a_finished_run_asks_nobody_again(tmp_path: Path) -> None:
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path)
    again = Hospitals()
    federate(contract=CONTRACT, sites=SITES, exchange=again, run=tmp_path)
    assert again.rounds == []


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_run_killed_in_any_round_goes_on_and_ends_the_same(
    tmp_path: Path, killed_in: int
) -> None:
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "straight")

    class Killed(Hospitals):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            if round == killed_in:
                raise KeyboardInterrupt
            return super().__call__(payload, round, sites)

    with pytest.raises(KeyboardInterrupt):
        federate(contract=CONTRACT, sites=SITES, exchange=Killed(), run=tmp_path / "killed")
    later = Hospitals()
    federate(contract=CONTRACT, sites=SITES, exchange=later, run=tmp_path / "killed")
    assert later.rounds == list(range(killed_in, 4)), "no round is asked twice"
    straight, killed = (
        (tmp_path / name / "pairs.safetensors").read_bytes() for name in ("straight", "killed")
    )
    assert straight == killed


def test_the_run_goes_on_without_a_minority_that_lies(tmp_path: Path) -> None:
    class OneLies(Hospitals):
        def answer(self, site: str, payload: bytes) -> bytes:
            return b"nonsense" if site == "b" else super().answer(site, payload)

    federate(contract=CONTRACT, sites=SITES, exchange=OneLies(), run=tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["sites"]["b"]["releases"] == 0
    assert "b: not a message of ours" in (tmp_path / "events.jsonl").read_text()


def test_too_few_sites_stop_the_run_and_name_the_reason(tmp_path: Path) -> None:
    class Alone(Hospitals):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            return {"a": self.answer("a", payload)}

    with pytest.raises(FederationError, match=r"1 of 3 sites.*b: no answer; c: no answer"):
        federate(contract=CONTRACT, sites=SITES, exchange=Alone(), run=tmp_path)


def test_a_folder_of_another_contract_is_left_alone(tmp_path: Path) -> None:
    class Killed(Hospitals):
        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(contract=CONTRACT, sites=SITES, exchange=Killed(), run=tmp_path)
    other = CONTRACT.model_copy(update={"seed": 1})
    with pytest.raises(FederationError, match="another contract"):
        federate(contract=other, sites=SITES, exchange=Hospitals(), run=tmp_path)


def test_a_damaged_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(FederationError, match="cannot be read"):
        federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path)


def test_a_public_prior_without_a_folder_is_refused(tmp_path: Path) -> None:
    contract = CONTRACT.model_copy(
        update={"prior": PriorSource(kind="public", license="CC-BY-4.0")}
    )
    with pytest.raises(FederationError, match="public images"):
        federate(contract=contract, sites=SITES, exchange=Hospitals(), run=tmp_path)


def test_a_run_below_quorum_names_the_silent_and_goes_on_to_the_same_pairs(tmp_path: Path) -> None:
    class Silent(Hospitals):
        gone: tuple[str, ...] = ()

        def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
            answers = super().__call__(payload, round, sites)
            return {site: one for site, one in answers.items() if site not in self.gone}

    whole = tmp_path / "whole"
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=whole)
    hospitals, run = Silent(), tmp_path / "run"
    hospitals.gone = ("b",)
    with pytest.raises(BelowQuorum, match=r"2 of 3 sites.* 3 are needed .b: no answer") as caught:
        federate(contract=CONTRACT, sites=SITES, exchange=hospitals, run=run, quorum=0.8)
    assert caught.value.missing == ("b",)
    assert not (run / "pairs.safetensors").exists(), "nothing degraded is left to publish"
    hospitals.gone = ()
    federate(contract=CONTRACT, sites=SITES, exchange=hospitals, run=run, quorum=0.8)
    assert (run / "pairs.safetensors").read_bytes() == (whole / "pairs.safetensors").read_bytes()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    ended = [event["ended"] for event in events if "ended" in event]
    assert len(ended) == CONTRACT.rounds
    assert all(one["bytes_up"] > 0 < one["bytes_down"] and one["sites"] == 3 for one in ended)
    assert ended[-1]["loss"] > 0 and ended[0]["loss"] is None
