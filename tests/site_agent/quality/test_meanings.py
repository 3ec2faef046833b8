from site_agent.intake.reasons import Finding, SkipReason
from site_agent.quality.meanings import MEANINGS, ODDITIES


def test_every_code_has_a_meaning_and_a_remedy():
    assert set(MEANINGS) == set(SkipReason)
    assert set(ODDITIES) == set(Finding)
    assert all(meaning and remedy for meaning, remedy in MEANINGS.values())
