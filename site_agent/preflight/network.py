"""Checks of the way to the aggregator, which is asked as the site's SuperNode asks it.

Two questions are put, without a key and without a body: GET of a route that sites use, and of one
that no site may reach. Neither changes anything there.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from urllib.request import getproxies, proxy_bypass

import httpx

from shared.findings import Finding, failed, good, unjudged, warning
from site_agent.settings import SiteSettings

FLEET_ROUTE = "/v1/fleet/pull-messages"
CONTROL_ROUTE = "/v1/control/list-nodes"
TIMEOUT_S = 10.0
AHEAD_S, BEHIND_S = 5.0, 300.0
"""The SuperLink takes no question that is dated so far from its own time: flwr's tolerances."""
NOTABLE_SKEW_S = 2.0
SERVER_DAYS = 14
NOT_YET_VALID, EXPIRED = 9, 10
OTHER_NAME = (62, 64)
"""OpenSSL's codes of what a certificate fails: its host name, its IP address."""


@dataclass(frozen=True)
class Exchange:
    """What the aggregator answered, or why it did not."""

    error: Exception | None = None
    fleet: int = 0
    """HTTP status of the route that sites use."""
    control: int = 0
    """The same of the one that nobody may reach."""
    protocol: str = ""
    ends: float = 0.0
    """When the server's certificate ends, seconds of Unix."""
    ahead_s: float | None = None
    """How far this machine's clock is ahead of the aggregator's."""


@dataclass(frozen=True)
class Line:
    """The way to the aggregator; it is asked once, at the first look at ``exchange``."""

    settings: SiteSettings

    @property
    def host(self) -> str:
        """Without the port, and an IPv6 address without its brackets."""
        return self.settings.aggregator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of the aggregator."""
        return int(self.settings.aggregator.rpartition(":")[2])

    @property
    def proxy(self) -> str | None:
        """Name of the environment's variable that sets a proxy for the aggregator."""
        if proxy_bypass(self.host):
            return None
        found = getproxies()
        return next((f"{kind}_proxy" for kind in ("https", "all") if kind in found), None)

    @property
    def has_authority(self) -> bool:
        """Whether there is a certificate to trust."""
        return self.settings.ca_path.exists()

    @cached_property
    def exchange(self) -> Exchange:
        """Asks the aggregator."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=self.settings.ca_path.read_text("ascii"))
            with httpx.Client(
                base_url=f"https://{self.settings.aggregator}", verify=context, timeout=TIMEOUT_S
            ) as client:
                return _ask(client)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
            return Exchange(error=error)


def _ask(client: httpx.Client) -> Exchange:
    with client.stream("GET", FLEET_ROUTE) as answer:
        now = time.time()
        stream = answer.extensions["network_stream"].get_extra_info("ssl_object")
        date = answer.headers.get("date", "")
        ahead_s = None
        if date:
            # It has whole seconds: half of one more is the best guess.
            ahead_s = now - parsedate_to_datetime(date).timestamp() - 0.5
        protocol = stream.version() or "TLS"
        ends = float(ssl.cert_time_to_seconds(stream.getpeercert()["notAfter"]))
        fleet = answer.status_code
    control = client.get(CONTROL_ROUTE).status_code
    return Exchange(fleet=fleet, control=control, protocol=protocol, ends=ends, ahead_s=ahead_s)


def names(line: Line) -> Finding:
    """Whether the aggregator's name is known here."""
    check = "DNS"
    try:
        ipaddress.ip_address(line.host)
        return good(check, f"{line.host} is an address")
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(line.host, line.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        if line.proxy is not None:
            return good(check, f"{line.host} is not known here; the proxy looks it up")
        return failed(
            check,
            f"{line.host} is not known here",
            "check the address in site.toml, and this machine's name server (/etc/resolv.conf)",
        )
    return good(check, f"{line.host} is {found[0][4][0]}")


def proxy(line: Line) -> Finding:
    """Whether a proxy stands in between, and lets the site through."""
    check, variable = "proxy", line.proxy
    if variable is None:
        return good(check, "none")
    if not line.has_authority:
        return unjudged(check, f"{variable} applies; not tried", "join first")
    if line.exchange.error is not None and _certificate_error(line.exchange.error) is None:
        return failed(
            check,
            f"{variable} applies, and the aggregator does not answer through it",
            f"let the proxy pass CONNECT {line.settings.aggregator}, "
            f"or put {line.host} into NO_PROXY",
        )
    return good(check, f"{variable} applies")


def tls(line: Line) -> Finding:
    """Whether the aggregator proves to be the one of the kit, and for how long it can."""
    check = "TLS"
    if not line.has_authority:
        return unjudged(check, "there is no certificate to trust yet", "join first")
    exchange = line.exchange
    if exchange.error is not None:
        return _handshake_failure(line, exchange.error)
    left = int((exchange.ends - time.time()) // 86_400)
    if left < SERVER_DAYS:
        return warning(
            check,
            f"the aggregator's certificate ends in {left} days",
            "tell the coordinator: `aggregator up`, started again, renews it",
        )
    return good(check, f"{exchange.protocol}; the server's certificate is good for {left} days")


def _handshake_failure(line: Line, error: Exception) -> Finding:
    check, address = "TLS", line.settings.aggregator
    wrong = _certificate_error(error)
    if wrong is None:
        return failed(
            check,
            f"{address} does not answer ({type(error).__name__})",
            "let this machine's firewall pass outgoing connections to that port; else ask the "
            "coordinator whether the aggregator is up",
        )
    if wrong.verify_code in (NOT_YET_VALID, EXPIRED):
        return failed(
            check,
            "the aggregator's certificate is not valid at this machine's time",
            "set the clock (NTP); if it is right, tell the coordinator",
        )
    if wrong.verify_code in OTHER_NAME:
        return failed(
            check,
            f"the aggregator's certificate is not for {line.host}",
            "use the name of the kit in site.toml, or tell the coordinator: `aggregator init "
            f"--public-name {line.host}`",
        )
    return failed(
        check,
        f"what answers at {address} is not vouched for by aggregator-ca.crt",
        "ask the coordinator for a new kit; if a firewall opens TLS, have it leave this "
        "connection alone",
    )


def clock(line: Line) -> Finding:
    """Whether this machine's time is the aggregator's: questions are dated and signed."""
    check = "clock"
    if not line.has_authority:
        return unjudged(check, "nobody to ask for the time yet", "join first")
    ahead_s = line.exchange.ahead_s
    if ahead_s is None:
        return unjudged(check, "the aggregator does not tell its time", "see TLS")
    if abs(ahead_s) >= NOTABLE_SKEW_S:
        rate = warning if -BEHIND_S < ahead_s < AHEAD_S else failed
        return rate(
            check,
            f"this machine's clock is {abs(ahead_s):.0f} s "
            f"{'ahead of' if ahead_s > 0 else 'behind'} the aggregator's",
            "set it by NTP (`timedatectl set-ntp true`)",
        )
    return good(check, f"within {NOTABLE_SKEW_S:.0f} s of the aggregator's")


def fleet(line: Line) -> Finding:
    """Whether sites' routes can be reached, and those that could start code cannot."""
    check = "fleet API"
    if not line.has_authority:
        return unjudged(check, "the aggregator cannot be asked yet", "join first")
    exchange = line.exchange
    if exchange.error is not None:
        return unjudged(check, "the aggregator does not answer", "see TLS")
    if exchange.fleet != httpx.codes.METHOD_NOT_ALLOWED:
        down = exchange.fleet in (502, 503, 504)
        return failed(
            check,
            f"/v1/fleet answers with HTTP {exchange.fleet}",
            "tell the coordinator: "
            + ("is `aggregator up` running?" if down else "the edge proxy must pass /v1/fleet/*"),
        )
    closed = exchange.control in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)
    if closed:
        return good(check, "/v1/fleet answers, and nothing beside it")
    if any(_is_loopback(address) for address in _addresses(line)):
        return good(check, "/v1/fleet answers; the aggregator is on this machine")
    return failed(
        check,
        "/v1/control answers too: whoever reaches it can start code at the aggregator",
        "tell the coordinator to put the edge proxy in front, and not to connect before",
    )


def _certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    for link in _causes(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            return link
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _addresses(line: Line) -> list[str]:
    try:
        found = socket.getaddrinfo(line.host, line.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
