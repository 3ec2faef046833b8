"""Doctor: everything that keeps an aggregator from working, or soon will, each with its fix.

Changes nothing, also not a database that is to be brought up. What cannot be judged before
something else is mended says so.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from aggregator.doctor import certificates, machine, records, sense
from aggregator.home import AggregatorHome, HomeError
from shared.findings import Check, failed, good


def checks(root: Path, *, deep: bool = False) -> Iterator[Check]:
    """The checks of the home in ``root``; ``deep``: every blob is read, not a sample of them."""
    home = AggregatorHome(root.resolve())
    try:
        settings = home.settings
    except HomeError as error:
        yield Check("settings", partial(failed, "settings", str(error), "as it says there"))
        return
    yield Check("settings", partial(good, "settings", f"sites reach {settings.public_address}"))
    yield Check("settings together", partial(sense.together, settings))
    yield Check("two principals", partial(sense.principals, home))
    yield Check("up", partial(machine.up, home))
    yield Check("SuperLink", partial(machine.superlink_port, home))
    yield Check("API", partial(machine.api_port, home))
    yield Check("edge", partial(machine.edge, home))
    yield Check("metrics", partial(machine.metrics_port, home))
    yield Check("clock", partial(machine.clock, home))
    yield Check("disk", partial(machine.disk, home))
    yield Check("CA", partial(certificates.authority, home))
    yield Check("certificate", partial(certificates.server, home))
    yield Check("keys", partial(certificates.keys, home))
    yield Check("key files", partial(certificates.private, home))
    yield Check("catalog", partial(records.catalog, home))
    yield Check("blobs", partial(records.blobs, home, deep=deep))
    yield Check("Flower's database", partial(records.flower, home))
    yield Check("runs", partial(records.runs, home))
    yield Check("sites", partial(records.sites, home))
