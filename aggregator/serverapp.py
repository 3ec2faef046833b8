"""The Flower ServerApp: carries the round loop's requests to the sites, and their answers back.

What a round is, and whether an answer is good, ``aggregator.federation`` decides. Here: who is
online, who has answered, how long to wait.
"""

import logging
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import flwr.superlink.grid.http_grid as http_grid
import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import pull_objects

from aggregator.dry_run import PREFIX, ask_sites, keep_verdicts
from aggregator.enrolment import enrolled_sites, revoked_sites
from aggregator.home import HOME_VARIABLE, AggregatorHome
from aggregator.hospital_table import JudgementError
from aggregator.lifecycle import Interrupted, Steering, read_state, transition
from aggregator.progress import Journal, SiteNews, SiteState
from aggregator.runs import RunError, hold_run, read_mandate, read_plan, read_run_contract
from shared.threads import yield_cores

__all__ = ["app"]

POLL_S = 0.1
MAX_POLL_S = 0.5
ONLINE_POLL_S = 1.0
PATIENCE_S = 100.0
"""How long a round waits for a site that is offline: a killed one is refused for half a minute."""
TRIES = 3
"""How often a site is asked again in one round after an error of Flower's."""
FIRST_BACKOFF_S = 0.1
OUTLIVES_S = 60.0
"""A question outlives its round: Flower's error for one that expired would hide who was late."""

app = ServerApp()
log = logging.getLogger("fedstill")


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Works on the run that ``run-config`` names until it has ended."""
    name = str(context.run_config["run"])
    if not re.fullmatch(r"(dry-)?[0-9a-f]{16}", name):
        raise RuntimeError("run-config: run is not the name of a run")
    home = AggregatorHome(Path(os.environ[HOME_VARIABLE]))
    run = home.runs / name
    http_grid.pull_objects = partial(pull_objects, initial_backoff=FIRST_BACKOFF_S)
    with hold_run(run):
        if name.startswith(PREFIX):
            rehearse(run, grid)
            return
        work(run, grid, absent=partial(_revoked, home))


def rehearse(run: Path, grid: Grid) -> None:
    """Asks the sites whether they would answer the contract, and leaves what they say."""
    contract, plan = read_run_contract(run), read_plan(run)
    exchange = GridExchange(grid, timeout_s=plan.round_timeout_s)
    keep_verdicts(run, ask_sites(contract, plan.sites, exchange, mandate=read_mandate(run)))


def _revoked(home: AggregatorHome) -> set[str]:
    """Names of sites that are refused, and not enrolled again with other keys."""
    return {site.name for site in revoked_sites(home)} - {s.name for s in enrolled_sites(home)}


def work(run: Path, grid: Grid, *, absent: Callable[[], Collection[str]] = frozenset) -> None:
    """Distils, and leaves the run finished, paused, aborted or failed, with the reason.

    An error ends as a ``failed`` event too, with a text that is safe to show. Sites that are
    ``absent`` for good, now or from now on, are not waited for.
    """
    yield_cores()
    from aggregator.evaluation import judge_run  # torch: only once it is needed
    from aggregator.federation import BelowQuorum, FederationError, federate
    from aggregator.foundation import FoundationError

    steering = Steering(run)
    try:
        contract, plan = read_run_contract(run), read_plan(run)
        done = read_state(run).round
        journal = Journal(run / "events.jsonl", rounds=contract.rounds, round=done)
        exchange = GridExchange(
            grid,
            timeout_s=plan.round_timeout_s,
            patience_s=plan.patience_s,
            absent=absent,
            on_news=journal.sites,
            on_look=steering.check,
        )
        steering.begin()
        federate(
            contract=contract,
            sites=plan.sites,
            exchange=exchange,
            run=run,
            public=plan.public,
            mandate=read_mandate(run),
            quorum=plan.quorum,
            journal=journal,
            steering=steering,
        )
        judge_run(
            contract=contract,
            sites=[site for site in plan.sites if site not in absent()],
            exchange=exchange,
            run=run,
            public=plan.public,
            mandate=read_mandate(run),
            journal=journal,
            on_look=steering.check,
        )
    except Interrupted:
        steering.end()
        state = read_state(run)
        journal.step("aborted" if state.state == "aborted" else "paused", 0, 0, state.reason)
        return
    except BelowQuorum as error:
        message = str(error)
        if plan.below_quorum == "pause":
            transition(run, "paused", reason=message, missing=error.missing)
            journal.step("paused", 0, 0, message)
            return
    except httpx.HTTPError:
        # Nothing is wrong with the run: it counts as paused from here on, and `up` goes on with it.
        journal.step("paused", 0, 0, "the SuperLink was lost")
        raise RuntimeError("the SuperLink was lost") from None
    except (FederationError, FoundationError, JudgementError, RunError) as error:
        message = str(error)
    except Exception:
        message = f"an internal error; its traceback is in {run / 'error.log'}"
        (run / "error.log").write_text(traceback.format_exc(), "utf-8")
    else:
        transition(run, "finished")
        return
    _fail(run, message)
    raise RuntimeError("the run failed; see events.jsonl in its folder") from None


def _fail(run: Path, message: str) -> None:
    Journal(run / "events.jsonl", rounds=0).step("failed", 0, 0, message)
    try:
        transition(run, "failed", reason=message)
    except RunError as error:  # what is broken may be the state itself
        log.error("%s", error)


class GridExchange:
    """Asks sites, each once; several times a round where one has several exchanges.

    A site that is offline is waited for, ``patience_s`` the first time and not at all after an
    exchange that went on without it, until it answers again; one that is ``absent`` never. A site
    whose node was lost is asked again with the same bytes: it answers a request once and repeats
    that answer.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout_s: float,
        patience_s: float | None = None,
        absent: Callable[[], Collection[str]] = frozenset,
        on_news: Callable[[Mapping[str, SiteNews]], None] = lambda _: None,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = grid
        self._timeout_s = timeout_s
        self._patience_of_all_s = PATIENCE_S if patience_s is None else patience_s
        self._absent = absent
        self._on_news = on_news
        self._on_look = on_look
        self._given_up: set[str] = set()

    def __call__(self, payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        """The answers by site name; a site without one is absent."""
        start = time.monotonic()
        answers: dict[str, bytes] = {}
        asked: dict[str, str] = {}  # message id -> site
        tries: Counter[str] = Counter()
        idle_since = dict.fromkeys(sites, start)  # sites that are not being asked
        next_look = start
        news: dict[str, SiteNews] = {}
        while idle_since or asked:
            now = time.monotonic()
            self._on_look()
            if idle_since and now >= next_look:
                next_look = now + ONLINE_POLL_S
                self._given_up |= set(self._absent())
                sent = self._send(payload, tuple(idle_since), group=str(round))
                asked.update(sent)
                tries.update(sent.values())
                for site in sent.values():
                    del idle_since[site]
            for message_id, answer in self._pull(asked).items():
                site = asked.pop(message_id)
                if answer is not None:
                    answers[site] = answer
                elif tries[site] < TRIES:
                    idle_since[site] = now
            for site in [s for s in idle_since if now - idle_since[s] >= self._patience_s(s)]:
                del idle_since[site]
                asked_before = tries[site] > 0
                news[site] = _news("gone" if asked_before else "offline", now - start, site)
            news |= {site: _news("offline", now - start, site) for site in idle_since}
            news |= {site: _news("computing", now - start, site) for site in asked.values()}
            news |= {site: _news("answered", now - start, site) for site in answers}
            self._on_news(news)
            if now - start >= self._timeout_s:
                self._on_news({site: _news("late", now - start, site) for site in asked.values()})
                break
            if idle_since or asked:
                # A long answer is not worth ten questions a second.
                time.sleep(min(max(POLL_S, (now - start) / 20), MAX_POLL_S))
        self._given_up = (self._given_up | set(sites)) - set(answers)
        return answers

    def _patience_s(self, site: str) -> float:
        return 0.0 if site in self._given_up else self._patience_of_all_s

    def _send(self, payload: bytes, sites: Sequence[str], *, group: str) -> dict[str, str]:
        nodes = {node.name: node.node_id for node in self._grid.get_nodes()}
        online = [site for site in sites if site in nodes]
        if not online:
            return {}
        messages = [
            Message(
                RecordDict({"request": ConfigRecord({"payload": payload})}),
                nodes[site],
                "query.summarise",
                ttl=self._timeout_s + OUTLIVES_S,
                group_id=group,
            )
            for site in online
        ]
        ids = self._grid.push_messages(messages)
        return {id: site for id, site in zip(ids, online, strict=True) if id}

    def _pull(self, asked: Mapping[str, str]) -> dict[str, bytes | None]:
        """Replies by the id of the message they answer; None where Flower reports an error.

        Of several to one message the first counts.
        """
        if not asked:
            return {}
        replies: dict[str, bytes | None] = {}
        for reply in self._grid.pull_messages(list(asked)):
            message_id = reply.metadata.reply_to_message_id
            if message_id not in asked or message_id in replies:
                continue
            if reply.has_error():
                log.warning("site %s: Flower error %s", asked[message_id], reply.error.code)
                replies[message_id] = None
            else:
                replies[message_id] = _payload(reply)
        return replies


REASONS: dict[SiteState, str] = {
    "offline": "{site} is not connected, waited {waited_s:.0f} s",
    "gone": "{site} was lost while it computed, waited {waited_s:.0f} s",
    "late": "{site} has not answered within {waited_s:.0f} s: the round's deadline",
    "computing": "",
    "answered": "",
}


def _news(state: SiteState, waited_s: float, site: str) -> SiteNews:
    reason = REASONS[state].format(site=site, waited_s=waited_s)
    return {"state": state, "waited_s": round(waited_s, 1), "reason": reason}


def _payload(reply: Message) -> bytes:
    """What a site answered; anything but bytes becomes a message that no check accepts."""
    try:
        payload = reply.content["answer"]["payload"]
    except Exception:  # a site may send whatever it likes
        return b""
    return payload if isinstance(payload, bytes) else b""
