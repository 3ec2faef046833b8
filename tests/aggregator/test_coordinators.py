import json

import pytest
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.coordinators import (
    CoordinatorError,
    add_coordinator,
    coordinators,
    mandate_of,
    revoke_coordinator,
)
from aggregator.home import create_home
from aggregator.runs import keep_mandate, read_mandate

DIGEST = "ab" * 32


@pytest.fixture
def home(tmp_path):
    return create_home(tmp_path / "home", {})


def signed_by(home, name=None):
    mandate = mandate_of(home, name, contract_digest=DIGEST)
    assert mandate.covers(DIGEST) and not mandate.covers("cd" * 32)
    return mandate.coordinator


def test_a_new_home_has_a_key_to_sign_with_and_keeps_it(home):
    (first,) = coordinators(home)
    assert (first.name, first.revoked) == ("first", False)
    assert (home.coordinators / "first.key").stat().st_mode & 0o777 == 0o600
    create_home(home.root, {})
    assert coordinators(home) == [first]
    assert signed_by(home) == first.key


def test_who_signs_is_named_where_it_is_not_plain(home):
    first, anna = coordinators(home)[0], add_coordinator(home, "anna")
    assert (signed_by(home), signed_by(home, "anna")) == (first.key, anna.key)
    revoke_coordinator(home, "first")
    assert signed_by(home) == anna.key
    bob = add_coordinator(home, "bob")
    with pytest.raises(CoordinatorError, match="--coordinator: anna, bob"):
        signed_by(home)
    assert signed_by(home, "bob") == bob.key
    with pytest.raises(CoordinatorError, match=r"no coordinator carl .*anna, bob"):
        signed_by(home, "carl")


def test_a_revoked_key_is_gone_and_no_new_one_takes_its_place(home):
    (first,) = coordinators(home)
    revoke_coordinator(home, "first")
    assert not (home.coordinators / "first.key").exists()
    create_home(home.root, {})
    assert [(one.key, one.revoked) for one in coordinators(home)] == [(first.key, True)]
    with pytest.raises(CoordinatorError, match="aggregator coordinator add NAME"):
        signed_by(home)
    with pytest.raises(CoordinatorError, match="choose another name"):
        add_coordinator(home, "first")
    for name in ("../x", "A", ""):
        with pytest.raises(CoordinatorError, match="use a-z"):
            add_coordinator(home, name)


def test_a_run_keeps_its_first_signature_while_that_key_is_trusted(home, tmp_path):
    anna = add_coordinator(home, "anna")
    by_first, by_anna = (
        mandate_of(home, name, contract_digest=DIGEST) for name in ("first", "anna")
    )
    assert read_mandate(tmp_path) is None
    keep_mandate(tmp_path, by_first, trusted=[by_first.coordinator, anna.key])
    keep_mandate(tmp_path, by_anna, trusted=[by_first.coordinator, anna.key])
    assert read_mandate(tmp_path) == by_first
    keep_mandate(tmp_path, by_anna, trusted=[anna.key])
    assert read_mandate(tmp_path) == by_anna


def test_the_commands_say_the_keys_as_sites_list_them(home):
    def run(*command, code=0):
        done = CliRunner().invoke(app, ["coordinator", *command, "--home", str(home.root)])
        assert done.exit_code == code, done.output
        return done.output

    made = json.loads(run("add", "anna", "--json"))
    assert len(bytes.fromhex(made["key"])) == 32
    assert "first  signs" in run("list") and f"anna  signs  key {made['key']}" in run("list")
    assert "policy.toml" in run("revoke", "anna")
    listed = json.loads(run("list", "--json"))["coordinators"]
    assert [(one["name"], one["revoked"]) for one in listed] == [("first", False), ("anna", True)]
    assert "error: " in run("revoke", "anna", code=1)
