import time
from collections import Counter

import numpy as np
import pytest
import torch

from shared import gradients
from shared.architectures import Residual
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.messages import PATIENT_BUCKETS, Message, decode, encode, patient_bucket, probe_batch
from shared.tasks.settings import CtDenoise, CtKernel, CtSr, MrUndersampled, MultiTask
from shared.trajectory import start
from site_agent import pace, worker
from site_agent.cohort import Cohort, build_cohort, open_cohort
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.outbox import Outbox
from site_agent.pace import Pace, Timings, between, run_seconds, timed
from site_agent.policy import Policy
from site_agent.settings import SiteSettings

NETWORK = Residual(depth=3, width=12)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=48, angles=40, bins=64),
    student=NETWORK,
    anchor_network=NETWORK,
    anchor=Anchor(rounds=1, local_steps=60, public_steps=5),
    probes=Probes(requests=2, draws=2, depths=(0, 30), networks=("student", "anchor")),
)
BY_PATIENT = CONTRACT.model_copy(
    update={"anchor": Anchor(rounds=1, local_steps=25, public_steps=5, descent="patient")}
)
UNIT = Pace(degrading=dict.fromkeys(("gradients", "local-steps"), 1.0), gradient={}, step=0.0)
PATIENTS, SLICES = 7, 8


@pytest.fixture
def answered(tmp_path):
    """``answered(contract)``: seconds on this thread that a site takes for all of a contract."""
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(-1000, 500, (SLICES, 64, 64)).astype(np.int16)
    each = [Slice(one, (1, 1), 2.0) for one in pixels]
    patients = [PatientSlices(f"{n:032x}", each) for n in range(PATIENTS)]
    build_cohort(tmp_path / "cohort", patients, modality="CT")
    settings = SiteSettings(
        home=tmp_path, name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )

    def ask(contract: RunContract) -> float:
        cohort, outbox = open_cohort(tmp_path / "cohort"), Outbox(settings.outbox_path)
        begun = time.thread_time()
        for round, (kind, network) in enumerate(pace._asked(contract), 1):
            weights = start(contract, kind=kind, network=network, round=round).numpy()[None]
            if kind == "gradients":
                moved = drawn.normal(0, 2e-3, (len(contract.probes.depths), weights.shape[1]))
                moved[0] = 0
                weights = weights + moved.astype(np.float32)
            request = probe_batch(
                contract=contract, round=round, kind=kind, network=network, weights=weights
            )
            reply = worker.answer(encode(request), settings=settings, cohort=cohort, outbox=outbox)
            assert decode(reply).header.type == "summary"
        return time.thread_time() - begun

    return ask


def estimate(contract, paced, *, bucket=5, **policy):
    return run_seconds(contract, paced, bucket=bucket, slices=SLICES, policy=Policy(**policy))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("contract", [CONTRACT, BY_PATIENT], ids=["site", "patient"])
def test_the_estimate_is_what_the_run_then_takes(answered, monkeypatch, one_thread, contract):
    monkeypatch.setattr(pace, "_clock", time.thread_time)  # whatever else the machine does
    expected = estimate(contract, timed(contract))
    took = answered(contract)
    assert took / 2 < expected < took * 2


def test_the_estimate_counts_what_is_computed(answered, monkeypatch):
    """Each part, counted where it is done, for a site as large as the middle of its bucket."""
    done: Counter[str] = Counter()
    pairs_of, gradient, fit = gradients.pairs_of, gradients.patient_gradient, gradients.fit_pairs

    def pairs(contract, slices, **options):
        done["degraded"] += len(slices)
        return pairs_of(contract, slices, **options)

    def one_gradient(*, lq, **rest):
        done["images"] += len(lq)
        return gradient(lq=lq, **rest)

    def steps(*, steps, **rest):
        done["steps"] += steps
        return fit(steps=1, **rest)

    monkeypatch.setattr(gradients, "pairs_of", pairs)
    monkeypatch.setattr(gradients, "patient_gradient", one_gradient)
    monkeypatch.setattr(gradients, "fit_pairs", steps)
    smaller = {"task": CtDenoise(size_px=32, angles=30, bins=48)}
    for each in (CONTRACT, BY_PATIENT):
        done.clear()
        contract = each.model_copy(update=smaller)
        answered(contract)
        nothing = {"gradients": 0.0, "local-steps": 0.0}
        free: dict = {"student": 0.0, "anchor": 0.0}
        assert abs(between(5) / PATIENTS - 1) < 0.02
        for part, paced in {
            "degraded": Pace(degrading=UNIT.degrading, gradient=free, step=0.0),
            "images": Pace(degrading=nothing, gradient=dict.fromkeys(free, 1.0), step=0.0),
            "steps": Pace(degrading=nothing, gradient=free, step=1.0),
        }.items():
            assert estimate(contract, paced) == pytest.approx(done[part], rel=0.02), part


def test_an_estimate_depends_on_the_bucket_alone_and_fits_all_of_it():
    least = {bucket: n for n in range(1, 12_000) for bucket in [patient_bucket(n)]}  # its largest
    for bucket in PATIENT_BUCKETS[1:-1]:
        middle = between(bucket)
        assert bucket <= middle <= least[bucket] + 1
        # Of five times as many at the most, 1 to 5, it is off by no more than their root.
        assert max(middle / bucket, least[bucket] / middle) <= 5**0.5 + 1e-9


def test_fewer_patients_speak_where_contract_or_policy_says_so():
    paced = Pace(degrading=UNIT.degrading, gradient={"student": 1.0, "anchor": 1.0}, step=1.0)
    clear = CONTRACT.model_copy(update={"anchor": Anchor(rounds=0)})
    all_of_them = estimate(clear, paced, bucket=100)
    by_patient = clear.model_copy(update={"granularity": "patient"})
    assert estimate(by_patient, paced, bucket=100) == all_of_them
    few = estimate(by_patient, paced, bucket=100, max_patients=10)
    assert few == pytest.approx(all_of_them * 10 / between(100))
    noised = clear.model_copy(update={"privacy": Privacy(epsilon=4.0, patients=5, sampling=0.5)})
    assert estimate(noised, paced, bucket=100) == pytest.approx(all_of_them / 2)
    noised = noised.model_copy(update={"granularity": "patient"})
    assert estimate(noised, paced, bucket=100) == pytest.approx(all_of_them * 5 / between(100))


@pytest.mark.parametrize(
    "task",
    [
        CtSr(size_px=32),
        CtKernel(size_px=32, transfer=(1.0, 1.2, 1.6, 2.0), noise_hu=(5.0, 10.0, 20.0, 20.0)),
        MrUndersampled(size_px=32),
        MultiTask(parts=(CtDenoise(size_px=32, angles=30, bins=48), CtSr(size_px=32))),
        CtDenoise(size_px=32, angles=30, bins=48, pairs="real"),
    ],
    ids=lambda task: task.name,
)
def test_every_task_can_be_timed(task):
    small = Anchor(rounds=1, crop_px=16, batch=2)
    contract = CONTRACT.model_copy(
        update={"task": task, "anchor": small, "privacy": Privacy(directions=3)}
    )
    paced = timed(contract)
    real = contract.real_pairs
    assert all((one == 0) == real for one in paced.degrading.values())
    assert set(paced.gradient) == {"student", "anchor"}
    assert min(*paced.gradient.values(), paced.step) > 0


def test_what_only_the_first_time_takes_does_not_count(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(pace, "_clock", lambda: now[0])

    def work(count):
        now[0] += 0.1 * count + (8.0 if not calls else 0.0)
        calls.append(count)

    assert pace._each(work, 10) == pytest.approx(0.1)
    assert calls == [1, 1, 10, 10]

    def slow(count):
        now[0] += 30.0 * count
        calls.append(count)

    calls.clear()
    assert pace._each(slow, 10) == pytest.approx(30.0)
    assert calls == [1], "not tried again"


def test_a_shape_is_timed_once(monkeypatch):
    asked = []
    monkeypatch.setattr(pace, "timed", lambda contract: asked.append(contract) or UNIT)
    timings = Timings()
    assert timings.known(CONTRACT) is None
    longer = CONTRACT.model_copy(update={"name": "other", "seed": 7, "images": 9})
    for contract in (CONTRACT, longer, CONTRACT):
        assert timings.pace(contract) is UNIT
    assert asked == [CONTRACT]
    assert timings.known(longer) is UNIT


def test_what_takes_too_long_is_told_the_next_time(monkeypatch):
    import threading

    go = threading.Event()
    monkeypatch.setattr(pace, "timed", lambda _: go.wait(10) and UNIT)
    timings = Timings()
    assert timings.pace(CONTRACT, within_s=0.05) is None
    assert timings.busy()
    other = CONTRACT.model_copy(update={"task": CtSr(size_px=32)})
    assert timings.pace(other, within_s=0.05) is None, "one at a time"
    go.set()
    assert timings.pace(CONTRACT, within_s=10) is UNIT


def test_what_cannot_be_timed_is_not_told_and_not_tried_again(monkeypatch):
    tried = []

    def fail(_):
        tried.append(1)
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(pace, "timed", fail)
    timings = Timings()
    assert [timings.pace(CONTRACT) for _ in range(3)] == [None] * 3
    assert len(tried) == 1
    assert not timings.busy()


def test_few_shapes_are_timed_in_an_hour(monkeypatch):
    monkeypatch.setattr(pace, "timed", lambda _: UNIT)
    timings = Timings()
    sizes = [
        CONTRACT.model_copy(update={"probes": Probes(draws=draws)})
        for draws in range(1, pace.PROBES_AN_HOUR + 2)
    ]
    told = [timings.pace(contract) for contract in sizes]
    assert told == [UNIT] * pace.PROBES_AN_HOUR + [None]
    assert timings.pace(sizes[0]) is UNIT, "what is known is told"


def test_a_probe_reads_no_image(monkeypatch, answered):
    monkeypatch.setattr(Cohort, "images", None)
    assert timed(CONTRACT).step > 0
    with pytest.raises(AssertionError):  # the control: an answer does
        answered(CONTRACT)


def test_only_what_is_timed_is_the_shape():
    same = CONTRACT.model_copy(update={"min_patients": 9})
    assert pace._shape(same) == pace._shape(CONTRACT)
    for change in (
        {"task": CtSr(size_px=64)},
        {"student": Residual(depth=4, width=12)},
        {"probes": Probes(draws=3)},
        {"anchor": Anchor(batch=9)},
        {"privacy": Privacy(directions=3)},
    ):
        assert pace._shape(CONTRACT.model_copy(update=change)) != pace._shape(CONTRACT)


def test_messages_have_room_for_it():
    from shared.messages import DryRunQueryHeader

    plain = DryRunQueryHeader(contract=CONTRACT, contract_digest=CONTRACT.digest())
    assert b"standing" not in encode(Message(header=plain)), "an earlier site still takes it"
    asking = plain.model_copy(update={"standing": True})
    assert decode(encode(Message(header=asking))).header == asking
