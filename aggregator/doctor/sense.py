"""Settings that are valid each and make no sense together."""

import ipaddress
from collections import Counter
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from aggregator.access.tables import TokenRow
from aggregator.access.tokens import stamp
from aggregator.database import DatabaseError, look
from aggregator.home import AggregatorHome, AggregatorSettings
from shared.findings import Finding, failed, good, unjudged, warning

BUILDING = {"launch:run", "admin"}
"""Scopes of who may build or publish a release."""


def together(settings: AggregatorSettings) -> Finding:
    """The first combination that cannot be meant; ports first, for nothing starts with those."""
    check = "settings together"
    unused = {"public_port"} if settings.edge else {"public_port", "edge_port"}
    ports = {
        name: int(getattr(settings, name))
        for name in type(settings).model_fields
        if name.endswith("_port") and name not in unused and getattr(settings, name)
    }
    shared = [port for port, count in Counter(ports.values()).items() if count > 1]
    if shared:
        names = " and ".join(name for name, port in ports.items() if port == shared[0])
        return failed(check, f"{names} are both {shared[0]}", "choose a port for each")
    outside = not _is_loopback(settings.api_host)
    if outside and settings.behind_proxy:
        return warning(
            check,
            f"behind_proxy, and the API listens on {settings.api_host}: who comes past the proxy "
            "writes any address into X-Forwarded-For",
            'set api_host = "127.0.0.1", or let the firewall pass the proxy alone',
        )
    if outside:
        return warning(
            check,
            f"the API listens on {settings.api_host} without TLS: tokens can be read on the way",
            'put the edge proxy in front, behind_proxy = true and api_host = "127.0.0.1"',
        )
    if settings.accel_prefix and not settings.behind_proxy:
        return warning(
            check,
            "accel_prefix without behind_proxy: who asks the API itself gets no file",
            "set behind_proxy = true where nginx is in front, else empty accel_prefix",
        )
    if settings.accel_prefix and "://" in settings.storage:
        return warning(
            check, "accel_prefix does nothing with a bucket as storage", "empty accel_prefix"
        )
    local = settings.public_name == "localhost" or _is_loopback(settings.public_name)
    if local and settings.public_port:
        return warning(
            check,
            f"sites are told to reach {settings.public_address}, which is their own machine",
            "`aggregator init --public-name NAME`, and hand out the kits again",
        )
    return good(check, "they go together")


def principals(home: AggregatorHome) -> Finding:
    """Whether there are two people with a token where a release needs two."""
    check = "two principals"
    if not home.settings.two_principals:
        return good(check, "one is enough, by two_principals")
    try:
        engine = look(home.catalog)
        try:
            with Session(engine) as session:
                rows = session.execute(
                    select(TokenRow.principal, TokenRow.scopes).where(
                        TokenRow.revoked_at.is_(None),
                        TokenRow.expires_at > stamp(datetime.now(UTC)),
                    )
                ).all()
        finally:
            engine.dispose()
    except (DatabaseError, SQLAlchemyError):
        return unjudged(check, "the catalog cannot be read", "see catalog")
    names = {row.principal for row in rows if BUILDING & set(row.scopes.split())}
    if len(names) < 2:
        return failed(
            check,
            f"a release needs two principals, and {len(names)} has a valid token for it",
            "`aggregator token create NAME --scope launch:run` for another person, or "
            "two_principals = false",
        )
    return good(check, f"{len(names)} can build or publish")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
