import json

import numpy as np
import pytest
from typer.testing import CliRunner

from site_agent.cli import app
from site_agent.cohort import CohortError
from site_agent.intake.record import RECORD_FILE
from site_agent.quality import quality_report
from site_agent.settings import read_settings


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def home(tmp_path, write_slice):
    """A site of six patients, indexed; two have a second kernel, one file is no image."""
    images, home = tmp_path / "images", tmp_path / "home"
    generator = np.random.default_rng(0)
    for patient in range(6):
        elements = {
            "patient_id": f"CANARY{patient}",
            "FrameOfReferenceUID": f"1.2.3.{patient}",
            "Manufacturer": "SIEMENS",
        }
        for series, noise in (("4", 5), ("5", 60))[: 1 + (patient < 2)]:
            values = 1024 + 40 + noise * generator.standard_normal((64, 64))
            write_slice(
                images / f"{patient}" / f"{series}.dcm",
                np.rint(values).astype(np.uint16),
                series=f"1.2.{patient}.{series}",
                ConvolutionKernel={"4": "B30f", "5": "DOE^JANE"}[series],
                **elements,
            )
    (images / "notes.txt").write_text("CANARY")
    run("init", "--home", home, "--name", "a", "--aggregator", "localhost:1", "--images", images)
    assert run("index", "--home", home).exit_code == 0
    return home


def test_a_report_counts_what_was_indexed(home):
    found = quality_report(read_settings(home))
    assert (found.files, found.quarantined, found.kept_patients, found.kept_slices) == (9, 1, 6, 8)
    assert (found.inventory.patients, found.inventory.series) == (6, 8)
    assert found.inventory.makers == {"Siemens": 8}
    assert found.inventory.kernels == {"B30f": 6, "other": 2}
    assert found.eligible.enough
    assert [(one.code, one.count) for one in found.codes] == [("not-an-image", 1)]
    (pairs,) = found.real_pairs
    assert (pairs.kind, pairs.patients, pairs.pairs, pairs.enough) == ("kernel", 2, 2, False)
    # Four patients of one noise; of two slices the median lies between theirs.
    assert found.noise.levels == pytest.approx((5, 5, 5, 5, 32, 32), rel=0.15)


def test_page_and_json_name_nobody(home):
    done = run("report", "--home", home)
    assert done.exit_code == 0
    page = home / "report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    told = run("report", "--home", home, "--json").stdout
    assert json.loads(told)["kept_patients"] == 6
    for text in (page.read_text(), told):
        assert not any(word in text for word in ("CANARY", "JANE", str(home.parent), ".dcm"))
    elsewhere = home.parent / "elsewhere.html"
    assert run("report", "--home", home, "--out", elsewhere).exit_code == 0
    assert elsewhere.read_text().startswith("<!doctype html>")


def test_without_an_index_of_its_own_the_fix_is_named(home):
    (home / "cohort" / RECORD_FILE).write_text("{}")
    with pytest.raises(CohortError, match="site-agent index"):
        quality_report(read_settings(home))
    assert run("report", "--home", home).exit_code == 2
    assert run("index", "--home", home).exit_code == 0
    assert run("report", "--home", home).exit_code == 0
