"""Judging a finished run at the hospitals: networks and images go out, figures and verdicts come.

1. Students are trained on the distilled pairs and on what needs no hospital (``aggregator.arms``),
   each as long as the contract says, from initial weights that the sites know. They are kept in
   ``networks.safetensors``: the question is the same to the last bit whenever it is asked.
2. The sites say how well each does on patients they kept back, the anchor and the input too.
3. Where the contract wants their veto, they compare the pairs' HQ with their patients. LQ is
   made of the same images, or HQ of it.

What came is kept after every exchange; sites that have answered are not asked again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from aggregator.admission import Rejected, admit_evaluation, admit_veto
from aggregator.arms import Distillation, Teacher, training_sets
from aggregator.distill.prior import Prior
from aggregator.exchange import Exchange
from aggregator.federation import CHECKPOINT, EVENTS, PAIRS, RESULT
from aggregator.foundation import FoundationError, read_prior
from aggregator.hospital_table import (
    HOSPITALS,
    Judgement,
    SiteFigures,
    SiteVerdict,
    hospital_table,
    keep_judgement,
    read_judgement,
)
from aggregator.progress import Journal
from aggregator.runs import NETWORKS
from aggregator.utility import UTILITY, pairs_digest
from shared.contract import RunContract
from shared.durable import write_durably
from shared.judging import EvaluateHeader, VetoQueryHeader
from shared.mandate import Mandate
from shared.messages import FloatArray, Message, encode, payload_digest
from shared.readers import read_images
from shared.similarity import likeness
from shared.tasks.degradation import parts
from shared.training import fit_pairs
from shared.trajectory import judge_seed

SETS = (
    *("prior", "prior_textured", "public_direct", "public_and_textured", "public_anchored"),
    "distilled",
)
"""Rows that a network is trained for; those that need public images where there are some."""


def judge_run(
    *,
    contract: RunContract,
    sites: Sequence[str],
    exchange: Exchange,
    run: Path,
    public: Path | None = None,
    mandate: Mandate | None = None,
    journal: Journal | None = None,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Asks ``sites`` what they have not said yet of a finished run, where its contract wants it.

    Leaves ``evaluation.json`` and, unless somebody has put another one there, ``utility.json``.
    Raises ``FoundationError`` where the prior is missing, ``JudgementError`` where what was kept is
    damaged, and what ``on_look`` raises, which is called while networks are trained.
    """
    plan = contract.evaluation
    if not plan.sites:
        return
    journal = journal or Journal(run / EVENTS, rounds=contract.rounds)
    judgement, arrays = _prepared(contract, run, public, journal, on_look)
    judgement = judgement.model_copy(update={"asked": tuple(sorted(sites)), "problems": {}})
    keep_judgement(run, judgement)
    about: dict[str, Any] = {
        "contract": contract,
        "contract_digest": contract.digest(),
        "mandate": mandate,
    }
    problems: dict[str, str] = {}

    def ask(message: Message, silent: Sequence[str], place: int, admit: Callable[..., Any]) -> Any:
        payload = encode(message)
        journal.step("evaluate", 0, len(silent), f"asked {len(silent)} sites to judge")
        answers = exchange(payload, place, silent) if silent else {}
        found = {}
        for site in silent:
            try:
                if site not in answers:
                    raise Rejected("no answer")
                found[site] = admit(
                    answers[site],
                    site=site,
                    query=message.header,
                    request_digest=payload_digest(payload),
                )
            except Rejected as reason:
                before = f"{problems[site]}, " if site in problems else ""
                problems[site] = f"{before}{message.header.type}: {reason}"
        told = "; ".join(f"{site}: {reason}" for site, reason in problems.items())
        journal.step("evaluate", len(found), len(silent), told or f"{len(found)} sites have judged")
        return found

    query = Message(header=EvaluateHeader(**about), arrays=arrays)
    silent = [site for site in judgement.asked if site not in judgement.figures]
    told = ask(query, silent, contract.rounds + 1, _admit_figures(judgement.networks))
    judgement = judgement.model_copy(update={"figures": {**judgement.figures, **told}})
    keep_judgement(run, judgement.model_copy(update={"problems": problems}))
    if plan.veto:
        images = _candidates(contract, run, public)
        query = Message(header=VetoQueryHeader(**about), arrays=images)
        silent = [site for site in judgement.asked if site not in judgement.verdicts]
        told = ask(query, silent, contract.rounds + 2, _admit_verdict(len(images["candidates"])))
        judgement = judgement.model_copy(update={"verdicts": {**judgement.verdicts, **told}})
    judgement = judgement.model_copy(update={"problems": problems})
    keep_judgement(run, judgement)
    _write_table(run, judgement, contract)
    journal.step("done", contract.rounds, contract.rounds, "the hospitals were asked")


def _admit_figures(networks: int) -> Callable[..., SiteFigures]:
    def admit(payload: bytes, **about: Any) -> SiteFigures:
        said = admit_evaluation(payload, networks=networks, **about)
        return SiteFigures(
            psnr_db=said.psnr_db, ssim=said.ssim, patients_at_least=said.patients_at_least
        )

    return admit


def _admit_verdict(images: int) -> Callable[..., SiteVerdict]:
    def admit(payload: bytes, **about: Any) -> SiteVerdict:
        said = admit_veto(payload, images=images, **about)
        fields = said.model_dump(include=set(SiteVerdict.model_fields))
        return SiteVerdict.model_validate(fields)

    return admit


def _prepared(
    contract: RunContract,
    run: Path,
    public: Path | None,
    journal: Journal,
    on_look: Callable[[], None],
) -> tuple[Judgement, dict[str, FloatArray]]:
    """What was kept of the run's judgement, or a fresh one; and the networks to be judged."""
    file, kept = run / NETWORKS, read_judgement(run)
    if kept is not None and file.exists():
        try:
            networks = load_file(file)
            return kept, {name: one.numpy() for name, one in networks.items()}
        except (OSError, SafetensorError):
            raise FoundationError(f"{file} is damaged: move it away, launch again") from None
    prior = read_prior(contract, public)
    pairs, state = load_file(run / PAIRS), load_file(run / CHECKPOINT)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    anchored = contract.anchor.rounds > 0

    def teacher(name: str) -> Teacher:
        return Teacher(contract.anchor_network, state[name], contract.anchor.symmetric)

    arms = training_sets(
        SETS,
        contract=contract,
        distillations=[
            Distillation(contract, pairs["lq"], pairs["hq"], public=teacher("public")),
        ],
        prior=prior,
        train=(),
        public=_public(contract, public),
        every_variant=False,
    )
    plan, rows = contract.evaluation, list[torch.Tensor]()
    total = len(arms) * plan.seeds * plan.steps
    for arm in arms:
        lq, hq = arm.pairs(contract.task)
        for number in range(plan.seeds):
            before = len(rows) * plan.steps

            def on_step(done: int, _: int, before: int = before) -> None:
                on_look()
                journal.step("evaluate", before + done, total)

            row = fit_pairs(
                lq=lq,
                hq=hq,
                network=contract.student,
                steps=plan.steps,
                seed=judge_seed(contract, number),
                device=device,
                on_step=on_step,
            )
            rows.append(row.cpu())
    networks = {"weights": torch.stack(rows)}
    if anchored:
        networks["anchor"] = state["anchor"][None].contiguous()
    ssim, ncc = _to_source(pairs["hq"], prior, tasks=len(parts(contract.task)))
    judgement = Judgement(
        contract_digest=contract.digest(),
        pairs_sha256=pairs_digest(pairs["lq"].numpy(), pairs["hq"].numpy()),
        sets=tuple(arm.name for arm in arms),
        seeds=plan.seeds,
        anchor=anchored,
        source_ssim=ssim,
        source_ncc=ncc,
        asked=(),
    )
    write_durably(file, save(networks))
    keep_judgement(run, judgement)
    return judgement, {name: one.numpy() for name, one in networks.items()}


def _public(contract: RunContract, folder: Path | None) -> list[FloatArray] | None:
    """Public patients; ``read_prior`` has read the same folder before."""
    if folder is None:
        return None
    task = contract.task
    low, high = task.window
    return read_images(folder, size_px=task.size_px, low=low, high=high, modality=task.modality)


def _to_source(
    hq: torch.Tensor, prior: Prior, *, tasks: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """SSIM and NCC of each pair's HQ with the image it was started from."""
    source = prior.start.repeat(tasks, 1, 1, 1)
    alike = [
        likeness(one[None], begun[None]) for one, begun in zip(hq.clamp(0, 1), source, strict=True)
    ]
    return (
        tuple(round(float(one.ssim), 4) for one in alike),
        tuple(round(float(one.ncc), 4) for one in alike),
    )


def _candidates(contract: RunContract, run: Path, public: Path | None) -> dict[str, FloatArray]:
    """The pairs' HQ, and the images that each was started from."""
    hq: FloatArray = load_file(run / PAIRS)["hq"].numpy()
    start = read_prior(contract, public).start.repeat(len(parts(contract.task)), 1, 1, 1)
    return {"candidates": hq, "replaced": np.ascontiguousarray(start.numpy(), np.float32)}


def _write_table(run: Path, judgement: Judgement, contract: RunContract) -> None:
    """Writes ``utility.json``, but never over a table that was measured elsewhere."""
    table = hospital_table(judgement, contract, result=json.loads((run / RESULT).read_bytes()))
    path = run / UTILITY
    if table is None:
        return
    try:
        ours = json.loads(path.read_bytes()).get("measured_at") == HOSPITALS
    except FileNotFoundError:
        ours = True
    except (OSError, ValueError, AttributeError):
        ours = False
    if ours:
        write_durably(path, json.dumps(table, indent=2).encode())
