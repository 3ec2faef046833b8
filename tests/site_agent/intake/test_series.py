import math

from site_agent.intake.folder import read_folder
from site_agent.intake.reasons import Finding, IntakeReport, SkipReason


def report_of(folder):
    report = IntakeReport()
    found = list(
        read_folder(
            folder,
            pseudonym_key=b"",
            slices_per_patient=99,
            report=report,
            modality="CT",
            readers=1,
        )
    )
    return report, sum(len(one.slices) for one in found)


def test_a_gap_a_tilt_and_a_mixture_are_told_and_exclude_nothing(tmp_path, write_slice):
    for z in (0, 2, 4, 10, 12):
        write_slice(tmp_path / f"gap-{z}", series="1.1", position=(0, 0, z))
    tilt = math.radians(15)
    tilted = (1, 0, 0, 0, math.cos(tilt), -math.sin(tilt))
    for z in range(3):
        write_slice(tmp_path / f"tilt-{z}", series="1.2", position=(0, 0, z), orientation=tilted)
    write_slice(tmp_path / "mixed-1", series="1.3", position=(0, 0, 1))
    write_slice(tmp_path / "mixed-2", series="1.3", position=(0, 0, 2), PixelSpacing=[2, 2])
    report, slices = report_of(tmp_path)
    assert slices == 10 and not report.skipped
    assert report.findings == {
        Finding.GAPS: 1,
        Finding.TILTED_GANTRY: 1,
        Finding.MIXED_GEOMETRY: 1,
    }


def test_an_even_series_has_no_findings(tmp_path, write_slice):
    for z in range(5):
        write_slice(tmp_path / str(z), position=(0, 0, 2.5 * z))
    assert report_of(tmp_path)[0].findings == {}


def test_a_place_is_taken_once_a_series(tmp_path, write_slice):
    for name, series in (("a", "1"), ("b", "1"), ("c", "2")):
        write_slice(tmp_path / name, series=series, position=(0, 0, 5))
    report, slices = report_of(tmp_path)
    assert slices == 2
    assert report.skipped == {SkipReason.SAME_PLACE: 1}
