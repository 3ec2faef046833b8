"""How our processes share a machine's cores with others."""

import os


def yield_cores() -> None:
    """Lets torch's threads sleep while they wait for each other. Call it before torch is imported.

    By default they spin; where anything else needs a core, a step of two spinning threads took ten
    times as long as one of a single thread. ``OMP_WAIT_POLICY`` in the environment has precedence.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
