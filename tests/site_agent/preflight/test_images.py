import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from site_agent.policy import Policy
from site_agent.preflight import images
from site_agent.settings import SiteSettings

NewSite = Callable[..., SiteSettings]


def with_policy(settings: SiteSettings, **limits: object) -> SiteSettings:
    return settings.model_copy(update={"policy": Policy.model_validate(limits)})


def test_a_policy_that_allows_nothing_is_told(new_site: NewSite) -> None:
    settings = new_site(1)
    assert images.policy(settings).verdict == "good"
    other = with_policy(settings, tasks=["mr-sr"])
    assert "none is for CT" in images.policy(other).problem
    assert "granularities" in images.policy(with_policy(settings, granularities=[])).problem


def test_too_few_patients_for_the_policy_are_told(new_site: NewSite) -> None:
    settings = new_site(1, patients=5)
    assert images.patients(settings).verdict == "good"
    found = images.patients(with_policy(settings, min_patients=6))
    assert found.verdict == "failed" and "5 patients, and the policy wants 6" in found.problem
    magnetic = settings.model_copy(update={"modality": "MR"})
    assert "the cohort holds CT" in images.patients(magnetic).problem
    (settings.cohort_path / "index.json").write_text("{}")
    assert images.patients(settings).verdict == "failed"
    shutil.rmtree(settings.cohort_path)
    assert images.patients(settings).verdict == "unjudged"


def test_images_must_be_there_and_should_not_be_writable(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_site(1)

    def access(_: Path, mode: int, writable: bool) -> bool:
        return writable or not mode & os.W_OK

    for writable, verdict in ((True, "warning"), (False, "good")):
        monkeypatch.setattr(os, "access", lambda p, m, writable=writable: access(p, m, writable))
        found = images.source(settings)
        assert found.verdict == verdict and "CANARY" not in found.problem
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be listed" in images.source(settings).problem
    monkeypatch.undo()
    shutil.rmtree(settings.images)
    assert "is not a folder" in images.source(settings).problem
    settings.images.mkdir()
    assert "no file was found" in images.source(settings).problem


def test_a_file_that_cannot_be_read_is_not_named(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_site(1)

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    found = images.source(settings)
    assert found.verdict == "failed" and "Permission denied" in found.problem
    assert "CANARY" not in found.problem + found.fix
