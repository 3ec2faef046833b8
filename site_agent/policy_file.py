"""The policy's file: ``policy.toml`` in the site's home, written once and then the hospital's.

The agent reads it, and never writes it: `site-agent init` does, and `site-agent join` where it
still names no coordinator. A home without one allows nothing: a lost file must not loosen what was
allowed.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from shared.durable import write_durably
from site_agent.policy import Policy

POLICY_FILE = "policy.toml"

_TEMPLATE = """\
# What this site allows. A request beyond any of these limits is refused, whoever sends it, before
# an image is read. The file is the hospital's: site-agent reads it and never writes it again. A
# change holds from the next request on. Lines that begin with # show the default.

# Patients that must stand behind every summary that leaves.
# min_patients = {min_patients}
# Local optimiser steps one request may ask for.
# max_local_steps = {max_local_steps}
# Weight vectors (so: gradients) in one request.
# max_probes = {max_probes}
# Rounds of one contract.
# max_rounds = {max_rounds}
# Requests answered in any hour, and in any 24 hours, over all contracts.
# max_requests_an_hour = {max_requests_an_hour}
# max_requests_a_day = {max_requests_a_day}
# Of any 24 hours, those that may be spent computing answers; and the bytes of the answers that
# may leave. By default neither is limited.
# max_compute_hours_a_day = 8.0
# max_bytes_a_day = 1000000000
# Gradients and descents that may ever be released, over all contracts, noised ones too; at
# granularity "patient" each patient's counts. By default not limited.
# max_gradients = 10000
# Parameters of a contract's networks, and their kinds.
# max_parameters = {max_parameters}
# networks = {networks}
# Tasks the site takes part in.
# tasks = {tasks}
# The length to which a contract must clip one patient's gradient, and a descent, at the least
# strict. By default whatever the contract says.
# max_probe_clip = 0.05
# max_anchor_clip = 3.0
# What a summary may stand for: "cohort" is the mean over the site's patients; "federation", a sum
# over several sites of which nobody learns this one's share; "patient", one gradient a patient,
# says far more of each: see docs/hospital.md before you add it.
# granularities = {granularities}
# Whose contracts are answered: the public keys of coordinators. Nobody's while it is empty;
# `site-agent join` then fills in those of the kit. Remove a key to answer its owner no more.
{coordinators}
# Sites to add up with at granularity "federation": the signing_public_key of each one's
# enrolment.json, got from that hospital itself. Empty: whoever a contract names.
# peers = []
# Patients in one answer at granularity "patient"; further ones are left out.
# max_patients = {max_patients}
# Differential privacy, for every patient: the greatest epsilon of one run, and of all runs together
# as `site-agent budget` counts them. By default neither is set, and runs without noise are taken
# too; where either is set, they are refused.
# max_epsilon = 4.0
# epsilon_budget = 8.0
# The largest delta of a run, and the one at which the budget is counted.
# delta = {delta}
# Of contracts that are judged at the sites: the share of the patients who are kept out of every
# gradient, and whom networks are judged on (0: no such contract), and how many networks of one;
# and answers about networks and images in any 24 hours, over all contracts.
# held_out_share = {held_out_share}
# max_evaluated = {max_evaluated}
# max_judgements_a_day = {max_judgements_a_day}
# Whether a contract's images are compared with your patients before they are published, and how
# much more like them than what they were made from they may be.
# answers_veto = true
# max_likeness_ratio = {max_likeness_ratio}
# Where noise comes from all sites of a secure sum together: the share of them trusted to add it.
# max_honest = {max_honest}
"""
_NOBODY = "coordinators = []"
_LISTS = ("tasks", "networks", "granularities")


class PolicyError(ValueError):
    """A policy that cannot be read or is not valid; the text names the file, the field, the fix."""


def read_policy(home: Path) -> Policy:
    """What ``home/policy.toml`` allows. Raises ``PolicyError``."""
    path = home / POLICY_FILE
    try:
        # A file without the line names nobody: what is not said must not loosen anything.
        return Policy.model_validate({"coordinators": (), **tomllib.loads(path.read_text("utf-8"))})
    except FileNotFoundError:
        raise PolicyError(
            f"{path}: not found, so nothing is allowed; `site-agent policy --default > {path}` "
            "makes one with the defaults, to read through"
        ) from None
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: is not valid TOML: {error}") from None
    except ValidationError as error:
        raise PolicyError(f"{path}: {_explained(error)}") from None


def name_coordinators(home: Path, keys: Sequence[str]) -> Policy:
    """Writes ``keys`` into a policy.toml that names no coordinator; gives what it says then.

    A file that names somebody is left as it is. Raises ``PolicyError``, also where the file cannot
    be written: the text has the line to write by hand.
    """
    policy, path = read_policy(home), home / POLICY_FILE
    if policy.coordinators or not keys:
        return policy
    lines = path.read_text("utf-8").splitlines()
    wanted = f"coordinators = {json.dumps(list(keys))}"
    if _NOBODY in lines:
        lines[lines.index(_NOBODY)] = wanted
    elif not any(line.lstrip().startswith("coordinators") for line in lines):
        lines.append(wanted)
    try:
        write_durably(path, ("\n".join(lines) + "\n").encode(), mode=path.stat().st_mode & 0o777)
    except OSError as error:
        raise PolicyError(
            f"{path}: cannot be written ({error.strerror}): put this line there: {wanted}"
        ) from None
    written = read_policy(home)
    if written.coordinators != tuple(keys):
        raise PolicyError(f"{path}: coordinators: put this line there: {wanted}")
    return written


def default_policy_text() -> str:
    """A ``policy.toml`` with every limit at its default, explained."""
    policy = Policy()
    return _TEMPLATE.format(
        coordinators=_NOBODY,
        **policy.model_dump(exclude={*_LISTS, "coordinators"}),
        **{name: json.dumps(getattr(policy, name)) for name in _LISTS},
    )


def _explained(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(Policy.model_fields)
            parts.append(f"{field}: unknown limit, remove it; known: {known}")
        else:
            parts.append(f"{field}: {item['msg']}")
    return "; ".join(parts)
