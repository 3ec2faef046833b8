import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from aggregator import certificates
from aggregator.home import AggregatorHome
from site_agent.preflight import network
from site_agent.preflight.network import Line
from site_agent.settings import SiteSettings

NewSite = Callable[..., SiteSettings]
Edge = Callable[..., AbstractContextManager[int]]


def test_an_aggregator_behind_its_edge_is_good(new_site: NewSite, edge: Edge) -> None:
    with edge() as port:
        line = Line(new_site(port))
        found = [check(line) for check in (network.names, network.proxy, network.tls)]
        found += [network.clock(line), network.fleet(line)]
    assert {one.verdict for one in found} == {"good"}, found
    assert "TLSv1.3" in found[2].problem


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "word"),
    [
        (-8, "failed", "ahead of"),
        (-3.6, "warning", "ahead of"),
        (0, "good", "within"),
        (30, "warning", "behind"),
        (400, "failed", "behind"),
    ],
)
def test_the_clock_is_judged_as_the_superlink_does(
    new_site: NewSite, edge: Edge, ahead_s: float, verdict: str, word: str
) -> None:
    with edge(ahead_s=ahead_s) as port:
        found = network.clock(Line(new_site(port)))
    assert found.verdict == verdict and word in found.problem


@pytest.mark.parametrize(
    ("statuses", "verdict", "fix"),
    [
        ({"fleet": 403}, "failed", "edge proxy must pass"),
        ({"fleet": 502}, "failed", "aggregator up"),
        ({"control": 405}, "good", ""),
        ({"control": 404}, "good", ""),
    ],
)
def test_the_fleet_api_must_be_reached_alone(
    new_site: NewSite, edge: Edge, statuses: dict[str, int], verdict: str, fix: str
) -> None:
    with edge(statuses=statuses) as port:
        found = network.fleet(Line(new_site(port)))
    assert found.verdict == verdict and fix in found.fix


def test_a_control_api_that_the_world_can_reach_is_a_failure(
    new_site: NewSite, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge(statuses={"control": 405}) as port:
        line = Line(new_site(port))
        assert line.exchange.error is None
    monkeypatch.setattr(network, "_addresses", lambda _: ["192.0.2.1"])
    assert network.fleet(line).verdict == "failed"
    monkeypatch.setattr(network, "_addresses", lambda _: ["127.0.0.1"])
    assert network.fleet(line).verdict == "good"


def test_nobody_there_is_told_from_somebody_else(
    new_site: NewSite, edge: Edge, aggregator: AggregatorHome
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        line = Line(new_site(taken.getsockname()[1]))  # nobody listens
        found = network.tls(line)
    assert found.verdict == "failed" and "does not answer" in found.problem
    assert {network.clock(line).verdict, network.fleet(line).verdict} == {"unjudged"}
    for name in ("ca", "server"):
        (aggregator.tls / f"{name}.crt").unlink()
    certificates.ensure_certificates(aggregator.tls, names=["localhost"])
    with edge() as port:
        settings = line.settings.model_copy(update={"aggregator": f"localhost:{port}"})
        found = network.tls(Line(settings))
    assert found.verdict == "failed" and "not vouched for" in found.problem


def test_a_certificate_for_another_name_is_named(new_site: NewSite, edge: Edge) -> None:
    with edge(host="127.0.0.2") as port:
        settings = new_site(port).model_copy(update={"aggregator": f"127.0.0.2:{port}"})
        found = network.tls(Line(settings))
    assert found.verdict == "failed" and "is not for 127.0.0.2" in found.problem


@pytest.mark.parametrize(
    ("days", "verdict", "word"),
    [(10, "warning", "ends in"), (-0.01, "failed", "not valid at")],
)
def test_a_certificate_that_ends_is_told_in_time(
    new_site: NewSite,
    edge: Edge,
    aggregator: AggregatorHome,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    verdict: str,
    word: str,
) -> None:
    (aggregator.tls / "server.crt").unlink()
    monkeypatch.setattr(certificates, "SERVER_DAYS", days)
    certificates.ensure_certificates(aggregator.tls, names=["localhost"])
    monkeypatch.undo()
    with edge() as port:
        found = network.tls(Line(new_site(port)))
    assert found.verdict == verdict and word in found.problem


def test_a_proxy_that_lets_nothing_through_is_named_without_its_address(
    new_site: NewSite, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge() as port:
        settings = new_site(port)
        monkeypatch.setenv("HTTPS_PROXY", "http://user:CANARY@127.0.0.1:1")
        found = network.proxy(Line(settings))
        assert found.verdict == "failed" and "https_proxy applies" in found.problem
        assert "CANARY" not in found.problem + found.fix
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert network.proxy(Line(settings)).verdict == "good"


def test_a_name_that_nobody_knows_is_told(new_site: NewSite) -> None:
    settings = new_site(1)
    unknown = settings.model_copy(update={"aggregator": "aggregator.invalid:443"})
    assert network.names(Line(unknown)).verdict == "failed"
    address = settings.model_copy(update={"aggregator": "[::1]:443"})
    assert network.names(Line(address)).verdict == "good"
