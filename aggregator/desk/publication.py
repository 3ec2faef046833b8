"""Building and publishing for the desk, in a process of its own: ``python -m …``, HOME RUN STEP BY.

Who acts has shown a token to the desk; that counts as it does for `aggregator release`. Writes one
JSON object: what was made, or ``error`` and ``hint``.
"""

import json
import sys
from pathlib import Path

from aggregator.command_line import EXIT_FAILED
from aggregator.home import AggregatorHome
from aggregator.publishing import build_release, gate_release, publish_release
from shared.release.errors import ReleaseError


def make(home: AggregatorHome, run: Path, *, step: str, by: str) -> str:
    """Asks the gates and builds, or publishes what was built; where one person may, all of it.

    Raises as :mod:`aggregator.publishing` does.
    """
    if step == "build" or not home.settings.two_principals:
        gate_release(home, run, by=by).refuse_failed()
        built = build_release(home, run, by=by)
        if step == "build":
            return f"built and gated, manifest {built.manifest[:16]}; not published yet"
    release = publish_release(home, run, by=by)
    return f"published as {release.name} v{release.version}"


def main() -> None:
    """Entry point of the process."""
    home, run, step, by = sys.argv[1:5]
    try:
        told = make(AggregatorHome(Path(home)), Path(run), step=step, by=by)
    except (RuntimeError, ValueError) as error:
        if type(error).__module__.partition(".")[0] not in ("aggregator", "shared"):
            raise
        hint = error.hint if isinstance(error, ReleaseError) else ""
        sys.stdout.write(json.dumps({"error": str(error), "hint": hint}))
        sys.exit(EXIT_FAILED)
    sys.stdout.write(json.dumps({"told": told}))


if __name__ == "__main__":
    main()
