import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from site_agent.intake.nifti import read_header, read_signal, read_slices
from site_agent.intake.reasons import Skipped, SkipReason


def write_volume(path, voxels, *, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing=(0.7, 0.8, 3.0)):
    """``voxels`` (z, y, x) in the axes of ``direction``."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def voxels():
    # Each voxel says where it is: 1000 z + 100 y + x, from -1000 on.
    z, y, x = np.meshgrid(range(4), range(6), range(5), indexing="ij")
    return (1000 * z + 100 * y + x - 1000).astype(np.int16)


def test_axial_slices_from_the_feet_up(tmp_path, voxels):
    header = read_header(write_volume(tmp_path / "a.nii.gz", voxels))
    assert header.slices == 4
    assert header.thickness_mm == pytest.approx(3.0)
    assert header.spacing_mm == pytest.approx((0.8, 0.7))
    slices = read_slices(header, [0, 2])
    assert (slices[0] == voxels[0]).all() and (slices[1] == voxels[2]).all()


@pytest.mark.parametrize(
    ("direction", "turn"),
    [
        # RAS, as NIfTI likes it: x and y the other way round.
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), lambda v: v[:, ::-1, ::-1]),
        # From the head down.
        ((1, 0, 0, 0, -1, 0, 0, 0, -1), lambda v: v[::-1, ::-1, :]),
        # Stored as coronal slices: the first index is x, the second z, the third y.
        ((1, 0, 0, 0, 0, 1, 0, 1, 0), lambda v: v.transpose(1, 0, 2)),
    ],
)
def test_orientation_is_that_of_axial_display(tmp_path, voxels, direction, turn):
    stored = np.ascontiguousarray(turn(voxels))
    header = read_header(write_volume(tmp_path / "a.nii", stored, direction=direction))
    assert header.slices == 4
    for index, plane in enumerate(read_slices(header, [0, 1, 2, 3])):
        assert (plane == voxels[index]).all()


def test_a_volume_without_air_is_not_ct(tmp_path):
    path = write_volume(tmp_path / "a.nii", np.full((3, 4, 4), 300, np.int16))
    with pytest.raises(Skipped) as caught:
        read_slices(read_header(path), [0])
    assert caught.value.reason is SkipReason.NOT_CT


def test_signal_is_read_as_it_is_and_may_be_sampled(tmp_path, voxels):
    header = read_header(write_volume(tmp_path / "a.nii", voxels.astype(np.float32) / 8))
    assert header.shape == (6, 5)
    whole = read_signal(header, [1, 3])
    assert whole[0].dtype == np.float32
    np.testing.assert_array_equal(np.stack(whole), voxels[[1, 3]] / 8)
    np.testing.assert_array_equal(read_signal(header, [3], step=2)[0], voxels[3, ::2, ::2] / 8)


def test_other_files_are_codes(tmp_path):
    flat = write_volume(tmp_path / "flat.nii", np.zeros((4, 4), np.int16))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8b not a volume")
    for path, reason in [(flat, SkipReason.NOT_A_VOLUME), (broken, SkipReason.UNREADABLE)]:
        with pytest.raises(Skipped) as caught:
            read_header(path)
        assert caught.value.reason is reason


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_missing_voxels_are_not_taken_for_water(tmp_path, name):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
    path = write_volume(tmp_path / name, voxels)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Skipped) as caught:
        read_slices(header, [0])
    assert caught.value.reason is SkipReason.TRUNCATED


def test_the_library_does_not_print(tmp_path, capfd):
    path = tmp_path / "a.nii"
    path.write_bytes(b"CANARY" * 100)
    # The positive control: without us it says something.
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    assert capfd.readouterr().err
    with pytest.raises(Skipped):
        read_header(path)
    output = capfd.readouterr()
    assert output.out + output.err == ""
