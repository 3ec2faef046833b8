import math

import numpy as np
import pytest

from site_agent.intake.geometry import axial_plane, evenly_spaced
from site_agent.intake.reasons import Skipped, SkipReason


def patient_image(orientation):
    """An image whose pixel value says where it is in the patient: 10 x + y, x and y from 0 to 3."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    image = np.empty((4, 4), np.int16)
    for i in range(4):
        for j in range(4):
            x, y, _ = np.array([1.5, 1.5, 0]) + (j - 1.5) * row + (i - 1.5) * column
            image[i, j] = round(10 * x + y)
    return image


@pytest.mark.parametrize(
    "orientation",
    [
        (1, 0, 0, 0, 1, 0),  # supine, head first
        (-1, 0, 0, 0, -1, 0),  # prone
        (-1, 0, 0, 0, 1, 0),  # mirrored
        (0, -1, 0, 1, 0, 0),  # lying on the side
        (0, 1, 0, 1, 0, 0),
    ],
)
def test_every_axial_orientation_is_displayed_alike(orientation):
    shown = axial_plane(orientation).display(patient_image(orientation))
    assert shown.tolist() == [[0, 10, 20, 30], [1, 11, 21, 31], [2, 12, 22, 32], [3, 13, 23, 33]]


def test_position_grows_towards_the_head_for_either_sense():
    for orientation in [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0)]:
        assert axial_plane(orientation).position_mm((0, 0, 7)) == pytest.approx(7)


def test_a_tilted_gantry_is_axial_and_its_position_is_along_the_normal():
    tilt = math.radians(18.5)
    plane = axial_plane((1, 0, 0, 0, math.cos(tilt), -math.sin(tilt)))
    step = np.array([0, math.sin(tilt), math.cos(tilt)]) * 5
    assert plane.position_mm(step.tolist()) == pytest.approx(5)


@pytest.mark.parametrize(
    ("orientation", "reason"),
    [
        ((1, 0, 0, 0, 0, -1), SkipReason.NOT_AXIAL),  # coronal
        ((0, 1, 0, 0, 0, -1), SkipReason.NOT_AXIAL),  # sagittal
        ((1, 0, 0, 0, 0.6, 0.8), SkipReason.NOT_AXIAL),  # 53 degrees
        ((0, 0, 0, 0, 0, 0), SkipReason.NO_GEOMETRY),
        ((1, 0, 0, 1, 0, 0), SkipReason.NO_GEOMETRY),
        ((1, 0, 0, 0, math.nan, 0), SkipReason.NO_GEOMETRY),
        ((1, 0, 0), SkipReason.NO_GEOMETRY),
    ],
)
def test_other_orientations_are_skipped(orientation, reason):
    with pytest.raises(Skipped) as caught:
        axial_plane(orientation)
    assert caught.value.reason is reason


def test_evenly_spaced():
    assert evenly_spaced(3, at_most=8) == [0, 1, 2]
    assert evenly_spaced(8, at_most=2) == [2, 6]
    assert evenly_spaced(100, at_most=1) == [50]
    chosen = evenly_spaced(1001, at_most=8)
    assert len(set(chosen)) == 8
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
