"""The Flower app bundle (FAB): a ``pyproject.toml`` and nothing else.

Its components name modules of the installed package, so a run ships no code: the aggregator runs
the code it has installed, and a site runs its own whatever the bundle says.
"""

import hashlib
import warnings

from flwr.cli.build import build_fab_from_files

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedstill"
version = "1.0.0"
description = "Federated dataset distillation: the code is the installed package's"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]

[tool.flwr.app]
publisher = "fedstill"

[tool.flwr.app.components]
serverapp = "aggregator.serverapp:app"
clientapp = "site_agent.clientapp:app"

[tool.flwr.app.config]
run = ""
"""


def build_bundle() -> tuple[bytes, str]:
    """The bundle and its SHA-256 (hex)."""
    with warnings.catch_warnings():  # Flower names a pattern style that its library renamed
        warnings.simplefilter("ignore", DeprecationWarning)
        bundle, _ = build_fab_from_files({"pyproject.toml": PYPROJECT.encode()})
    return bundle, hashlib.sha256(bundle).hexdigest()
