import tomllib

import pytest

from site_agent.policy import Policy
from site_agent.policy_file import PolicyError, default_policy_text, name_coordinators, read_policy


def read(home, text):
    (home / "policy.toml").write_text(text)
    return read_policy(home)


def test_the_default_file_allows_what_the_defaults_allow(tmp_path):
    assert read(tmp_path, default_policy_text()) == Policy(coordinators=())


def test_every_limit_is_in_the_default_file_and_reads_as_it_is_shown(tmp_path):
    lines = default_policy_text().splitlines()
    shown = [line.removeprefix("# ") for line in lines if " = " in line]
    uncommented = "\n".join(shown)
    assert set(tomllib.loads(uncommented)) == set(Policy.model_fields)
    policy = read(tmp_path, uncommented)
    optional = {name for name, field in Policy.model_fields.items() if field.default is None}
    assert policy.model_copy(update=dict.fromkeys(optional)) == Policy()
    assert all(getattr(policy, name) is not None for name in optional)


def test_a_file_that_names_no_coordinator_takes_nobodys_contract(tmp_path):
    assert read(tmp_path, "min_patients = 6\n").coordinators == ()


@pytest.mark.parametrize("text", [default_policy_text(), "min_patients = 6\n", ""])
def test_coordinators_are_named_once_and_nothing_else_changes(tmp_path, text):
    before = read(tmp_path, text)
    keys = ("1" * 64, "2" * 64)
    assert name_coordinators(tmp_path, keys).coordinators == keys
    assert read_policy(tmp_path) == before.model_copy(update={"coordinators": keys})
    written = (tmp_path / "policy.toml").read_text()
    assert set(text.splitlines()) - set(written.splitlines()) <= {"coordinators = []"}
    # What the hospital decided since stays.
    assert name_coordinators(tmp_path, ("3" * 64,)).coordinators == keys
    assert (tmp_path / "policy.toml").read_text() == written


def test_a_line_that_only_a_person_can_mend_is_told(tmp_path):
    (tmp_path / "policy.toml").write_text("coordinators=[\n]\n")
    with pytest.raises(PolicyError, match=r'put this line there: coordinators = \["1111'):
        name_coordinators(tmp_path, ("1" * 64,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_patient = 3\n", "min_patient: unknown limit, remove it; known: .*min_patients"),
        ("min_patients = 1\n", "min_patients: .*greater than or equal"),
        ('tasks = ["ct"]\n', "tasks.0: .*ct-denoise"),
        ('networks = ["resnet"]\n', "networks.0: .*dncnn"),
        ("[policy]\nmin_patients = 5\n", "policy: unknown limit"),
        ("min_patients = \n", "not valid TOML.*line"),
    ],
)
def test_mistakes_are_named_with_their_fix(tmp_path, text, message):
    with pytest.raises(PolicyError, match=message):
        read(tmp_path, text)


def test_the_digest_is_that_of_what_is_allowed(tmp_path):
    plain = read(tmp_path, "")
    assert plain.digest() == read(tmp_path, "# a remark\nmin_patients = 5\n").digest()
    assert plain.digest() != read(tmp_path, "min_patients = 6\n").digest()
