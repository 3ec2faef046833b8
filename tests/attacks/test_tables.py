from aggregator.attacks.tables import markdown, text

ROWS = [
    {"mode": "patient", "rank1": {"mean": 0.5, "interval": [0.25, None]}, "patients": 3},
    {"mode": "cohort", "rank1": {"mean": 0.05, "interval": [0.0, 0.1]}, "above_it": 2},
]


def test_rows_become_columns_with_their_intervals() -> None:
    assert text(ROWS).splitlines() == [
        "mode     rank1                 above it",
        "patient  0.500 [0.250, –]      –",
        "cohort   0.050 [0.000, 0.100]  2",
    ]


def test_a_page_has_the_same_table() -> None:
    assert markdown(ROWS).splitlines() == [
        "| mode | rank1 | above it |",
        "| --- | --- | --- |",
        "| patient | 0.500 [0.250, –] | – |",
        "| cohort | 0.050 [0.000, 0.100] | 2 |",
    ]
    assert "a\\|b" in markdown([{"what": "a|b"}])
