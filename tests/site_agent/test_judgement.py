"""What a site tells of patients it kept back: the right figures, once, coarse, and nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from shared.architectures import Residual
from shared.contract import Anchor, Evaluation, Probes, RunContract
from shared.gradients import request_seed
from shared.images import psnr_db, ssim
from shared.judging import EvaluateHeader, EvaluationHeader, VetoHeader, VetoQueryHeader
from shared.messages import Message, RefusalCode, decode, encode, probe_batch
from shared.networks import apply_network
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise
from shared.training import enhance_symmetric, fit_pairs
from shared.trajectory import judge_seed, start
from site_agent import worker
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort, open_cohort
from site_agent.enrolment import pseudonym_key
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.kept_back import divided
from site_agent.ledger import Ledger
from site_agent.outbox import Outbox
from site_agent.policy import Policy
from site_agent.settings import SiteSettings

TINY = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=32, angles=30, bins=48),
    images=2,
    student=TINY,
    anchor_network=TINY,
    anchor=Anchor(rounds=1, local_steps=3, batch=2, crop_px=16),
    probes=Probes(requests=1, draws=1, depths=(0, 30)),
    evaluation=Evaluation(sites=True, veto=True, steps=20, seeds=2),
)
PLAIN = CONTRACT.model_copy(update={"evaluation": Evaluation()})
CPU = torch.device("cpu")


class Site:
    """A site with twelve patients, each an image of its own, of two slices."""

    def __init__(self, home) -> None:
        self.patients = [blobs(number) for number in range(12)]
        build_cohort(
            home / "cohort",
            (
                PatientSlices(f"{number:032x}", [Slice(one, (1, 1), 2.0) for one in slices])
                for number, slices in enumerate(self.patients)
            ),
            modality="CT",
        )
        self.settings = SiteSettings(
            home=home, name="site-a", aggregator="localhost:1", images=home / "images"
        )
        self.cohort = open_cohort(home / "cohort")
        self.outbox = Outbox(home / "outbox")

    def ask(self, payload, **policy):
        settings = self.settings.model_copy(update={"policy": Policy(**policy)})
        return worker.answer(payload, settings=settings, cohort=self.cohort, outbox=self.outbox)

    def kept(self, share=0.2):
        """The places of those kept back, from the pseudonyms alone."""
        used, kept = divided(self.cohort, key=pseudonym_key(self.settings), share=share)
        places = [int(name, 16) for name in kept.index.patients]
        assert {int(name, 16) for name in used.index.patients} == set(range(12)) - set(places)
        return places

    def windowed(self, places):
        images = [(np.stack(self.patients[n]).astype(np.float32) + 1000) / 2000 for n in places]
        return [torch.from_numpy(one.clip(0, 1))[:, None] for one in images]


def blobs(seed):
    """Two smooth slices, int16 HU."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return list((smooth[:, 0].clamp(0, 1) * 1400 - 900).round().numpy().astype(np.int16))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def networks(contract=CONTRACT, *, sets=1):
    """Honest judges, trained as many steps as the contract says, (sets * seeds, D)."""
    rows = []
    for which in range(sets):
        hq = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(which))
        for number in range(contract.evaluation.seeds):
            row = fit_pairs(
                lq=hq,
                hq=hq.flip(-1),
                network=contract.student,
                steps=contract.evaluation.steps,
                seed=judge_seed(contract, number),
                device=CPU,
                crop_px=16,
            )
            rows.append(row.numpy())
    return np.stack(rows)


def anchor(contract=CONTRACT):
    return start(contract, kind="local-steps", network="anchor", round=1).numpy()[None]


def evaluate(contract=CONTRACT, **arrays):
    header = EvaluateHeader(contract=contract, contract_digest=contract.digest())
    return encode(Message(header=header, arrays=arrays or {"weights": networks(contract)}))


def veto(candidates, replaced, contract=CONTRACT):
    header = VetoQueryHeader(contract=contract, contract_digest=contract.digest())
    return encode(Message(header=header, arrays={"candidates": candidates, "replaced": replaced}))


def refused(reply):
    header = decode(reply).header
    return header.code if header.type == "refusal" else None


def test_figures_are_those_of_the_patients_kept_back(site) -> None:
    weights = networks()
    reply = site.ask(evaluate(weights=weights, anchor=anchor()))
    header = decode(reply).header
    assert isinstance(header, EvaluationHeader)
    assert not decode(reply).arrays
    kept = site.windowed(site.kept())
    assert len(kept) >= 2

    def expected(restore):
        """Patient means by hand: PSNR as in shared.images, the seed of a patient its place."""
        found = []
        for place, slices in enumerate(kept):
            seed = request_seed(CONTRACT.digest(), "evaluate", "site-a") + place
            lq = degrade(CONTRACT.task, slices, seed=seed)
            pairs = list(zip(restore(lq)[:, 0].numpy(), slices[:, 0].numpy(), strict=True))
            found.append([np.mean([of(a, b) for a, b in pairs]) for of in (psnr_db, ssim)])
        return np.mean(found, axis=0)

    def student(row):
        return lambda lq: apply_network(TINY, torch.from_numpy(row), lq)

    answers = [lambda lq: lq, *(student(row) for row in weights)]
    answers.append(lambda lq: enhance_symmetric(TINY, torch.from_numpy(anchor()[0]), lq))
    assert len(header.psnr_db) == len(header.ssim) == len(answers) == 4
    for told_db, told_ssim, restore in zip(header.psnr_db, header.ssim, answers, strict=True):
        by_hand_db, by_hand_ssim = expected(restore)
        assert told_db == pytest.approx(by_hand_db, abs=0.051)
        assert told_ssim == pytest.approx(by_hand_ssim, abs=0.0026)
        assert told_db == pytest.approx(round(told_db, 1), abs=1e-9)
        assert told_ssim / 0.005 == pytest.approx(round(told_ssim / 0.005), abs=1e-6)
    assert header.patients_at_least in (1, 5)


def test_the_patients_kept_back_are_in_no_gradient(site) -> None:
    seen = []
    honest = worker.summarise
    site_summaries = worker.summarise

    def spy(asked, **more):
        seen.append({hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in asked.patients})
        return honest(asked, **more)

    worker.summarise = spy
    try:
        for contract in (CONTRACT, PLAIN):
            row = start(contract, kind="local-steps", network="anchor", round=1).numpy()[None]
            request = probe_batch(
                contract=contract, round=1, kind="local-steps", network="anchor", weights=row
            )
            assert decode(site.ask(encode(request))).header.type == "summary"
    finally:
        worker.summarise = site_summaries
    judged, plain = seen
    assert len(plain) == 12, "a contract that is not judged at the sites asks all of them"
    assert judged < plain
    assert len(plain - judged) == len(site.kept())


def test_the_rest_must_be_as_many_as_the_contract_wants(site) -> None:
    many = CONTRACT.model_copy(update={"min_patients": 12})
    assert refused(site.ask(evaluate(many))) == RefusalCode.TOO_FEW_PATIENTS


def test_a_share_of_nothing_and_a_veto_not_given_are_policy(site) -> None:
    assert refused(site.ask(evaluate(), held_out_share=0.0)) == RefusalCode.POLICY
    assert refused(site.ask(evaluate(), answers_veto=False)) == RefusalCode.POLICY
    assert refused(site.ask(evaluate(), max_evaluated=1)) == RefusalCode.POLICY
    asked = evaluate(PLAIN, weights=networks())
    assert refused(site.ask(asked)) == RefusalCode.POLICY


def test_a_cohort_of_one_patient_keeps_nobody_back(tmp_path) -> None:
    site = Site(tmp_path)
    alone = CONTRACT.model_copy(update={"min_patients": 2})
    build_cohort(
        tmp_path / "cohort",
        [PatientSlices("a" * 32, [Slice(site.patients[0][0], (1, 1), 2.0)])],
        modality="CT",
    )
    site.cohort = open_cohort(tmp_path / "cohort")
    asked = evaluate(alone)
    assert refused(site.ask(asked, min_patients=2)) == RefusalCode.TOO_FEW_PATIENTS


def test_one_question_a_contract_and_the_same_answer_again(site) -> None:
    asked = evaluate()
    first = site.ask(asked)
    assert site.ask(asked) == first
    other = evaluate(weights=networks(sets=2))
    assert refused(site.ask(other)) == RefusalCode.ROUND_REUSED
    events = [line.event for line in AuditLog(site.settings.audit_path).lines()]
    assert events == ["judged", "repeated", "refused"]
    (entry,) = site.outbox.entries()
    assert (entry.kind, entry.gradients, entry.round) == ("evaluation", 0, 3)
    (charge,) = Ledger(site.settings.ledger_path).charges()
    assert (charge.round, charge.gradients) == (3, 0)
    assert refused(site.ask(evaluate(CONTRACT.model_copy(update={"seed": 1})), **ONE)) == (
        RefusalCode.TOO_OFTEN
    )


ONE = {"max_requests_an_hour": 1}


def test_a_day_has_so_many_judgements_whatever_the_contracts(site) -> None:
    others = [CONTRACT.model_copy(update={"seed": seed}) for seed in (1, 2)]
    allowed = {"max_judgements_a_day": 2}
    first = evaluate()
    assert refused(site.ask(first, **allowed)) is None
    images = phantoms(900)
    assert refused(site.ask(veto(images, images), **allowed)) is None
    assert refused(site.ask(evaluate(others[0]), **allowed)) == RefusalCode.TOO_OFTEN
    assert refused(site.ask(first, **allowed)) is None, "a repetition does not count"
    assert refused(site.ask(evaluate(others[0]), max_judgements_a_day=3)) is None
    asked = veto(images, images, others[1])
    assert refused(site.ask(asked, max_judgements_a_day=3)) == RefusalCode.TOO_OFTEN


@pytest.mark.parametrize("fault", ["far", "nan", "faded", "shape", "odd", "anchor", "extra"])
def test_networks_that_no_training_gives_are_refused(site, fault) -> None:
    arrays = {"weights": networks().copy(), "anchor": anchor().copy()}
    if fault == "far":
        arrays["weights"][1] *= 40
    elif fault == "nan":
        arrays["weights"][0, 3] = np.nan
    elif fault == "faded":
        arrays["weights"][0, :9] *= 0.01  # the first layer's first filter
    elif fault == "shape":
        arrays["weights"] = arrays["weights"][:, :-1]
    elif fault == "odd":
        arrays["weights"] = arrays["weights"][:1]
    elif fault == "anchor":
        arrays["anchor"] += 5.0
    else:
        arrays["basis"] = arrays["weights"]
    assert refused(site.ask(evaluate(**arrays))) == RefusalCode.BAD_WEIGHTS
    assert not list(site.outbox.entries())


def phantoms(seed):
    """Two images (2, 1, 32, 32) of nobody."""
    return torch.cat(Site.windowed(_Nobody(seed), [0])).numpy()


class _Nobody:
    def __init__(self, seed) -> None:
        self.patients = [blobs(seed)]


def test_a_copied_patient_is_named_by_the_images_number(site) -> None:
    replaced = phantoms(900)
    used = next(place for place in range(12) if place not in site.kept())
    copied = replaced.copy()
    copied[1] = site.windowed([used])[0][0].numpy()
    header = decode(site.ask(veto(copied, replaced))).header
    assert isinstance(header, VetoHeader)
    assert not header.passed
    assert header.too_alike == (1,)
    assert header.ratio_ssim / 0.05 == pytest.approx(round(header.ratio_ssim / 0.05), abs=1e-6)


def test_images_that_owe_nobody_anything_pass(site) -> None:
    replaced = phantoms(900)
    header = decode(site.ask(veto((0.98 * replaced + 0.01), replaced))).header
    assert (header.passed, header.too_alike) == (True, ())
    assert header.ratio_ssim == pytest.approx(1.0, abs=0.051)


def test_a_bystander_copied_is_no_reason_of_the_used(site) -> None:
    """A slice of a patient kept back is near the kept, not the used: the ratio falls."""
    replaced = phantoms(900)
    copied = replaced.copy()
    copied[0] = site.windowed(site.kept()[:1])[0][0].numpy()
    assert decode(site.ask(veto(copied, replaced))).header.ratio_ssim < 1.0


def test_other_images_than_the_contracts_are_refused(site) -> None:
    images = phantoms(1)
    for candidates, replaced in (
        (images[:1], images),
        (np.full_like(images, np.nan), images),
        (images, images * 100),
    ):
        assert refused(site.ask(veto(candidates, replaced))) == RefusalCode.BAD_IMAGES
    without = CONTRACT.model_copy(update={"evaluation": Evaluation(sites=True)})
    assert refused(site.ask(veto(images, images, without))) == RefusalCode.POLICY


def test_who_is_kept_back_stays_so_when_others_join(site, tmp_path) -> None:
    before = {site.cohort.index.patients[n] for n in site.kept(0.5)}
    more = [*range(12), *range(100, 140)]
    build_cohort(
        tmp_path / "cohort",
        (PatientSlices(f"{n:032x}", [Slice(blobs(n)[0], (1, 1), 2.0)]) for n in more),
        modality="CT",
    )
    key = pseudonym_key(site.settings)
    used, kept = divided(open_cohort(tmp_path / "cohort"), key=key, share=0.5)
    assert before <= set(kept.index.patients)
    assert 10 <= kept.patients <= 42
    assert used.patients + kept.patients == 52
    _, others = divided(open_cohort(tmp_path / "cohort"), key=b"x" * 32, share=0.5)
    assert set(others.index.patients) != set(kept.index.patients), "the site's key decides"
