from site_agent.intake.reasons import Finding, IntakeReport, SkipReason
from site_agent.intake.record import RECORD_FILE, keep_record, read_record


def test_a_record_is_of_the_cohort_it_was_written_with(tmp_path):
    report = IntakeReport(files=3, patients=1, slices=2)
    report.skip(SkipReason.BURNED_IN)
    report.findings[Finding.GAPS] += 1
    report.pairs["dose"] = 4
    assert read_record(tmp_path, data="one") is None
    keep_record(tmp_path, report, data="one")
    found = read_record(tmp_path, data="one")
    assert found is not None
    assert (found.files, found.slices, found.pairs) == (3, 2, {"dose": 4})
    assert (found.skipped, found.findings) == ({"burned-in": 1}, {"gaps": 1})
    assert read_record(tmp_path, data="another") is None
    (tmp_path / RECORD_FILE).write_bytes(b"\0")
    assert read_record(tmp_path, data="one") is None
