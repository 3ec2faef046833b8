import numpy as np
import pytest

from site_agent.intake.hounsfield import hounsfield


def test_rescale_is_applied():
    stored = np.array([[0, 1024], [2048, 3000]], np.uint16)
    hu = hounsfield(stored, slope=1, intercept=-1024, bits_allocated=16, padding=None)
    assert hu.dtype == np.int16
    assert hu.tolist() == [[-1024, 0], [1024, 1976]]


def test_fractional_slope_is_rounded():
    stored = np.array([[101]], np.uint16)
    hu = hounsfield(stored, slope=0.5, intercept=-1000.2, bits_allocated=16, padding=None)
    assert hu.tolist() == [[-950]]  # -949.7


@pytest.mark.parametrize("declared", [-2000, 63536])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_padding_of_signed_pixels_is_air_however_it_is_declared(declared, intercept):
    stored = np.array([[-2000, 40 - intercept]], np.int16)
    hu = hounsfield(
        stored, slope=1, intercept=intercept, bits_allocated=16, padding=(declared, declared)
    )
    assert hu.tolist() == [[-1000, 40]]


@pytest.mark.parametrize("padding", [None, (-2000, -2000), (63536, 63536)])
def test_negative_padding_written_as_unsigned_is_air(padding):
    stored = np.array([[63536, 1064]], np.uint16)
    hu = hounsfield(stored, slope=1, intercept=-1024, bits_allocated=16, padding=padding)
    assert hu.tolist() == [[-1000, 40]]


@pytest.mark.parametrize("outside", [-3024, -2048, -2000, -1500])
def test_what_lies_outside_the_scan_circle_is_air_without_being_declared(outside):
    stored = np.array([[outside, -1010, -1100, 40]], np.int16)
    hu = hounsfield(stored, slope=1, intercept=0, bits_allocated=16, padding=None)
    # The noise of air stays, down to the floor of a 12-bit scanner.
    assert hu.tolist() == [[-1000, -1010, -1024, 40]]


def test_padding_range():
    stored = np.array([[-1990, -2000, 30]], np.int16)
    hu = hounsfield(stored, slope=1, intercept=1000, bits_allocated=16, padding=(-2000, -1990))
    assert hu.tolist() == [[-1000, -1000, 1030]]


def test_a_padding_value_that_tissue_shares_is_air_at_the_border_alone():
    stored = np.full((8, 8), 50, np.int16)
    stored[:, :2] = 0  # padding, from the edge inwards
    stored[4, 5] = 0  # water inside the body
    hu = hounsfield(stored, slope=1, intercept=0, bits_allocated=16, padding=(0, 0))
    assert (hu[:, :2] == -1000).all()
    assert hu[4, 5] == 0


def test_metal_beyond_int16_is_clipped_not_wrapped():
    stored = np.array([[32767, 0]], np.int16)
    hu = hounsfield(stored, slope=2, intercept=0, bits_allocated=16, padding=None)
    assert hu.tolist() == [[32767, 0]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("intercept", [-8192.0, -1024.0, 0.0, 7.0, 30000.0])
@pytest.mark.parametrize("padding", [None, (-32000, -32000)])
def test_every_stored_value_alone_is_what_it_is_among_all(dtype, intercept, padding):
    """Narrow ranges are added to, wide ones looked up: both by one formula."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    settings = {"slope": 1.0, "intercept": intercept, "bits_allocated": 16, "padding": padding}
    together = hounsfield(every.reshape(256, 256), **settings).ravel()
    for begin in range(0, 2**16, 512):
        some = every[begin : begin + 512]
        alone = hounsfield(some.reshape(1, 512), **settings).ravel()
        np.testing.assert_array_equal(alone, together[begin : begin + 512])
