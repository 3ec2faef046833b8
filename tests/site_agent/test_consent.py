from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from shared.architectures import Residual
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.messages import (
    DryRunQueryHeader,
    Message,
    RefusalCode,
    decode,
    encode,
    patient_bucket,
)
from shared.tasks.settings import CtDenoise, MrDenoise
from site_agent import worker
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.consent import fit_cohort
from site_agent.incidents import RefusedError
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.ledger import Ledger
from site_agent.outbox import Outbox
from site_agent.policy import Policy
from site_agent.settings import SiteSettings

TINY = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=32, angles=30, bins=48),
    student=TINY,
    anchor_network=TINY,
    anchor=Anchor(rounds=2, local_steps=3, batch=2, crop_px=16, descent="patient"),
    probes=Probes(requests=2, draws=1, depths=(0, 30)),
)
NOISED = CONTRACT.model_copy(update={"privacy": Privacy(epsilon=3.0, patients=5)})


@pytest.fixture
def ask(tmp_path):
    """``ask(contract, **policy)``: what a site with six patients says to a dry run."""
    pixels = np.zeros((40, 40), np.int16)
    patients = [PatientSlices(f"{n:032x}", [Slice(pixels, (1, 1), 2.0)]) for n in range(6)]
    build_cohort(tmp_path / "cohort", patients, modality="CT")
    settings = SiteSettings(
        home=tmp_path, name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )

    def asked(contract, *, indexed=True, **policy):
        query = DryRunQueryHeader(contract=contract, contract_digest=contract.digest())
        reply = worker.answer(
            encode(Message(header=query)),
            settings=settings.model_copy(update={"policy": Policy(**policy)}),
            cohort=open_cohort(tmp_path / "cohort") if indexed else None,
            outbox=Outbox(settings.outbox_path),
        )
        return decode(reply).header

    asked.settings = settings
    return asked


@pytest.mark.parametrize(
    ("contract", "policy", "code"),
    [
        (CONTRACT, {}, None),
        (NOISED, {"epsilon_budget": 3.0}, None),
        (CONTRACT, {"tasks": ()}, RefusalCode.POLICY),
        (CONTRACT, {"max_probes": 1}, RefusalCode.POLICY),
        (CONTRACT, {"max_epsilon": 1.0}, RefusalCode.POLICY),
        (NOISED, {"epsilon_budget": 2.9}, RefusalCode.BUDGET_SPENT),
        # Two descents, and gradients at two probes of two requests: the contract as a whole.
        (CONTRACT, {"max_gradients": 6}, None),
        (CONTRACT, {"max_gradients": 5}, RefusalCode.BUDGET_SPENT),
        (CONTRACT.model_copy(update={"min_patients": 7}), {}, RefusalCode.TOO_FEW_PATIENTS),
        (CONTRACT.model_copy(update={"task": MrDenoise()}), {}, RefusalCode.WRONG_MODALITY),
        (CONTRACT.model_copy(update={"granularity": "federation"}), {}, RefusalCode.BAD_MEMBERS),
    ],
)
def test_a_dry_run_says_what_the_run_would_meet_and_costs_nothing(ask, contract, policy, code):
    said = ask(contract, **policy)
    assert (said.type, said.site, said.code) == ("dry-run", "site-a", code)
    assert (said.incident is None) == (code is None)
    assert said.patients_at_least == 5, "six, in its bucket"
    assert not ask.settings.outbox_path.exists(), "nothing is answered"
    assert Ledger(ask.settings.ledger_path).charges() == (), "nor charged"
    (line,) = AuditLog(ask.settings.audit_path).lines()
    assert line.event == "dry-run"
    assert line.fields == {
        "contract": contract.digest(),
        "code": code,
        "incident": said.incident,
    }


def test_a_site_without_images_says_so(ask):
    said = ask(CONTRACT, indexed=False)
    assert (said.code, said.patients_at_least) == (RefusalCode.NO_COHORT, 0)


def test_a_dry_run_reads_no_image(ask, monkeypatch):
    from site_agent.cohort import Cohort

    monkeypatch.setattr(Cohort, "images", None)
    assert ask(CONTRACT).code is None


def test_minima_one_after_the_other_do_not_count_the_patients(ask):
    def minima_met(patients):
        met = []
        for least in range(5, 60):
            contract = CONTRACT.model_copy(update={"min_patients": least})
            cohort = SimpleNamespace(patients=patients, index=SimpleNamespace(modality="CT"))
            with suppress(RefusedError):
                fit_cohort(contract, cohort, ask.settings)
                met.append(least)
        return met

    by_bucket = {}
    for patients in range(5, 60):
        by_bucket.setdefault(patient_bucket(patients), []).append(minima_met(patients))
    assert sorted(by_bucket) == [5, 10, 20, 50]
    for bucket, told in by_bucket.items():
        assert all(one == told[0] for one in told), "all that share a bucket say the same"
        # No contract is taken that has too few, and none refused that asks for a bucket.
        assert told[0] == list(range(5, bucket + 1))
