from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from shared.accounting import Spent, epsilon_of
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
from shared.standing import Standing, rounded_down, rounded_epsilon
from shared.tasks.settings import CtDenoise, MrDenoise
from site_agent import pace, standing, worker
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.consent import fit_cohort
from site_agent.incidents import RefusedError
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.ledger import Charge, Ledger
from site_agent.outbox import Outbox
from site_agent.pace import Pace, Timings
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

    def asked(contract, *, indexed=True, standing=False, idle=True, **policy):
        query = DryRunQueryHeader(
            contract=contract, contract_digest=contract.digest(), standing=standing
        )
        reply = worker.answer(
            encode(Message(header=query)),
            settings=settings.model_copy(update={"policy": Policy(**policy)}),
            cohort=open_cohort(tmp_path / "cohort") if indexed else None,
            outbox=Outbox(settings.outbox_path),
            idle=idle,
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
    told = ask(CONTRACT, standing=True)
    assert (told.code, told.standing.seconds > 0) == (None, True), "also where it times itself"
    assert not ask.settings.outbox_path.exists()
    assert not ask.settings.ledger_path.exists(), "and nothing is charged"


def test_a_question_of_an_earlier_version_gets_the_answer_it_knows(ask):
    said = ask(CONTRACT)
    assert said.standing is None
    assert b"standing" not in encode(Message(header=said))


def charged(settings, *, gradients, noise_multiplier=None):
    charge = Charge(
        contract="a" * 64,
        name="before",
        round=1 + len(Ledger(settings.ledger_path).charges()),
        attempt=1,
        gradients=gradients,
        noise_multiplier=noise_multiplier,
        sampling=1.0,
        charged=datetime(2026, 1, 1, tzinfo=UTC),
    )
    Ledger(settings.ledger_path).settle(charge, allowed=lambda _: None)


def test_the_standing_is_version_policy_and_what_is_left(ask):
    told = ask(CONTRACT, standing=True).standing
    assert told.version == worker.package_version()
    assert told.policy == Policy().digest() != Policy(max_rounds=3).digest()
    assert told.budget.model_dump() == {
        "gradients": None,
        "requests_today": Policy().max_requests_a_day,
        "epsilon": None,
    }
    charged(ask.settings, gradients=13)
    assert ask(CONTRACT, standing=True, max_gradients=1000).standing.budget.gradients == 500
    # The control: 987 are left, of which the verdict knows.
    assert ask(CONTRACT, standing=True, max_gradients=13 + 5).code is RefusalCode.BUDGET_SPENT
    charged(ask.settings, gradients=1, noise_multiplier=10.0)
    spent = epsilon_of([Spent(10.0, 1.0, 1)], delta=1e-5)
    (left,) = {ask(NOISED, standing=True, epsilon_budget=9.0).standing.budget.epsilon}
    assert 0 <= 9.0 - spent - left < 0.01
    limited = {"max_requests_a_day": 7, "max_gradients": 3}
    refused = ask(CONTRACT, standing=True, **limited)
    assert refused.code is RefusalCode.BUDGET_SPENT
    assert refused.standing.seconds is None, "nothing is timed that would not be done"
    assert refused.standing.budget.model_dump() == {
        "gradients": 0,
        "requests_today": 7,
        "epsilon": None,
    }


def test_a_ledger_that_is_damaged_leaves_the_rest_of_the_standing(ask):
    charged(ask.settings, gradients=1)
    (ask.settings.ledger_path / "ledger.sqlite").write_bytes(b"nothing")
    told = ask(CONTRACT, standing=True)
    assert told.code is RefusalCode.INTERNAL
    assert (told.standing.budget, told.standing.seconds) == (None, None)


def test_sites_of_one_bucket_say_the_same_of_their_seconds(ask, monkeypatch):
    paced = Pace(
        degrading={"gradients": 1.0, "local-steps": 1.0}, gradient={"student": 1.0}, step=1.0
    )
    monkeypatch.setattr(standing, "TIMINGS", SimpleNamespace(pace=lambda _: paced))

    def seconds(patients):
        return standing.standing(
            CONTRACT,
            version="1",
            bucket=patient_bucket(patients),
            settings=ask.settings,
            outbox=Outbox(ask.settings.outbox_path),
            idle=True,
        ).seconds

    assert len({seconds(patients) for patients in range(20, 50)}) == 1
    assert seconds(50) > seconds(49)


def test_nothing_is_timed_beside_a_computation(ask, monkeypatch):
    monkeypatch.setattr(standing, "TIMINGS", Timings())
    assert ask(CONTRACT, standing=True, idle=False).standing.seconds is None
    told = ask(CONTRACT, standing=True).standing.seconds
    monkeypatch.setattr(pace, "timed", None)
    assert ask(CONTRACT, standing=True, idle=False).standing.seconds == told, "what is known, is"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 123.0),
        ("seconds", float("inf")),
        ("version", "1.0\x1b[2J"),
        ("version", "v" * 65),
        ("policy", "short"),
        ("budget", {"gradients": 987}),
        ("budget", {"epsilon": 0.123}),
        ("budget", {"patients": 5}),
    ],
)
def test_a_standing_that_is_finer_than_agreed_is_no_standing(field, value):
    good = {"version": "0.1.0", "policy": "0" * 64, "seconds": 120.0}
    good["budget"] = {"gradients": 500, "epsilon": 0.29, "requests_today": 987}
    assert Standing.model_validate(good)
    with pytest.raises(ValueError, match=field):
        Standing.model_validate({**good, field: value})


def test_numbers_are_rounded_down_to_steps():
    assert [rounded_down(n) for n in (-1, 0, 1, 4, 9, 49, 50, 999, 10**6)] == [
        *(0, 0, 1, 2, 5, 20, 50, 500, 10**6)
    ]
    assert all(rounded_epsilon(n / 100) == n / 100 for n in range(1000)), "hundredths stay"


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
