"""Preflight: everything that can keep a site from taking part, looked at before it does.

Changes nothing, sends no image and nothing computed of one, and names no patient and no file of
the images. A check that depends on another that failed says so, and is not judged.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from shared.findings import Check, failed, good
from site_agent.policy_file import POLICY_FILE
from site_agent.preflight import enrolment, images, machine, network, separation
from site_agent.settings import SettingsError, SiteSettings, read_settings

Part = Literal["all", "worker", "connector"]
"""Whose checks: where worker and connector are kept apart, neither can look at everything."""


def checks(home: Path, *, part: Part = "all") -> Iterator[Check]:
    """The checks of a part of the site in ``home``; without valid settings, why they are not."""
    try:
        settings = read_settings(home, policy=part != "connector")
    except SettingsError as error:
        name = "policy" if f"{POLICY_FILE}: " in str(error) else "configuration"
        # The text ends with the fix; ; and : set the parts of it apart.
        yield Check(name, partial(failed, name, str(error), "as it says there"))
        return
    yield Check("configuration", partial(good, "configuration", f"site {settings.name}"))
    # Two users have a home each, and the other's part is not in it.
    has_policy, joins = (
        not settings.is_apart or part != other for other in ("connector", "worker")
    )
    if has_policy:
        yield Check("policy", partial(images.policy, settings))
        yield Check("coordinators", partial(enrolment.coordinators, settings))
    yield Check("keys", partial(enrolment.keys, settings, worker=has_policy, connector=joins))
    if joins:
        yield Check("kit", partial(enrolment.kit, settings))
    if settings.is_apart:
        yield Check("separation", partial(separation.separation, settings))
    yield Check("disk", partial(machine.disk, settings))
    if part != "worker":
        yield from _of_connector(settings)
    if part != "connector":
        yield from _of_worker(settings)


def _of_connector(settings: SiteSettings) -> Iterator[Check]:
    line = network.Line(settings)
    yield Check("DNS", partial(network.names, line))
    yield Check("proxy", partial(network.proxy, line))
    yield Check("TLS", partial(network.tls, line))
    yield Check("clock", partial(network.clock, line))
    yield Check("fleet API", partial(network.fleet, line))
    yield Check("metrics", partial(machine.metrics, settings))


def _of_worker(settings: SiteSettings) -> Iterator[Check]:
    yield Check("GPU", machine.gpu)
    yield Check("memory", machine.memory)
    yield Check("images", partial(images.source, settings))
    yield Check("patients", partial(images.patients, settings))
    yield Check("gradient", partial(machine.gradient, settings))
