"""A virtual head: scalp, skull, folded cortex, ventricles, deep nuclei, eyes, sinuses, cerebellum.

Heights are in mm above the plane of the ventricles' middle. Gyri come from the level sets of a
smooth field: where it is near zero a sulcus runs in from the surface, grey matter lines the
surface and both banks of the sulcus, and white matter fills the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator.distill.section import Section
from aggregator.distill.texture import Field
from aggregator.distill.tissues import PREPARED_T1, SEQUENCES, Contrast, appearance
from shared.tasks.settings import Modality


@dataclass(frozen=True)
class Head:
    """What makes one head differ from another; lengths in mm."""

    seed: tuple[int, ...]
    half_width: float
    half_length: float
    height: float
    skull: float
    scalp: float
    atrophy: float  # 0 young .. 1 old: width of sulci and ventricles
    fold: float  # lattice spacing of the field that folds the cortex
    stripped: bool  # the brain alone, as preprocessed MR sets are
    lesions: int


def draw_head(seed: tuple[int, ...], modality: Modality) -> Head:
    """A random adult's head."""
    random = np.random.default_rng([*seed, 1])
    scale = float(np.clip(random.normal(1.0, 0.04), 0.9, 1.1))
    return Head(
        seed=seed,
        half_width=scale * random.normal(67, 2.0),
        half_length=scale * random.normal(84, 2.5),
        height=scale * random.normal(72, 2.0),
        skull=float(random.uniform(5.0, 8.5)),
        scalp=float(random.uniform(4.0, 9.0)),
        atrophy=float(random.beta(1.4, 2.0)),
        fold=float(random.uniform(6.6, 8.2)),
        stripped=bool(modality == "MR" and random.uniform() < 0.35),
        lesions=int(random.integers(0, 14)),
    )


def head_look(
    head: Head, modality: Modality, contrast: Contrast
) -> Mapping[str, tuple[float, float]]:
    """Value and grain of every tissue in this head."""
    random = np.random.default_rng([*head.seed, 2])
    sequence = SEQUENCES[contrast]
    if contrast == "T1w" and random.uniform() < 0.5:
        sequence = PREPARED_T1
    look = dict(appearance(modality, sequence))
    grey, white, fluid = look["grey"], look["white"], look["fluid"]
    look["deep grey"] = (0.65 * grey[0] + 0.35 * white[0], grey[1])
    look["sulcus"], look["sinus blood"] = fluid, look["blood"]
    if modality == "CT":
        look["lesion"] = (random.uniform(8, 26), 4.0)
        return look
    look["lesion"] = (0.75 * fluid[0] + 0.25 * white[0], grey[1])
    if contrast == "FLAIR":
        look["lesion"] = (1.55 * grey[0], grey[1])
    look["sinus blood"] = (0.25 * look["blood"][0], 0.0)  # fast flow leaves no spin echo
    # Trains of echoes keep fat bright (Henkelman et al., J Magn Reson Imaging 2 (1992) 533); many
    # protocols saturate it.
    bright = {"T1w": random.uniform(0.6, 1.0), "T2w": random.uniform(1.0, 2.4), "FLAIR": 1.2}
    saturated = contrast != "T1w" and random.uniform() < (0.6 if contrast == "FLAIR" else 0.2)
    gain = 0.15 if saturated else bright[contrast]
    for name in ("fat", "marrow"):
        look[name] = (look[name][0] * gain, look[name][1] * gain)
    return look


def draw_brain_and_skull(section: Section, head: Head) -> None:
    """Everything in the plane, from the skin inwards."""
    z = section.z
    brain = _brain_outline(section, head)
    if not head.stripped:
        _shell(section, head, brain)
        if z < -14:
            _base(section, head, brain)
    _cerebrum(section, head, brain)
    if z < -16:
        _hind_brain(section, head, brain)
    if not head.stripped and z < -24:
        _orbits(section, head)


def _brain_outline(section: Section, head: Head) -> Field:
    """Signed distance to the inner table of the skull: an egg, wider behind."""
    z = section.z
    # Widest a little above the base; the vault closes as an ellipsoid, the base slowly.
    share = z / head.height if z > 0 else z / (1.5 * head.height)
    scale = float(np.sqrt(max(1 - abs(share) ** 2.2, 0.003)))
    rx, ry = head.half_width * scale, head.half_length * scale**0.9
    egg = 1 + 0.10 * np.clip(section.y / head.half_length, -1, 1)
    shape = section.ellipse(0, 0, rx, ry, power=2.25)
    return np.asarray(shape + rx * (1 - egg) * 0.9, np.float32)


def _shell(section: Section, head: Head, brain: Field) -> None:
    """Scalp, muscle at the temples, the skull's two tables with marrow between, the dura."""
    thick = head.skull * (1 + 0.18 * section.noise(11, 30.0))
    outer = brain - thick - 2
    scalp = head.scalp * (1 + 0.2 * section.noise(12, 40.0))
    skin = outer - scalp
    temple = 13 * np.exp(-(((section.z + 18) / 26) ** 2))
    temple = temple * np.exp(-(((section.y + 22) / 26) ** 2))
    if section.z < -8:  # the face in front
        face = section.ellipse(0, -0.66 * head.half_length, 58, 46, power=2.6) - 2
        skin = np.minimum(skin - temple, face)
    else:
        skin = skin - temple
    section.paint(skin, "skin")
    section.paint(skin + 2.0, "fat")
    if section.z < -8:  # muscles of the face between its fat
        between = 5 * (0.2 - section.noise(14, 9.0))
        section.paint(np.maximum(face + 5, between), "muscle", within=section.y + 40)
    if section.z < 20:
        muscle = np.maximum(skin + 4.5, -(outer - 0.5))
        section.paint(muscle, "muscle", within=4 * (0.9 - temple / 5))
        if section.z < -26:
            section.paint(muscle, "muscle", within=-section.y + 20)
    section.paint(outer, "skull")
    diploe = 0.5 + 0.5 * np.clip(section.noise(13, 16.0) + 0.4, -1, 1)
    section.paint(np.abs(brain - 2 - thick / 2) - thick * 0.22 * diploe, "marrow")
    section.paint(brain - 2, "dura")


def _base(section: Section, head: Head, brain: Field) -> None:
    """Bone of the skull base with air cells; nose and sinuses in front."""
    depth = float(np.clip((-14 - section.z) / 20, 0, 1))
    for side in (-1, 1):
        petrous = section.line((side * 62, 26), (side * 16, 2), 11 * depth)
        section.paint(petrous, "skull", within=brain - 10)
        cells = 5 * (0.35 - section.noise(21, 4.5))
        mastoid = section.ellipse(side * 58, 27, 15 * depth, 14 * depth)
        section.paint(mastoid - 2, "skull")
        section.paint(np.maximum(mastoid + 2, cells), "air")
        wing = section.line((side * 60, -34), (side * 12, -16), 2.5 * depth + 0.5)
        section.paint(wing, "skull", within=brain - 8)
    clivus = section.ellipse(0, -4, 13 * depth, 12 * depth)
    section.paint(clivus, "skull")
    section.paint(clivus + 3, "marrow")
    if depth > 0.4:
        front = -0.72 * head.half_length
        section.paint(section.ellipse(0, front, 17, 33), "skull")
        walls = np.abs(section.noise(22, 7.0)) * 7 - 1.1
        section.paint(np.maximum(section.ellipse(0, front, 15, 31), -walls), "air")
        section.paint(
            np.abs(section.x) - 0.9, "cartilage", within=section.ellipse(0, front, 15, 31)
        )
        section.paint(section.ellipse(0, -14, 12, 9), "skull")
        section.paint(section.ellipse(0, -14, 10.5, 7.5), "air")  # sphenoid sinus


def _orbits(section: Section, head: Head) -> None:
    middle = -34.0
    for side in (-1, 1):
        cx, cy = side * 31.0, -0.80 * head.half_length
        orbit = section.ellipsoid((cx - side * 2, cy + 7, middle), (17, 24, 17))
        section.paint(orbit - 1.4, "cortical")
        section.paint(orbit, "fat")
        tip = (side * 14.0, cy + 34, middle)
        section.paint(section.tube((cx, cy, middle), tip, 2.4), "white", within=orbit)
        for turn in (-9, 9):
            section.paint(section.tube((cx + turn, cy, middle), tip, 2.6), "muscle", within=orbit)
        globe = section.ellipsoid((cx, cy - 3, middle), (12, 12, 12))
        section.paint(globe - 0.6, "dura")
        section.paint(globe + 0.8, "fluid")
        section.paint(section.ellipsoid((cx, cy - 11, middle), (4.6, 2.2, 4.6)), "cartilage")


def _cerebrum(section: Section, head: Head, brain: Field) -> None:
    x, y, z = section.x, section.y, section.z
    old, fold = head.atrophy, head.fold
    section.paint(brain, "sulcus")
    # Distance to the nearest space of fluid: the surface, a fold, the fissure between halves.
    field = section.noise(31, fold) + 0.25 * section.noise(32, 0.5 * fold)
    slope = np.hypot(*np.gradient(field, section.pixel_mm)) + 0.35 / fold
    sheet = np.abs(field) / slope
    depth = -brain
    deep = 20 + 6 * section.noise(33, 30.0) + 10 * np.clip(-z / 20, 0, 1)
    fissure = np.abs(x + 1.2 * section.noise(34, 30.0))
    reach = np.clip(np.abs(y + 4) - 40, None, 0)  # under the callosal body there is no fissure
    fissure = fissure + np.where(z < 24, -reach * 0.8, 0.0) * np.clip((24 - z) / 10, 0, 1)
    # Folds run in from the vault, and from the fissure where the halves face each other.
    folds = sheet + np.clip(np.minimum(depth, fissure + 6) - deep, 0, None) * 0.9
    for side in (-1, 1):  # Sylvian fissures
        sylvian = section.line((side * 62, -16), (side * 36, 4), 0.4)
        sylvian = sylvian + np.clip(np.abs(z - 2) - 16, 0, None)
        folds = np.minimum(folds, sylvian)
    space = np.minimum(np.minimum(depth + 0.2, folds), fissure)
    open_mm = 0.35 + 1.1 * old * (0.7 + 0.4 * section.noise(35, 30.0)) + 0.25 * np.exp(-depth / 6)
    ribbon = 2.6 + 0.35 * section.noise(36, 14.0)
    inside = np.maximum(brain + 0.8 + 1.2 * old, open_mm - space)
    section.paint(inside, "grey")
    section.paint(np.maximum(inside + ribbon, brain + 4), "white")
    _deep(section, head)
    if not head.stripped:
        section.paint(np.abs(x) - 0.5, "dura", within=np.maximum(brain, 26 - np.hypot(y, z)))
        blood = section.ellipse(0, head.half_length * 0.97, 5, 4)
        section.paint(blood, "sinus blood", within=brain - 2)
    random = np.random.default_rng([*head.seed, 30])
    for _ in range(head.lesions):  # white-matter lesions lie round the ventricles
        side = 1 if random.uniform() < 0.5 else -1
        centre = (side * random.uniform(16, 36), random.uniform(-40, 46), random.uniform(4, 42))
        radii = random.gamma(2.0, 1.2, 3) + 0.6
        section.paint(section.ellipsoid(centre, radii), "lesion", within=inside + 4, opacity=0.9)


def _deep(section: Section, head: Head) -> None:
    """Corpus callosum, basal ganglia, thalamus; lateral, third ventricle."""
    z = section.z
    large = 0.75 + 0.85 * head.atrophy
    for side in (-1, 1):
        turn = side * -14.0
        core = section.ellipsoid((side * 22, 0, 10), (27, 44, 26), degrees=turn)
        section.paint(core, "white")
        for centre, radii, tissue in (
            ((side * 25, -4, 3), (6.5, 17, 13), "deep grey"),  # putamen
            ((side * 18, 0, 1), (5.0, 10, 9), "white"),  # pallidum: iron and myelin
            ((side * 12.5, -20, 10), (5.5, 9, 15), "deep grey"),  # head of the caudate
            ((side * 16, -4, 24), (3.5, 16, 6), "deep grey"),  # its body
            ((side * 10.5, 13, 5), (9.0, 14, 11), "deep grey"),  # thalamus
            ((side * 37, -3, 2), (2.0, 17, 13), "grey"),  # insula
        ):
            section.paint(section.ellipsoid(centre, radii, degrees=turn), tissue)
    callosum = section.ellipsoid((0, 0, 16), (26, 38, 13))
    section.paint(np.maximum(callosum, -np.abs(section.y) + 18 - 2 * max(0.0, z - 16)), "white")
    for side in (-1, 1):
        horns = (
            ((side * 7, -26, 8), (4.6, 12, 11), side * 24.0),  # frontal horn
            ((side * 9, -2, 20), (5.0, 26, 7), side * 6.0),  # body
            ((side * 20, 27, 10), (6.0, 13, 11), side * -30.0),  # atrium
            ((side * 23, 44, 4), (3.6, 14, 6), side * -12.0),  # occipital horn
            ((side * 31, 4, -17), (3.2, 13, 5), side * -8.0),  # temporal horn
        )
        for centre, radii, turn in horns:
            size = np.array(radii) * (large, 0.5 * large + 0.5, 0.5 * large + 0.5)
            section.paint(section.ellipsoid(centre, size, degrees=turn), "fluid")
        plexus = section.ellipsoid((side * 21, 26, 9), (2.4, 5.5, 5))
        section.paint(plexus, "sinus blood" if section.look["air"][0] < 0 else "grey", opacity=0.7)
    section.paint(section.ellipsoid((0, 8, 0), (2.0 * large, 13, 11)), "fluid")
    section.paint(section.ellipsoid((0, -13, 16), (0.8, 9, 9)), "white")  # septum


def _hind_brain(section: Section, head: Head, brain: Field) -> None:
    """Cerebellum with its leaves, brainstem, fourth ventricle, cisterns."""
    z = section.z
    lower = float(np.clip((-16 - z) / 14, 0, 1))
    half = section.ellipsoid((0, 44, -44), (52, 33, 30))
    half = np.maximum(half, brain + 1.5)
    section.paint(half - 1.4, "sulcus")
    section.paint(half - 2.0, "dura", within=-half + 1.2, opacity=0.8)  # tentorium
    leaves = section.noise(41, 4.5, 0.6)
    ribbon = np.maximum(half, 1.4 * (0.75 - np.abs(leaves) * 2.4) * (1 + half / 30))
    section.paint(half, "grey")
    section.paint(np.maximum(half + 5, ribbon), "white", opacity=0.75)
    stem = section.ellipse(0, 9 + 5 * lower, 15 - 4 * lower, 12 + 2 * lower)
    section.paint(stem - 2.2, "sulcus", within=brain)
    section.paint(stem, "white")
    section.paint(section.ellipsoid((0, 24, -36), (6.0, 5.0, 16)), "fluid")
