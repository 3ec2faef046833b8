import pytest

from site_agent.policy import Policy
from site_agent.settings import SettingsError, read_settings

GOOD = 'name = "site-a"\naggregator = "host.example:443"\nimages = "images"\n'


def write(home, text, policy=""):
    (home / "site.toml").write_text(text)
    (home / "policy.toml").write_text(policy)
    return home


def test_settings_with_defaults(tmp_path):
    settings = read_settings(write(tmp_path, GOOD))
    assert settings.name == "site-a"
    assert settings.images == tmp_path / "images"
    assert settings.policy == Policy(coordinators=())  # a file that names nobody
    assert settings.socket_path == tmp_path / "worker.sock"


def test_what_is_offered_is_read(tmp_path):
    assert read_settings(write(tmp_path, GOOD)).modality == "CT"
    settings = read_settings(write(tmp_path, GOOD + 'modality = "MR"\nsequence = "FLAIR"\n'))
    assert (settings.modality, settings.sequence) == ("MR", "FLAIR")


def test_policy_is_read(tmp_path):
    policy = read_settings(write(tmp_path, GOOD, "min_patients = 12\ntasks = []\n")).policy
    assert (policy.min_patients, policy.tasks) == (12, ())


def test_a_policy_in_the_settings_says_where_to_move_it(tmp_path):
    home = write(tmp_path, GOOD + "[policy]\nmin_patients = 12\n")
    with pytest.raises(SettingsError, match=r"\[policy\]: lives in .*policy.toml now: move"):
        read_settings(home)


def test_a_home_without_a_policy_allows_nothing(tmp_path):
    home = write(tmp_path, GOOD)
    (home / "policy.toml").unlink()
    with pytest.raises(SettingsError, match=r"nothing is allowed; `site-agent policy --default"):
        read_settings(home)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("site-a", "Site A"), "name: use lower-case"),
        (GOOD.replace(":443", ""), "aggregator: write HOST:PORT"),
        ('name = "a"\nimages = "i"\n', "aggregator: missing"),
        (GOOD + "imagse = 3\n", "imagse: unknown setting.*known: name"),
        (GOOD + 'home = "/elsewhere"\n', "home: .*remove"),
        (GOOD + "name = \n", "not valid TOML.*line"),
        (GOOD.replace('"images"', "3"), "images: "),
        (GOOD + 'modality = "PET"\n', "modality: .*CT.*MR"),
        (GOOD + 'sequence = "T1"\n', "sequence: is for MR: set modality"),
        (GOOD + 'modality = "MR"\nsequence = ""\n', "sequence: write the begin of a word"),
    ],
)
def test_mistakes_are_named_with_their_fix(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(write(tmp_path, text))


def test_a_home_without_settings_says_how_to_make_them(tmp_path):
    with pytest.raises(SettingsError, match="site-agent init --home"):
        read_settings(tmp_path)
