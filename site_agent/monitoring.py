"""What the hospital's monitoring asks the connector: ``/metrics``, ``/livez``, ``/readyz``.

Served on loopback alone. Of itself the connector knows when the aggregator last answered; the rest
is the worker's, asked anew for each request (``figures.py``). Counts only: no label holds a name
that somebody else chose.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.metrics_server import metrics_served
from site_agent.events import TALLY, Event, note
from site_agent.figures import Figures, ask_figures
from site_agent.settings import SiteSettings

CONTACT_WITHIN_S = 90.0
"""Ready is who heard from the aggregator so lately: heartbeats come every half minute."""


class SiteCollector(Collector):
    """The metrics of a site, made when they are asked for."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """Each metric; those of the worker's own only where it answers."""
        figures = ask_figures(self._settings.figures_path)
        checks = readiness(self._settings, figures)
        yield GaugeMetricFamily(
            "fedstill_ready", "1 where all checks of /readyz pass", value=all(checks.values())
        )
        passed = GaugeMetricFamily(
            "fedstill_check_passed", "1 where this check of /readyz passes", labels=["check"]
        )
        for name, good in checks.items():
            passed.add_metric([name], good)
        yield passed
        yield GaugeMetricFamily(
            "fedstill_aggregator_contact_timestamp_seconds",
            "when the aggregator last answered, 0: never",
            value=_last_contact(self._settings),
        )
        said = CounterMetricFamily(
            "fedstill_events", "log events since the part began", labels=["part", "event"]
        )
        for event, count in TALLY.read()["events"].items():
            said.add_metric(["connector", event], count)
        if figures is not None:
            for event, count in figures.events.items():
                said.add_metric(["worker", event], count)
            yield from _of_worker(figures)
        yield said


def _of_worker(figures: Figures) -> Iterator[Metric]:
    about = GaugeMetricFamily("fedstill_worker_info", "1, with its version", labels=["version"])
    about.add_metric([figures.version], 1)
    yield about
    yield GaugeMetricFamily(
        "fedstill_worker_start_timestamp_seconds", "when the worker began", value=figures.started
    )
    yield GaugeMetricFamily(
        "fedstill_patients_at_least",
        "patients indexed, rounded down to their bucket",
        value=figures.patients_at_least,
    )
    refused = CounterMetricFamily(
        "fedstill_refusals", "refused requests since the worker began", labels=["code"]
    )
    for code, count in figures.refusals.items():
        refused.add_metric([code], count)
    yield refused
    yield CounterMetricFamily(
        "fedstill_answer_bytes", "bytes of answers made", value=figures.answer_bytes
    )
    yield CounterMetricFamily(
        "fedstill_answer_seconds", "time spent computing them", value=figures.answer_seconds
    )


def readiness(settings: SiteSettings, figures: Figures | None) -> dict[str, bool]:
    """The checks of ``/readyz``: whether a request that comes now would find all it needs."""
    return {
        "worker": figures is not None,
        "cohort": figures is not None and figures.cohort_present,
        "policy": figures is not None and figures.policy_valid,
        "aggregator": time.time() - _last_contact(settings) < CONTACT_WITHIN_S,
    }


def _last_contact(settings: SiteSettings) -> float:
    try:
        return settings.contact_path.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def monitored(settings: SiteSettings) -> Iterator[int]:
    """Serves them at ``metrics_port`` meanwhile; gives the port, 0 where none is set.

    Raises ``PortError`` where the port is not to be had.
    """
    if settings.metrics_port == 0:
        yield 0
        return

    def checks() -> dict[str, bool]:
        return readiness(settings, ask_figures(settings.figures_path))

    with metrics_served(settings.metrics_port, SiteCollector(settings), checks):
        note(Event.METRICS_SERVED, port=settings.metrics_port)
        yield settings.metrics_port
