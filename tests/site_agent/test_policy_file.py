import tomllib

import pytest

from site_agent.policy import Policy
from site_agent.policy_file import PolicyError, default_policy_text, read_policy


def read(home, text):
    (home / "policy.toml").write_text(text)
    return read_policy(home)


def test_the_default_file_allows_what_the_defaults_allow(tmp_path):
    assert read(tmp_path, default_policy_text()) == Policy()


def test_every_limit_is_in_the_default_file_and_reads_as_it_is_shown(tmp_path):
    shown = [line[2:] for line in default_policy_text().splitlines() if " = " in line]
    uncommented = "\n".join(shown)
    assert set(tomllib.loads(uncommented)) == set(Policy.model_fields)
    policy = read(tmp_path, uncommented)
    optional = {name for name, field in Policy.model_fields.items() if field.default is None}
    assert policy.model_copy(update=dict.fromkeys(optional)) == Policy()
    assert all(getattr(policy, name) is not None for name in optional)


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
