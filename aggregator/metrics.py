"""What monitoring asks `aggregator up`: Prometheus metrics on loopback, at ``metrics_port``.

Labels are names that the coordinator gave (services, sites), digests of runs, codes, and routes as
they are declared; never a path, a token or the name of a person.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from aggregator.database import DatabaseError, look
from aggregator.doctor.certificates import expiry
from aggregator.enrolment import EnrolmentError, SiteState, site_states
from aggregator.events import Event, note, said
from aggregator.home import AggregatorHome
from aggregator.journal_tally import UNUSED, JournalTally
from aggregator.lifecycle import ALLOWED, ENDED, RunState, read_state
from aggregator.runs import RunError
from aggregator.schema import VersionRow, WithdrawalRow
from aggregator.supervisor import Supervisor
from aggregator.vacuum import size_of
from shared.metrics_server import metrics_served

FOLDER = "metrics"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where API processes leave their counts."""
ANSWER_WITHIN_S = 3.0
NEWEST_RUNS = 20
"""Of runs that have ended, so many are told of one by one."""


def metrics_folder(home: AggregatorHome) -> Path:
    """Where the API's processes leave their counts; emptied when `up` begins."""
    return home.root / FOLDER


class AggregatorCollector(Collector):
    """The metrics of an aggregator, made when they are asked for."""

    def __init__(self, home: AggregatorHome, supervisor: Supervisor) -> None:
        self._home = home
        self._supervisor = supervisor
        self._journals = JournalTally()

    def collect(self) -> Iterator[Metric]:
        """Each metric; what cannot be told now is left out."""
        about = GaugeMetricFamily("fedstill_aggregator_info", "1, with version", labels=["version"])
        about.add_metric([version("fedstill")], 1)
        yield about
        yield from self._services()
        yield from self._sites()
        yield from self._runs()
        yield from self._journal()
        yield from self._catalog()
        yield from self._machine()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(metrics_folder(self._home)))  # type: ignore[no-untyped-call]
        yield from registry.collect()

    def _services(self) -> Iterator[Metric]:
        alive = GaugeMetricFamily(
            "fedstill_service_up", "1 where the program runs", labels=["service"]
        )
        restarts = CounterMetricFamily(
            "fedstill_service_restarts", "times it was started again", labels=["service"]
        )
        for name, runs in self._supervisor.alive().items():
            alive.add_metric([name], runs)
            restarts.add_metric([name], self._supervisor.restarts[name])
        yield alive
        yield restarts
        passed = GaugeMetricFamily(
            "fedstill_aggregator_check_passed",
            "1 where this check of /readyz passes",
            labels=["check"],
        )
        for name, good in readiness(self._home, self._supervisor).items():
            passed.add_metric([name], good)
        yield passed
        events = CounterMetricFamily(
            "fedstill_aggregator_events", "log events since `up` began", labels=["event"]
        )
        for event, count in said().items():
            events.add_metric([event], count)
        yield events

    def _sites(self) -> Iterator[Metric]:
        try:
            states = site_states(self._home)
        except (EnrolmentError, OSError):
            return
        counted = Counter(one.state for one in states)
        total = GaugeMetricFamily("fedstill_sites", "sites by state", labels=["state"])
        for state in ("online", "offline", "unknown", "revoked"):
            total.add_metric([state], counted[state])
        yield total
        yield _each_site(states)

    def _runs(self) -> Iterator[Metric]:
        states: dict[str, RunState | None] = {}
        for run in self._home.runs.glob("[0-9a-f]" * 16):
            try:
                states[run.name] = read_state(run)
            except (RunError, OSError):
                states[run.name] = None
        counted = Counter(one.state if one else "unreadable" for one in states.values())
        total = GaugeMetricFamily("fedstill_runs", "runs by state", labels=["state"])
        for word in (*ALLOWED, "unreadable"):
            total.add_metric([word], counted[word])
        yield total
        known = {name: one for name, one in states.items() if one is not None}
        newest = sorted(known, key=lambda name: known[name].since, reverse=True)[:NEWEST_RUNS]
        done = GaugeMetricFamily("fedstill_run_round", "rounds kept", labels=["run"])
        planned = GaugeMetricFamily("fedstill_run_rounds", "rounds of the run", labels=["run"])
        since = GaugeMetricFamily(
            "fedstill_run_state_timestamp_seconds", "when it came into its state", labels=["run"]
        )
        for name, state in known.items():
            if name in newest or state.state not in ENDED:
                done.add_metric([name], state.round)
                planned.add_metric([name], state.rounds)
                since.add_metric([name], state.since)
        yield from (done, planned, since)

    def _journal(self) -> Iterator[Metric]:
        journals = self._journals.read(self._home.runs)
        rounds = CounterMetricFamily("fedstill_rounds", "rounds that ended", labels=["kind"])
        seconds = CounterMetricFamily("fedstill_round_seconds", "time they took", labels=["kind"])
        for kind, count in journals.rounds.items():
            rounds.add_metric([kind], count)
            seconds.add_metric([kind], journals.seconds[kind])
        moved = CounterMetricFamily(
            "fedstill_round_bytes", "bytes of questions and answers", labels=["direction"]
        )
        moved.add_metric(["up"], journals.bytes_up)
        moved.add_metric(["down"], journals.bytes_down)
        unused = CounterMetricFamily(
            "fedstill_answers_unused",
            "sites without a used answer, by round",
            labels=["reason", "code"],
        )
        for reason, code in {*journals.unused, *((one, "") for one in UNUSED)}:
            unused.add_metric([reason, code], journals.unused[reason, code])
        loss = GaugeMetricFamily(
            "fedstill_run_matching_loss", "matching distance after its last round", labels=["run"]
        )
        for run, value in journals.loss.items():
            loss.add_metric([run], value)
        yield from (rounds, seconds, moved, unused, loss)

    def _catalog(self) -> Iterator[Metric]:
        address = self._home.catalog
        if isinstance(address, Path) and not address.exists():
            return
        try:
            engine = look(address)
            try:
                with Session(engine) as session:
                    published = session.scalar(select(func.count()).select_from(VersionRow))
                    withdrawn = session.scalar(select(func.count()).select_from(WithdrawalRow))
            finally:
                engine.dispose()
        except (DatabaseError, SQLAlchemyError):
            return
        yield CounterMetricFamily("fedstill_publishes", "versions published", value=published)
        yield CounterMetricFamily("fedstill_withdrawals", "versions withdrawn", value=withdrawn)

    def _machine(self) -> Iterator[Metric]:
        home = self._home
        ends = GaugeMetricFamily(
            "fedstill_certificate_expiry_timestamp_seconds",
            "when it ends, seconds since 1970",
            labels=["certificate"],
        )
        for name, file in (("ca", "ca.crt"), ("server", "server.crt")):
            moment = expiry(home.tls / file)
            if moment is not None:
                ends.add_metric([name], moment)
        yield ends
        free = GaugeMetricFamily("fedstill_disk_free_bytes", "free on its disk", labels=["place"])
        free.add_metric(["home"], shutil.disk_usage(home.root).free)
        blobs = Path(home.blobs)
        if "://" not in str(home.blobs) and blobs.is_dir():
            free.add_metric(["blobs"], shutil.disk_usage(blobs).free)
        yield free
        yield GaugeMetricFamily(
            "fedstill_flower_database_bytes",
            "size of Flower's database",
            value=size_of(home.database),
        )


def _each_site(states: list[SiteState]) -> Metric:
    online = GaugeMetricFamily("fedstill_site_online", "1 where it is connected", labels=["site"])
    for one in states:
        if one.state in ("online", "offline"):
            online.add_metric([one.name], one.state == "online")
    return online


def readiness(home: AggregatorHome, supervisor: Supervisor) -> dict[str, bool]:
    """The checks of ``/readyz``: every program runs, and the API has what it needs."""
    checks = dict(supervisor.alive())
    try:
        answer = httpx.get(f"{home.api_url}/readyz", timeout=ANSWER_WITHIN_S, trust_env=False)
        said_by_api = answer.json()["checks"]
        checks |= {name: bool(said_by_api.get(name)) for name in ("database", "store")}
    except (httpx.HTTPError, ValueError, KeyError, AttributeError):
        checks |= {"api": False, "database": False, "store": False}
    return checks


@contextmanager
def monitored(
    home: AggregatorHome, supervisor: Supervisor, *, tell: Callable[..., None] = note
) -> Iterator[None]:
    """Serves them at ``metrics_port`` meanwhile, if one is set; raises ``PortError``."""
    port = home.settings.metrics_port
    if port == 0:
        yield
        return
    collector = AggregatorCollector(home, supervisor)
    with metrics_served(port, collector, lambda: readiness(home, supervisor)):
        tell(Event.METRICS_SERVED, port=port)
        yield
