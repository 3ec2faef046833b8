"""What the states of a run and of its sites mean, in words for who watches."""

import re

from aggregator.lifecycle import State
from shared.messages import RefusalCode

STATES: dict[State, str] = {
    "prepared": "it has a folder and a contract; nobody works on it yet",
    "submitted": "handed to Flower; it begins as soon as a ServerApp is started",
    "running": "a ServerApp works on it",
    "stopping": "a pause, stop or abort was asked; it ends at the next moment that allows it",
    "paused": "nobody works on it; nothing is lost, it goes on after the last round kept",
    "failed": "something has to be mended, the reason says what; then resume it",
    "finished": "the pairs are there; they are not published yet",
    "published": "a release of it is in the catalog",
    "aborted": "ended for good; the same contract with another seed is another run",
}
SITES: dict[str, str] = {
    "asked": "has been sent the round's question",
    "computing": "computes its answer",
    "answered": "has answered this round",
    "offline": "is not connected: is site-agent up there, and does its network reach this server?",
    "gone": "was lost while it computed; it is asked again when it is back",
    "late": "has not answered by the round's deadline, and is not waited for any longer",
    "refused": "refuses",
    "rejected": "its answer was not used",
}
PHASES: dict[str, str] = {
    "public": "public network is trained",
    "anchor": "hospitals take local steps",
    "probes": "hospitals answer probes",
    "distil": "pairs are matched to the answers",
    "evaluate": "hospitals judge",
    "paused": "paused",
    "aborted": "aborted",
    "failed": "failed",
    "done": "the rounds are done",
}
REFUSALS: dict[RefusalCode, str] = {
    RefusalCode.MALFORMED: "it could not read the question; is it of another version?",
    RefusalCode.UNKNOWN_KIND: "it does not know this kind of question: it is of an earlier version",
    RefusalCode.DIGEST_MISMATCH: "the question and its contract disagree",
    RefusalCode.UNKNOWN_COORDINATOR: "nobody whose key it trusts has signed the contract",
    RefusalCode.POLICY: "the contract asks for more than the hospital's policy allows",
    RefusalCode.WRONG_MODALITY: "it has images of another modality",
    RefusalCode.TOO_FEW_PATIENTS: "it has too few patients for this contract",
    RefusalCode.TOO_FEW_PAIRS: "too few of its patients have real pairs",
    RefusalCode.TOO_FEW_KEPT_BACK: "too few patients could be kept back to judge the run on",
    RefusalCode.BAD_IMAGES: "the images it was sent are not what the contract says",
    RefusalCode.BAD_WEIGHTS: "the weights it was sent are not plausible",
    RefusalCode.BAD_REDUCTION: "basis or scales are not those of the contract",
    RefusalCode.ROUND_REUSED: "another question came under a round that it has answered",
    RefusalCode.BAD_MEMBERS: "the members of the secure sum are not acceptable to it",
    RefusalCode.BUDGET_SPENT: "its privacy budget is spent",
    RefusalCode.TOO_OFTEN: "it was asked more often than its policy allows in an hour",
    RefusalCode.NO_COHORT: "it has not indexed any images yet: site-agent index",
    RefusalCode.WORKER_UNREACHABLE: "its worker does not run: site-agent up",
    RefusalCode.INTERNAL: "an error of its own: its log has it under the incident",
}
_CODE = re.compile(r"refused: ([a-z-]+)(?: \(incident (\w+)\))?")


def why_it_waits(name: str, state: str | None, reason: str) -> str:
    """What a site does, or why it is waited for, from its state and the journal's reason."""
    if state is None:
        return "has not been asked yet"
    words = SITES.get(state, state)
    told = reason.removeprefix(f"{name}: ")
    if state == "refused" and (code := _CODE.match(told)):
        known = [meaning for one, meaning in REFUSALS.items() if one == code[1]]
        incident = f", incident {code[2]} in its log" if code[2] else ""
        return f"{words}: {known[0] if known else 'for a reason of its own'} ({code[1]}{incident})"
    if state == "rejected":
        return f"{words}: {told}"
    return words
