import math

import pytest

from aggregator.distill.tissues import (
    CONTRASTS,
    SEQUENCES,
    TISSUES,
    appearance,
    ct_number,
    inversion_recovery,
    signal,
    spin_echo,
)


@pytest.mark.parametrize(
    ("tissue", "hu"),
    # Schneider, Bortfeld and Schlegel 2000, table 1 (calculated CT numbers).
    [
        ("lung", -741), ("fat", -98), ("gut", 23), ("pancreas", 32), ("muscle", 43),
        ("liver", 53), ("spleen", 54), ("blood", 56), ("skin", 74), ("cartilage", 102),
        ("skull", 999), ("cortical", 1524), ("grey", 40), ("white", 34),
    ],
)  # fmt: skip
def test_ct_numbers_are_those_of_the_literature(tissue: str, hu: float) -> None:
    assert TISSUES[tissue].hu == pytest.approx(hu, abs=3)


def test_water_and_vacuum_define_the_scale() -> None:
    water = {"H": 11.19, "O": 88.81}
    assert ct_number(1.0, water) == pytest.approx(0, abs=1e-9)
    assert ct_number(0.0, water) == -1000
    # One composition: CT number plus 1000 goes with density.
    assert ct_number(1.3, water) == pytest.approx(300)


def test_a_spin_echo_by_hand() -> None:
    # T1 = TR / ln 2: half recovered. T2 = TE / ln 4: a quarter left.
    value = spin_echo(tr=500, te=20, t1=500 / math.log(2), t2=20 / math.log(4), pd=0.8)
    assert value == pytest.approx(0.8 / 2 / 4)
    # White matter, T1w, with a calculator: 0.71 (1 - e^-0.5535) e^-0.1449.
    assert signal(TISSUES["white"], SEQUENCES["T1w"]) == pytest.approx(0.2612, abs=2e-4)


def test_an_inversion_recovery_by_hand() -> None:
    t1 = 1000.0
    # After infinite TR the null is at T1 ln 2, and long after it the signal is PD.
    null = inversion_recovery(tr=1e9, te=0, ti=t1 * math.log(2), t1=t1, t2=80, pd=1)
    assert null == pytest.approx(0, abs=1e-12)
    assert inversion_recovery(tr=1e9, te=0, ti=1e8, t1=t1, t2=80, pd=0.7) == pytest.approx(0.7)
    # At once after the inversion the magnitude is whole: |1 - 2 + 0|.
    assert inversion_recovery(tr=1e9, te=0, ti=0, t1=t1, t2=80, pd=0.7) == pytest.approx(0.7)
    # Grey matter, FLAIR: 0.83 |1 - 2 e^-1.3736 + e^-4.9451| e^-1.2626
    # = 0.83 |1 - 0.50638 + 0.00712| 0.28292.
    assert signal(TISSUES["grey"], SEQUENCES["FLAIR"]) == pytest.approx(0.11759, abs=2e-5)


def test_contrasts_order_the_brain_as_they_are_known_to() -> None:
    seen = {name: {t: signal(TISSUES[t], SEQUENCES[name]) for t in TISSUES} for name in CONTRASTS}
    one, two, flair = seen["T1w"], seen["T2w"], seen["FLAIR"]
    assert one["fat"] > one["white"] > one["grey"] > one["fluid"]
    assert two["fluid"] > two["grey"] > two["white"] > two["muscle"]
    assert flair["grey"] > flair["white"] > 10 * flair["fluid"], "fluid is nulled"
    for name in CONTRASTS:
        assert seen[name]["air"] == 0
        assert seen[name]["cortical"] < 0.01


def test_appearance_is_in_the_units_of_the_modality() -> None:
    assert appearance("CT", SEQUENCES["T1w"])["air"] == (-1000, 0)
    value, grain = appearance("MR", SEQUENCES["T2w"])["white"]
    assert value == signal(TISSUES["white"], SEQUENCES["T2w"])
    assert 0 < grain < 0.1 * value
