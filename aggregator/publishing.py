"""From a finished run to a version: build its files, ask the gates, publish; three steps, one path.

``build`` writes what would be published into the run's folder, ``gate`` asks the gates, ``publish``
signs and hands out exactly what was built, where the gates passed on just that. Where
``aggregator.toml`` says ``two_principals = true``, who publishes is not who built. That stands
against a slip and a stolen token, not against somebody who can write into the aggregator's home.
"""

import getpass
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from aggregator.access.tokens import Tokens, digest, principal_of
from aggregator.database import Database
from aggregator.gates import GateReport, evidence_of, measured, read_gates, run_gates
from aggregator.home import AggregatorHome
from aggregator.lifecycle import mark_published, read_state
from aggregator.release import (
    PublishError,
    Release,
    build_files,
    manifest_of,
    publish_files,
    read_pairs,
)
from aggregator.runs import ATTACKS, RunError, is_finished, read_run_contract
from aggregator.utility import UTILITY, GateError, gate, pairs_digest
from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen
from shared.release.manifest import sha256

RELEASE = "release"
"""Folder, in the run's, of the files as they would be published."""
BUILD = "build.json"
MAY_PUBLISH = frozenset(("launch:run", "admin"))
"""Scopes of tokens whose owners may build and publish."""


class PrincipalError(RuntimeError):
    """Somebody who may not do this; says what is missing."""


class Build(Frozen):
    """What was built, of what, by whom."""

    contract_digest: Hex32
    pairs_sha256: Hex32
    evidence: Hex32
    manifest: Hex32
    at: AwareDatetime
    by: str


def principal(home: AggregatorHome, *, named: str | None, token: str | None) -> str:
    """Who acts: the owner of a valid token, else a name given, else this machine's user.

    With ``two_principals`` a token alone counts. Raises ``PrincipalError``.
    """
    if token:
        database = Database(home.catalog)
        try:
            found = principal_of(Tokens(database).find(digest(token.strip())))
        finally:
            database.close()
        if found is None or not found.scopes & MAY_PUBLISH:
            raise PrincipalError(
                "the token is not valid, or lacks the scope launch:run: `aggregator token create "
                "NAME --scope launch:run` makes one"
            )
        if named not in (None, found.name):
            raise PrincipalError(f"the token is {found.name}'s, not {named}'s: leave --as out")
        return found.name
    if home.settings.two_principals:
        raise PrincipalError(
            "aggregator.toml says two_principals = true, so who acts must show a token of scope "
            "launch:run: --token-file FILE, or FEDSTILL_TOKEN"
        )
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def find_run(home: AggregatorHome, text: str) -> Path:
    """The run of a contract's digest, its begin, or its name. Raises ``RunError``."""
    folders = [one for one in home.runs.iterdir() if (one / "contract.json").exists()]
    folders = [one for one in folders if not one.name.startswith("dry-")]
    found = [one for one in folders if len(text) >= 4 and one.name.startswith(text[:16].lower())]
    found = found or [one for one in folders if read_run_contract(one).name == text]
    if len(found) != 1:
        many = ", ".join(sorted(one.name for one in found))
        raise RunError(
            f"several runs are called {text}: name one of {many}"
            if found
            else f"no run is called {text}: give the contract's digest, its begin, or its name"
        )
    return found[0]


def build_release(home: AggregatorHome, run: Path, *, by: str) -> Build:
    """Writes the release's files into the run's folder, in place of those of an earlier build.

    Raises ``RunError`` where the run has not ended, ``PublishError`` where it is not fit to be
    published.
    """
    contract = _finished(run)
    lq, hq = read_pairs(run / "pairs.safetensors", contract=contract)
    evidence, utility = evidence_of(run), measured(run / UTILITY)
    if utility is not None:
        decided = gate(utility, margin_db=contract.evaluation.margin_db)
        utility = {**utility, "gate": asdict(decided)}
    files = build_files(
        contract=contract,
        lq=lq,
        hq=hq,
        result=json.loads((run / "result.json").read_bytes()),
        utility=utility,
        attacks=measured(run / ATTACKS),
    )
    build = Build(
        contract_digest=contract.digest(),
        pairs_sha256=pairs_digest(lq, hq),
        evidence=evidence,
        manifest=sha256(manifest_of(contract, files)),
        at=datetime.now(UTC).replace(microsecond=0),
        by=by,
    )
    # What says that it is whole goes first and comes last.
    (run / BUILD).unlink(missing_ok=True)
    folder = run / RELEASE
    for old in folder.iterdir() if folder.exists() else ():
        old.unlink()
    for name, content in files.items():
        write_durably(folder / name, content)
    write_durably(run / BUILD, build.model_dump_json(indent=2).encode())
    return build


def gate_release(home: AggregatorHome, run: Path, *, by: str) -> GateReport:
    """Asks all gates about the run's pairs, and records what they say. Raises as they do."""
    contract = _finished(run)
    lq, hq = read_pairs(run / "pairs.safetensors", contract=contract)
    return run_gates(
        run,
        contract,
        pairs_sha256=pairs_digest(lq, hq),
        required=home.settings.require_utility,
        by=by,
    )


def publish_release(home: AggregatorHome, run: Path, *, by: str) -> Release:
    """Publishes what was built; the same again is the version it has already.

    Raises ``GateError`` where the gates did not pass on it or were not asked, ``PublishError``
    where it was not built or was changed, ``PrincipalError`` where two are wanted and its builder
    is who publishes.
    """
    contract, build, report = _finished(run), _built(run), read_gates(run)
    if report is None:
        raise GateError("gates.json", "the gates were not asked", "run `aggregator release gate`")
    report.refuse_failed()
    about = (build.contract_digest, build.pairs_sha256, build.evidence)
    if about != (report.contract_digest, report.pairs_sha256, report.evidence):
        raise GateError("gates.json", "is of something else than was built", "build and gate again")
    if build.contract_digest != contract.digest() or build.evidence != evidence_of(run):
        raise GateError("gates.json", "the run has changed since", "build and gate again")
    if home.settings.two_principals and build.by == by:
        raise PrincipalError(
            f"{by} built this release, and aggregator.toml says two_principals = true: somebody "
            "else publishes it"
        )
    files = {one.name: one.read_bytes() for one in sorted((run / RELEASE).iterdir())}
    if sha256(manifest_of(contract, files)) != build.manifest:
        raise PublishError(RELEASE, "its files are not those that were built: build again")
    release = publish_files(home=home.root, contract=contract, files=files)
    mark_published(run)
    return release


def _finished(run: Path) -> RunContract:
    if not is_finished(run):
        raise RunError("the run has not ended: launch its contract again to go on with it")
    if read_state(run).state == "aborted":  # its pairs may be there: it was being judged
        raise RunError("the run was aborted: nothing of it is published")
    return read_run_contract(run)


def _built(run: Path) -> Build:
    try:
        return Build.model_validate_json((run / BUILD).read_bytes())
    except FileNotFoundError:
        raise PublishError(BUILD, "is absent: run `aggregator release build` first") from None
    except (OSError, ValidationError):
        raise PublishError(BUILD, "is damaged: run `aggregator release build` again") from None
