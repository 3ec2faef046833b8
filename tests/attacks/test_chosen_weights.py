"""Requests that a dishonest aggregator would send: none is answered, and what they would show."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import Tensor
from torch.nn import functional

from aggregator.attacks.imprint import NETWORK, imprint, imprinted, likeness
from aggregator.distill.phantom import person_slice
from shared.contract import Anchor, Probes, RunContract
from shared.families import layers
from shared.gradients import patient_gradients
from shared.messages import Message, RefusalCode, decode, encode, probe_batch
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent import incidents
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.guards import weights_violation
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.outbox import Outbox
from site_agent.settings import SiteSettings
from site_agent.solitary import Tally
from site_agent.worker import answer

CPU = torch.device("cpu")
SIZE, PATIENTS = 48, 6
QUIET = CtDenoise(size_px=SIZE, angles=48, bins=72, photons=1e7, electronic_sigma=0.0)


def contract_of(*depths: int) -> RunContract:
    return RunContract(
        name="chosen",
        task=QUIET,
        student=NETWORK,
        anchor_network=NETWORK,
        probes=Probes(requests=4, draws=1, depths=depths, clip_norm=1e6),
        anchor=Anchor(crop_px=16),
    )


CONTRACT = contract_of(30)


def hounsfield(person: int, share: float) -> np.ndarray:
    return person_slice(
        anatomy="thorax",
        modality="CT",
        contrast="T1w",
        person=(person, 0),
        share=share,
        size_px=SIZE,
        textured=True,
    )


def images(person: int) -> Tensor:
    """Two slices of a person in window units, (2, 1, S, S)."""
    slices = np.stack([hounsfield(person, share) for share in (0.35, 0.5)])[:, None]
    return torch.from_numpy((slices.clip(-1000, 1000) + 1000) / 2000).float()


@pytest.fixture(scope="module")
def patients() -> list[Tensor]:
    return [images(100 + number) for number in range(PATIENTS)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[bytes], bytes]]:
    """``ask(payload)`` of a site with the six patients; its outbox and log as attributes."""
    build_cohort(
        tmp_path / "cohort",
        (
            PatientSlices(
                f"{number:032x}",
                [
                    Slice(hounsfield(100 + number, share).round().astype(np.int16), (1, 1), 2.0)
                    for share in (0.35, 0.5)
                ],
            )
            for number in range(PATIENTS)
        ),
        modality="CT",
    )
    settings = SiteSettings(
        home=tmp_path, name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )
    cohort, outbox = open_cohort(tmp_path / "cohort"), Outbox(tmp_path / "outbox")

    def ask(payload: bytes) -> bytes:
        return answer(payload, settings=settings, cohort=cohort, outbox=outbox)

    handlers = list(incidents.log.handlers)
    incidents.log_to(tmp_path / "logs")
    ask.outbox, ask.log = outbox, tmp_path / "logs" / "worker.log"  # type: ignore[attr-defined]
    yield ask
    for handler in set(incidents.log.handlers) - set(handlers):
        incidents.log.removeHandler(handler)
        handler.close()


def request(weights: Tensor, *, contract: RunContract = CONTRACT, round: int = 1) -> bytes:
    return encode(
        probe_batch(
            contract=contract,
            round=round,
            kind="gradients",
            network="student",
            weights=weights[None].numpy(),
        )
    )


def begun(contract: RunContract = CONTRACT) -> Tensor:
    return start(contract, kind="gradients", network="student", round=1)


LADDER = torch.linspace(0.6, 0.7, 16)
"""Brightnesses that few places of a thorax have: an attacker knows them from public images."""


COPY = 0.13
"""By how much more a copy is like its patient than like anybody else."""


def by_patient(weights: Tensor, patients: list[Tensor]) -> Tensor:
    """Each patient's gradient, (P, D), unclipped."""
    return patient_gradients(
        contract=CONTRACT,
        network="student",
        weights=weights[None],
        patients=patients,
        seed=7,
        device=CPU,
    )[:, 0]


def unguarded(weights: Tensor, patients: list[Tensor]) -> Tensor:
    """What a site would answer without any guard: (D,)."""
    return by_patient(weights, patients).mean(dim=0)


def shared(weights: Tensor, patients: list[Tensor]) -> Tensor:
    """The same, with what one patient alone moves left out."""
    tally = Tally(NETWORK)
    for own in by_patient(weights, patients):
        tally.add(own[None])
    return tally.mean()[0]


def responses(weights: Tensor, patients: list[Tensor]) -> Tensor:
    """Each patient's largest input to each unit of the first layer, without its bias: (P, 16)."""
    kernel = weights[: 16 * 9].view(16, 1, 3, 3)
    largest = [functional.conv2d(one, kernel, padding=1).amax(dim=(0, 2, 3)) for one in patients]
    return torch.stack(largest)


def one_patients_filter(weights: Tensor, patients: list[Tensor]) -> tuple[Tensor, int, int]:
    """``weights`` with a unit that is silent for all but one patient; which unit, and who."""
    ordered = responses(weights, patients).sort(dim=0)
    largest, next_one = ordered.values[-1], ordered.values[-2]
    unit = int((largest - next_one).argmax())
    changed = weights.clone()
    changed[16 * 9 + unit] = -(largest[unit] + next_one[unit]) / 2
    return changed, unit, int(ordered.indices[-1, unit])


def fishing(weights: Tensor) -> Tensor:
    """Honest ones but for the last hidden layer, which next to nothing passes."""
    before = sum(layer.parameters for layer in layers(NETWORK)[:3])
    changed = weights.clone()
    changed[before + 16 * 16 * 9 : before + 16 * 16 * 9 + 16] = -1.0
    return changed


def zeroed(weights: Tensor) -> Tensor:
    """One channel left of each hidden layer: the gradient is that of a single path."""
    changed, offset = weights.clone(), 0
    for layer in layers(NETWORK)[:-1]:
        each = layer.inputs * 9
        changed[offset + each : offset + layer.weights] = 0
        offset += layer.parameters
    return changed


def with_another_tensor(payload: bytes, name: str) -> bytes:
    message = decode(payload)
    arrays = {**message.arrays, name: np.zeros((1, 3), np.float32)}
    if name == "basis":
        return encode(Message(header=message.header, arrays=arrays))
    text = message.header.model_dump_json()
    return save(arrays, metadata={"fedstill": text})


def malicious(patients: list[Tensor]) -> dict[str, tuple[bytes, RefusalCode]]:
    bad, honest = RefusalCode.BAD_WEIGHTS, begun()
    poisoned = honest.clone()
    poisoned[17] = torch.nan
    return {
        "imprint": (request(imprint(LADDER)), bad),
        "fishing": (request(fishing(honest)), bad),
        "zeroed channels": (request(zeroed(honest)), bad),
        "scaled by 1e6": (request(1e6 * honest), bad),
        "NaN": (request(poisoned), bad),
        "an extra tensor": (
            with_another_tensor(request(honest), "basis"),
            RefusalCode.BAD_REDUCTION,
        ),
        "a tensor of no name of ours": (
            with_another_tensor(request(honest), "hook"),
            RefusalCode.MALFORMED,
        ),
        "one patient's filter": (request(one_patients_filter(honest, patients)[0]), bad),
    }


def incident_lines(site: Callable[[bytes], bytes]) -> list[str]:
    log: Path = site.log  # type: ignore[attr-defined]
    return [line for line in log.read_text().splitlines() if "incident" in line]


def test_malicious_requests_are_refused_leave_nothing_and_are_written_down_once(
    site: Callable[[bytes], bytes], patients: list[Tensor]
) -> None:
    for number, (name, (payload, code)) in enumerate(malicious(patients).items(), start=1):
        reply = decode(site(payload)).header
        assert reply.type == "refusal", name
        assert reply.code is code, name
        lines = incident_lines(site)
        assert len(lines) == number, name
        assert reply.incident in lines[-1]
    assert not list(site.outbox.folder.rglob("*"))  # type: ignore[attr-defined]
    told = AuditLog(site.outbox.folder.parent / "audit")  # type: ignore[attr-defined]
    assert [line.event for line in told.lines()] == ["refused"] * number
    assert not told.verify().faults


def test_a_second_request_under_one_round_is_refused(site: Callable[[bytes], bytes]) -> None:
    honest = begun()
    first = site(request(honest))
    assert decode(first).header.type == "summary"
    kept = {path: path.read_bytes() for path in site.outbox.folder.rglob("*.*")}  # type: ignore[attr-defined]
    nearby = honest + 1e-3 * torch.randn(len(honest), generator=torch.Generator().manual_seed(0))
    reply = decode(site(request(nearby))).header
    assert reply.type == "refusal"
    assert reply.code is RefusalCode.ROUND_REUSED
    assert len(incident_lines(site)) == 1
    assert kept == {path: path.read_bytes() for path in site.outbox.folder.rglob("*.*")}  # type: ignore[attr-defined]
    assert site(request(honest)) == first


# --- that they do show it ---------------------------------------------------------------------


def test_without_a_guard_the_imprint_shows_patches_of_single_patients(
    patients: list[Tensor],
) -> None:
    found = likeness(imprinted(unguarded(imprint(LADDER), patients)), patients)
    # A copy of a patch of one patient, like which no other patient has any.
    assert any(best > 0.99 and best - other > COPY for best, other in found)
    # At honest weights the same look finds nothing.
    found = likeness(imprinted(unguarded(begun(), patients)), patients)
    assert all(best - other < COPY for best, other in found)
    # Nor where what one patient alone moves stays at home.
    found = likeness(imprinted(shared(imprint(LADDER), patients)), patients)
    assert all(best - other < COPY for best, other in found)


@pytest.mark.parametrize("depth", [30, 400, 5_000])
def test_an_imprint_drawn_back_to_where_the_guard_passes_it_shows_nothing(
    patients: list[Tensor], depth: int
) -> None:
    contract = contract_of(depth)
    honest, wanted, offset = begun(contract), imprint(LADDER), 0

    def passes(weights: Tensor) -> bool:
        return (
            weights_violation(
                weights[None].numpy(),
                contract=contract,
                kind="gradients",
                network="student",
                round=1,
            )
            is None
        )

    drawn = honest.clone()
    for layer in layers(NETWORK):
        place = slice(offset, offset + layer.parameters)
        offset += layer.parameters
        shares = np.linspace(1, 0, 41)
        for share in shares:  # the farthest that passes
            drawn[place] = honest[place] + share * (wanted[place] - honest[place])
            if passes(drawn):
                break
    assert passes(drawn)
    assert not torch.equal(drawn, honest)
    found = likeness(imprinted(unguarded(drawn, patients)), patients)
    assert all(best - other < COPY for best, other in found)


def test_without_a_guard_one_patients_filter_shows_that_patients_gradient(
    patients: list[Tensor],
) -> None:
    weights, unit, who = one_patients_filter(begun(), patients)
    taps = slice(9 * unit, 9 * unit + 9)
    mean = unguarded(weights, patients)[taps]
    own = by_patient(weights, patients)[:, taps]
    assert (mean - own[who] / PATIENTS).norm() < 1e-3 * mean.norm()
    # Trainings lead there now and then. What only one patient moves stays at home all the same.
    assert shared(weights, patients)[taps].norm() == 0
    assert shared(begun(), patients)[taps].norm() > 0
