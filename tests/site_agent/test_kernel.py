import os
import tomllib
import zlib

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless
from scipy import ndimage

from shared.contract import RunContract
from site_agent.intake.folder import IntakeError
from site_agent.kernel import KernelFitError, as_toml, kernel_task

EDGE, SIZE = 64, 32
FRAME = "1.2.3.77"


def anatomy(seed):
    generator = np.random.default_rng(seed)
    return 400 * ndimage.gaussian_filter(generator.standard_normal((EDGE, EDGE)), 1.2) + 1000


def write_pairs(folder, write_slice, *, positions=range(4), **soft_elements):
    """Soft slices from the feet up; sharp ones named the other way round, with finer detail."""
    for place, z in enumerate(positions):
        soft = anatomy(z)
        fine = soft - ndimage.gaussian_filter(soft, 1.0, mode="wrap")
        common = {"FrameOfReferenceUID": FRAME, "PatientName": "CANARY^JANE"}
        write_slice(
            folder / "soft" / f"{place}.dcm",
            np.rint(soft).astype(np.uint16),
            **{"position": (0, 0, z), **common, **soft_elements},
        )
        write_slice(
            folder / "sharp" / f"{-place + 99}.dcm",
            np.rint(soft + 2 * fine).astype(np.uint16),
            position=(0, 0, z),
            series="1.2.4",
            **common,
        )
    return {"sharp": folder / "sharp", "soft": folder / "soft", "steps": 6, "size_px": SIZE}


def test_slices_are_paired_by_position_and_not_by_name(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice)
    task = kernel_task(**folders)
    assert task.fitted_pairs == 4
    # Sharp is soft + 2 (soft - Gaussian of it): 3 - 2 exp(-2 (pi sigma f)^2), f in cycles a pixel.
    f = np.linspace(0, 0.25, 6)  # 32 pixels of 2: up to half the Nyquist frequency of 64
    expected = 3 - 2 * np.exp(-2 * (np.pi * f) ** 2)
    np.testing.assert_allclose(task.transfer[:5], expected[:5], atol=0.12)
    assert max(task.noise_hu) < 5
    # Paired by name, they would not match at all.
    for path in (tmp_path / "sharp").iterdir():
        dataset = dcmread(path)
        dataset.ImagePositionPatient = [0, 0, 3 - float(dataset.ImagePositionPatient[2])]
        dataset.save_as(path)
    assert max(kernel_task(**folders).noise_hu) > 50


def test_what_is_printed_is_a_task_and_tells_nothing_else(tmp_path, write_slice):
    text = as_toml(kernel_task(**write_pairs(tmp_path, write_slice)))
    task = RunContract.model_validate({"name": "x", **tomllib.loads(text)}).task
    assert (task.name, task.size_px, len(task.transfer)) == ("ct-kernel", SIZE, 6)
    assert set(tomllib.loads(text)["task"]) == {
        *("name", "size_px", "transfer", "noise_hu", "fitted_pairs")
    }
    assert "CANARY" not in text and FRAME not in text and str(tmp_path) not in text


def test_only_shared_positions_count(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice)
    write_slice(tmp_path / "soft" / "more", position=(0, 0, 50), FrameOfReferenceUID=FRAME)
    write_slice(tmp_path / "sharp" / "other", position=(0, 0, 60), FrameOfReferenceUID=FRAME)
    (tmp_path / "soft" / "notes.txt").write_text("no image")
    assert kernel_task(**folders).fitted_pairs == 4
    # A second soft slice at one position makes that one ambiguous.
    flat = np.zeros((EDGE, EDGE), np.uint16)
    write_slice(tmp_path / "soft" / "again", flat, position=(0, 0, 2), FrameOfReferenceUID=FRAME)
    assert kernel_task(**folders).fitted_pairs == 3


def test_a_slice_that_cannot_be_decoded_leaves_with_its_partner(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice)
    broken = tmp_path / "soft" / "1.dcm"
    dataset = dcmread(broken)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.PixelData = encapsulate([b"none of a decoder's"])
    dataset.save_as(broken)
    assert kernel_task(**folders).fitted_pairs == 3


def test_a_hostile_file_among_the_slices_costs_itself_alone(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice)
    expected = kernel_task(**folders)
    os.mkfifo(tmp_path / "sharp" / "pipe.dcm")  # opening it would wait for ever
    bomb = write_slice(tmp_path / "soft" / "bomb.dcm", syntax=DeflatedExplicitVRLittleEndian)
    head = bomb.read_bytes()[: 132 + 12 + dcmread(bomb).file_meta.FileMetaInformationGroupLength]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(bytes(300 * 2**20)) + deflate.flush()  # 300 MiB in 300 kB
    bomb.write_bytes(head + packed)
    assert kernel_task(**folders) == expected


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"FrameOfReferenceUID": "1.2.3.78"}, "one frame of reference"),
        ({"FrameOfReferenceUID": ""}, "one frame of reference"),
        ({"orientation": (1, 0, 0, 0, 0.99, 0.14)}, "one orientation"),
        ({"position": (0, 0, 0.5)}, "one position along the body within 0.1 mm"),
        ({"position": (0.2, 0, 1)}, "one matrix, and corners"),
        ({"PixelSpacing": [1.01, 1.01]}, "one matrix, and corners"),
    ],
)
def test_without_pairs_the_error_says_what_they_lack(tmp_path, write_slice, elements, said):
    with pytest.raises(KernelFitError, match=said) as caught:
        kernel_task(**write_pairs(tmp_path, write_slice, **elements))
    assert "none of 4 sharp slices" in str(caught.value)
    assert "1.2.3" not in str(caught.value)


def test_within_a_tenth_of_a_millimetre_is_one_position(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice, positions=[3], position=(0.05, 0, 3.05))
    assert kernel_task(**folders).fitted_pairs == 1


def test_folders_that_cannot_be_used_are_named(tmp_path, write_slice):
    folders = write_pairs(tmp_path, write_slice)
    with pytest.raises(KernelFitError, match="swap the two"):
        kernel_task(**{**folders, "sharp": folders["soft"], "soft": folders["sharp"]})
    with pytest.raises(KernelFitError, match="4 to 8 steps"):
        kernel_task(**{**folders, "steps": 9})
    with pytest.raises(KernelFitError, match="several slices of one kind"):
        kernel_task(**{**folders, "sharp": tmp_path, "soft": tmp_path})
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntakeError, match="no axial CT image"):
        kernel_task(**{**folders, "soft": tmp_path / "empty"})
    with pytest.raises(IntakeError, match="is not a folder"):
        kernel_task(**{**folders, "soft": tmp_path / "absent"})


def test_real_pairs(real_data):
    patient = real_data / "ct" / "kernel-pairs" / "Lung_Dx-A0001"
    # Of this scanner, L is the lung kernel: the sharp one.
    task = kernel_task(sharp=patient / "kernel-L", soft=patient / "kernel-B", steps=16, size_px=128)
    assert task.fitted_pairs == 8
    assert task.transfer[0] == pytest.approx(1, abs=0.02)
    assert all(np.diff(task.transfer) > 0)
    assert 1.5 < task.transfer[-1] < 2.5
    assert all(5 < noise < 60 for noise in task.noise_hu)
    with pytest.raises(KernelFitError, match="swap the two"):
        kernel_task(sharp=patient / "kernel-B", soft=patient / "kernel-L", steps=16, size_px=128)
