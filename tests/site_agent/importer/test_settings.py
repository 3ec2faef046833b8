from datetime import date

import pytest

from site_agent.settings import SettingsError, read_settings

GOOD = 'name = "site-a"\naggregator = "host.example:443"\nimages = "spool"\n'


def read(home, text):
    (home / "site.toml").write_text(GOOD + text)
    (home / "policy.toml").write_text("")
    return read_settings(home)


def test_without_a_table_nothing_is_imported(tmp_path):
    settings = read(tmp_path, "")
    assert settings.importer.listen is None
    assert settings.importer.dicomweb is None
    assert settings.spool_path == settings.images == tmp_path / "spool"


def test_both_sources(tmp_path):
    settings = read(
        tmp_path,
        """
[importer]
spool = "/srv/spool"
quota_gb = 2
[importer.listen]
callers = ["PACS", "CT 1"]
[importer.dicomweb]
url = "https://pacs.example/dicom-web/"
studied_from = 2024-01-31
token_file = "token"
[importer.dicomweb.study_filters]
StudyDescription = "*thorax*"
""",
    ).importer
    assert settings.quota_bytes == 2 * 10**9
    assert settings.listen.callers == ("PACS", "CT 1")
    assert settings.listen.address == "127.0.0.1"
    assert settings.dicomweb.url == "https://pacs.example/dicom-web"
    assert settings.dicomweb.studied_from == date(2024, 1, 31)
    assert settings.dicomweb.beside(tmp_path).token_file == tmp_path / "token"


LISTEN = '[importer.listen]\ncallers = ["A"]\n'
WEB = '[importer.dicomweb]\nurl = "https://h/d"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[importer]\nquota = 3\n", r"importer\.quota: unknown setting.*known: spool, quota_gb"),
        ("[importer.listen]\n", r"importer\.listen\.callers: missing"),
        ("[importer.listen]\ncallers = []\n", r"importer\.listen\.callers: .*at least 1"),
        ('[importer.listen]\ncallers = ["A\\\\B"]\n', r"callers\.0: write an AE title"),
        (LISTEN + 'address = "pacs"\n', r"importer\.listen\.address: write an IP address"),
        (LISTEN + "port = 0\n", r"importer\.listen\.port: .*greater"),
        (LISTEN + "aet = 1\n", r"importer\.listen\.aet: unknown setting.*known: ae_title"),
        ('[importer.dicomweb]\nurl = "pacs/dicom-web"\n', r"url: write the root"),
        ('[importer.dicomweb]\nurl = "https://me:pw@h/d"\n', r"url: no user.*login_file"),
        ('[importer.dicomweb]\nurl = "http://h/d"\n', r"http:// sends images in the clear"),
        (WEB + 'token_file = "t"\nlogin_file = "l"\n', r"set one of them"),
        (WEB + "studied_from = 2024-02-01\nstudied_to = 2024-01-01\n", r"is after studied_to"),
        (WEB + 'study_filters = { "x&y" = "1" }\n', r"study_filters"),
    ],
)
def test_mistakes_are_named_with_their_fix(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message) as raised:
        read(tmp_path, text)
    assert "me:pw" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost:8042/dicom-web", "http://127.0.0.1/d"])
def test_plain_http_on_this_machine(tmp_path, url):
    assert read(tmp_path, f'[importer.dicomweb]\nurl = "{url}"\n').importer.dicomweb.url == url


def test_plain_http_elsewhere_by_decision_alone(tmp_path):
    text = '[importer.dicomweb]\nurl = "http://pacs/d"\nplain_http = true\n'
    assert read(tmp_path, text).importer.dicomweb.plain_http
