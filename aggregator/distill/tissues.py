"""What tissues look like: CT numbers from their composition, MR signals from their relaxation.

CT numbers follow from mass density and elemental composition (ICRU Report 44, 1989; brain matter:
Woodard and White, Br J Radiol 1986) by the stoichiometric formula of Schneider, Bortfeld and
Schlegel, Phys Med Biol 45 (2000) 459, eq. 8, at 120 kV. MR signals follow from T1, T2 and proton
density at 3 T by the spin-echo and inversion-recovery equations; T1 and T2: Stanisz et al., Magn
Reson Med 54 (2005) 507 (brain, muscle, heart, cartilage, blood), de Bazelaire et al., Radiology 230
(2004) 652 (abdomen, fat, marrow), within the spread that Bojorquez et al., Magn Reson Imaging 35
(2017) 69 review; fluids: Rooney et al., Magn Reson Med 57 (2007) 308. Proton densities are water
contents relative to cerebrospinal fluid.
"""

import math
from dataclasses import dataclass
from typing import Literal

from shared.tasks.settings import Modality

Contrast = Literal["T1w", "T2w", "FLAIR"]
CONTRASTS: tuple[Contrast, ...] = ("T1w", "T2w", "FLAIR")

# Atomic number and mass (u).
_ELEMENTS = {
    "H": (1, 1.008), "C": (6, 12.011), "N": (7, 14.007), "O": (8, 15.999), "Na": (11, 22.990),
    "Mg": (12, 24.305), "P": (15, 30.974), "S": (16, 32.06), "Cl": (17, 35.45),
    "K": (19, 39.098), "Ca": (20, 40.078), "Fe": (26, 55.845),
}  # fmt: skip
# Coherent scattering and photoelectric effect beside Compton scattering (Schneider et al. 2000).
_COHERENT, _PHOTOELECTRIC = 1.24e-3, 3.06e-5


@dataclass(frozen=True)
class Sequence:
    """An MR sequence: times in ms; ``ti`` is None for a spin echo without inversion."""

    tr: float
    te: float
    ti: float | None = None


SEQUENCES: dict[Contrast, Sequence] = {
    "T1w": Sequence(tr=600.0, te=10.0),
    "T2w": Sequence(tr=4500.0, te=100.0),
    "FLAIR": Sequence(tr=9000.0, te=125.0, ti=2500.0),
}
PREPARED_T1 = Sequence(tr=2300.0, te=3.0, ti=1100.0)
"""The other usual T1w: MPRAGE (Mugler and Brookeman 1990), taken as an inversion recovery."""


@dataclass(frozen=True)
class Tissue:
    """CT number (HU); T1 and T2 (ms, 3 T); proton density; grain: spread of its texture.

    ``grain_hu`` is the standard deviation within the tissue at a pixel of 1 to 2 mm, before the
    scanner's blur; that of MR is a twentieth of the signal, scaled by ``grain_hu`` / 15 up to 2.
    """

    hu: float
    t1: float
    t2: float
    pd: float
    grain_hu: float


def ct_number(density: float, percent: dict[str, float]) -> float:
    """HU of a material: mass density in g/cm³, elements in percent by mass."""

    def attenuation(rho: float, share: dict[str, float]) -> float:
        total: float = sum(
            weight
            / _ELEMENTS[name][1]
            * (
                _ELEMENTS[name][0]
                + _COHERENT * _ELEMENTS[name][0] ** 2.86
                + _PHOTOELECTRIC * _ELEMENTS[name][0] ** 4.62
            )
            for name, weight in share.items()
        )
        return rho * total

    water = attenuation(1.0, {"H": 11.19, "O": 88.81})
    return 1000.0 * (attenuation(density, percent) / water - 1.0)


def _mix(density: float, h: float, c: float, n: float, o: float, **rest: float) -> float:
    return ct_number(density, {"H": h, "C": c, "N": n, "O": o, **rest})


_SALTS = {"Na": 0.2, "P": 0.2, "S": 0.2, "Cl": 0.2, "K": 0.2}
_MYELIN = {"Na": 0.2, "P": 0.4, "S": 0.2, "Cl": 0.3, "K": 0.3}

TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000.0, 1.0, 1.0, 0.0, 0.0),
    "lung": Tissue(
        _mix(0.26, 10.3, 10.5, 3.1, 74.9, Na=0.2, P=0.2, S=0.3, Cl=0.3, K=0.2),
        1200.0, 40.0, 0.2, 42.0,
    ),
    "fat": Tissue(
        _mix(0.93, 11.6, 68.1, 0.2, 19.8, Na=0.1, S=0.1, Cl=0.1), 382.0, 68.0, 1.0, 9.0
    ),
    "skin": Tissue(
        _mix(1.09, 10.0, 20.4, 4.2, 64.5, Na=0.2, P=0.1, S=0.2, Cl=0.3, K=0.1),
        1000.0, 35.0, 0.7, 10.0,
    ),
    "muscle": Tissue(
        _mix(1.05, 10.2, 14.3, 3.4, 71.0, Na=0.1, P=0.2, S=0.3, Cl=0.1, K=0.4),
        1412.0, 50.0, 0.75, 13.0,
    ),
    "heart": Tissue(
        _mix(1.05, 10.4, 13.9, 2.9, 71.8, Na=0.1, P=0.2, S=0.2, Cl=0.2, K=0.3),
        1471.0, 47.0, 0.78, 9.0,
    ),
    "blood": Tissue(
        _mix(1.06, 10.2, 11.0, 3.3, 74.5, Na=0.1, P=0.1, S=0.2, Cl=0.3, K=0.2, Fe=0.1),
        1932.0, 275.0, 0.83, 6.0,
    ),
    "liver": Tissue(
        _mix(1.06, 10.2, 13.9, 3.0, 71.6, Na=0.2, P=0.3, S=0.3, Cl=0.2, K=0.3),
        809.0, 34.0, 0.72, 8.0,
    ),
    "spleen": Tissue(
        _mix(1.06, 10.3, 11.3, 3.2, 74.1, Na=0.1, P=0.3, S=0.2, Cl=0.2, K=0.3),
        1328.0, 61.0, 0.79, 7.0,
    ),
    "kidney": Tissue(
        _mix(1.05, 10.3, 13.2, 3.0, 72.4, **_SALTS, Ca=0.1), 1142.0, 76.0, 0.80, 9.0
    ),
    "medulla": Tissue(
        _mix(1.04, 10.4, 12.2, 2.7, 73.7, **_SALTS), 1545.0, 81.0, 0.83, 8.0
    ),
    "pancreas": Tissue(
        _mix(1.04, 10.6, 16.9, 2.2, 69.4, Na=0.2, P=0.2, S=0.1, Cl=0.2, K=0.2),
        725.0, 43.0, 0.75, 16.0,
    ),
    "gut": Tissue(
        _mix(1.03, 10.6, 11.5, 2.2, 75.1, Na=0.1, P=0.1, S=0.1, Cl=0.2, K=0.1),
        1000.0, 55.0, 0.8, 12.0,
    ),
    "cartilage": Tissue(
        _mix(1.10, 9.6, 9.9, 2.2, 74.4, Na=0.5, P=2.2, S=0.9, Cl=0.3), 1168.0, 27.0, 0.7, 20.0
    ),
    "spongiosa": Tissue(
        _mix(1.18, 8.5, 40.4, 2.8, 36.7, Na=0.1, Mg=0.1, P=3.4, S=0.2, Cl=0.2, K=0.1, Ca=7.4,
             Fe=0.1),
        586.0, 49.0, 0.6, 55.0,
    ),
    "marrow": Tissue(
        _mix(1.03, 10.5, 41.4, 3.4, 43.9, P=0.1, S=0.2, Cl=0.2, K=0.2, Fe=0.1),
        586.0, 49.0, 0.8, 30.0,
    ),
    "skull": Tissue(
        _mix(1.61, 5.0, 21.2, 4.0, 43.5, Na=0.1, Mg=0.2, P=8.1, S=0.3, Ca=17.6),
        300.0, 1.0, 0.1, 60.0,
    ),
    "cortical": Tissue(
        _mix(1.92, 3.4, 15.5, 4.2, 43.5, Na=0.1, Mg=0.2, P=10.3, S=0.3, Ca=22.5),
        250.0, 0.5, 0.1, 60.0,
    ),
    "grey": Tissue(
        _mix(1.04, 10.7, 9.5, 1.8, 76.7, Na=0.2, P=0.3, S=0.2, Cl=0.3, K=0.3),
        1820.0, 99.0, 0.83, 5.0,
    ),
    "white": Tissue(_mix(1.04, 10.6, 19.4, 2.5, 66.1, **_MYELIN), 1084.0, 69.0, 0.71, 4.0),
    "dura": Tissue(
        _mix(1.06, 10.0, 17.0, 4.0, 68.0, Na=0.2, P=0.1, S=0.3, Cl=0.3, K=0.1),
        900.0, 30.0, 0.6, 5.0,
    ),
    "fluid": Tissue(_mix(1.01, 11.1, 0.0, 0.0, 88.0, Na=0.5, Cl=0.4), 4300.0, 1800.0, 1.0, 3.0),
}  # fmt: skip
"""Tissues by name; ``fluid`` is cerebrospinal, and stands for urine, bile and vitreous humour."""


def spin_echo(*, tr: float, te: float, t1: float, t2: float, pd: float) -> float:
    """Signal of a spin echo with TE much shorter than TR: PD (1 − e^(−TR/T1)) e^(−TE/T2)."""
    return pd * (1.0 - math.exp(-tr / t1)) * math.exp(-te / t2)


def inversion_recovery(
    *, tr: float, te: float, ti: float, t1: float, t2: float, pd: float
) -> float:
    """Magnitude signal of an inverted spin echo: PD |1 − 2e^(−TI/T1) + e^(−TR/T1)| e^(−TE/T2)."""
    return pd * abs(1.0 - 2.0 * math.exp(-ti / t1) + math.exp(-tr / t1)) * math.exp(-te / t2)


def signal(tissue: Tissue, sequence: Sequence) -> float:
    """MR signal of a tissue, relative to that of pure water at thermal equilibrium."""
    tr, te, ti = sequence.tr, sequence.te, sequence.ti
    if ti is None:
        return spin_echo(tr=tr, te=te, t1=tissue.t1, t2=tissue.t2, pd=tissue.pd)
    return inversion_recovery(tr=tr, te=te, ti=ti, t1=tissue.t1, t2=tissue.t2, pd=tissue.pd)


def appearance(modality: Modality, sequence: Sequence) -> dict[str, tuple[float, float]]:
    """(value, grain) of every tissue: HU for CT, relative signal for MR."""
    if modality == "CT":
        return {name: (tissue.hu, tissue.grain_hu) for name, tissue in TISSUES.items()}
    seen = {}
    for name, tissue in TISSUES.items():
        value = signal(tissue, sequence)
        seen[name] = (value, 0.05 * value * min(tissue.grain_hu / 15.0, 2.0))
    return seen
