import pytest

from site_agent.intake.folder import read_folder
from site_agent.intake.inventory import between
from site_agent.intake.reasons import IntakeReport


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "not said"), (1, "up to 1"), (1.5, "1 to 2"), (2.01, "above 2")],
)
def test_ranges_in_words(value, words):
    assert between(value, (1, 2)) == words


def test_series_are_counted_by_what_they_are(tmp_path, write_slice):
    for z in range(3):
        write_slice(tmp_path / f"a{z}.dcm", position=(0, 0, z), ConvolutionKernel="B30f")
    write_slice(tmp_path / "b.dcm", series="1.2.9", SliceThickness=6, Manufacturer="JANE DOE")
    write_slice(tmp_path / "c.dcm", patient_id="P2", series="1.2.8", Manufacturer="SIEMENS")
    report = IntakeReport()
    list(
        read_folder(
            tmp_path,
            pseudonym_key=b"",
            slices_per_patient=8,
            report=report,
            modality="CT",
            readers=1,
        )
    )
    found = report.inventory
    assert found is not None
    assert (found.patients, found.series) == (2, 3)
    assert found.kernels == {"B30f": 1, "not said": 2}
    assert found.makers == {"not said": 1, "other": 1, "Siemens": 1}
    assert found.thickness_mm == {"1.75 to 2.5": 2, "5 to 7.5": 1}
    assert found.slices == {"1 to 4": 1, "up to 1": 2}
