from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    JPEG2000Lossless,
)

from site_agent.intake.dicom import read_header, read_headers, read_pixels, read_signal
from site_agent.intake.reasons import Skipped, SkipReason


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write_enhanced(path, write_slice, *, modality="CT", slope=2.0):
    """Three frames of 32 x 48: two axial ones, the upper first, and a coronal one between."""
    stored = np.arange(3 * 32 * 48, dtype=np.uint16).reshape(3, 32, 48)
    write_slice(path, stored[0], Modality=modality)
    dataset = dcmread(path)
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
        "RescaleSlope", "RescaleIntercept",
    ):  # fmt: skip
        delattr(dataset, keyword)
    kind = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.NumberOfFrames = 3
    dataset.PixelData = stored.tobytes()
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.6], SliceThickness=3.0)],
        PixelValueTransformationSequence=[
            item(RescaleSlope=slope, RescaleIntercept=-1000, RescaleType="HU")
        ],
    )
    coronal, axial = [1, 0, 0, 0, 0, -1], [1, 0, 0, 0, 1, 0]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=turned)],
        )
        for z, turned in ((9, axial), (5, coronal), (6, axial))
    ]
    dataset.save_as(path)
    return stored


def test_enhanced_ct_is_read_frame_by_frame(tmp_path, write_slice):
    stored = write_enhanced(tmp_path / "a", write_slice)
    slices, refused = read_headers(tmp_path / "a")
    assert refused == [SkipReason.NOT_AXIAL]
    assert [(one.number, one.position_mm) for one in slices] == [(0, 9), (2, 6)]
    assert {(one.spacing_mm, one.thickness_mm) for one in slices} == {((0.5, 0.6), 3.0)}
    for one in slices:
        np.testing.assert_array_equal(read_pixels(one), stored[one.number] * 2.0 - 1000)


def test_enhanced_mr_is_read_frame_by_frame(tmp_path, write_slice):
    stored = write_enhanced(tmp_path / "a", write_slice, modality="MR", slope=0.5)
    slices, _ = read_headers(tmp_path / "a", modality="MR")
    np.testing.assert_array_equal(read_signal(slices[1]), stored[2] * 0.5 - 1000)


def test_frames_without_their_groups_are_a_code(tmp_path, write_slice):
    write_enhanced(tmp_path / "a", write_slice)
    dataset = dcmread(tmp_path / "a")
    del dataset.PerFrameFunctionalGroupsSequence[1]
    dataset.save_as(tmp_path / "a")
    with pytest.raises(Skipped) as caught:
        read_headers(tmp_path / "a")
    assert caught.value.reason is SkipReason.NO_GEOMETRY


def test_jpeg_2000_is_read(tmp_path, write_slice):
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    dataset = dcmread(write_slice(tmp_path / "a", stored))
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    dataset.save_as(tmp_path / "a")
    np.testing.assert_array_equal(read_pixels(read_header(tmp_path / "a")), stored - 1024.0)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_what_gdcm_compressed_without_loss_is_read(tmp_path, write_slice, syntax):
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48) % 4096
    reader = gdcm.ImageReader()
    reader.SetFileName(str(write_slice(tmp_path / "plain", stored)))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "a"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    written = dcmread(tmp_path / "a")
    written.RescaleType = "HU"  # gdcm writes US
    written.save_as(tmp_path / "a")
    np.testing.assert_array_equal(read_pixels(read_header(tmp_path / "a")), stored - 1024.0)


@pytest.mark.parametrize(
    "name", ["bigendian", "implicit", "RLE", "jpeg_ls_lossless", "jp2klossless", "padded"]
)
def test_one_image_is_the_same_in_every_syntax(name):
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    plain, other = (
        read_header(folder / f"MR_small{kind}.dcm", modality="MR") for kind in ("", f"_{name}")
    )
    np.testing.assert_array_equal(read_signal(other), read_signal(plain))


def test_monochrome1_of_mr_is_inverted(tmp_path, write_slice):
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    path = write_slice(
        tmp_path / "a", stored, Modality="MR", PhotometricInterpretation="MONOCHROME1",
        RescaleIntercept=0,
    )  # fmt: skip
    signal = read_signal(read_header(path, modality="MR"))
    np.testing.assert_array_equal(signal, 65535.0 - stored)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("1.2.840.10008.5.1.4.1.1.7", SkipReason.SECONDARY_CAPTURE),
        ("1.2.840.10008.5.1.4.1.1.7.2", SkipReason.SECONDARY_CAPTURE),
        ("1.2.840.10008.5.1.4.1.1.128", SkipReason.UNSUPPORTED_CLASS),
    ],
)
def test_other_objects_are_refused(tmp_path, write_slice, kind, reason):
    path = write_slice(tmp_path / "a", SOPClassUID=kind)
    with pytest.raises(Skipped) as caught:
        read_header(path)
    assert caught.value.reason is reason


def test_kernel_and_exposure_are_in_the_functional_groups(tmp_path, write_slice):
    write_enhanced(tmp_path / "a", write_slice)
    dataset = dcmread(tmp_path / "a")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.CTReconstructionSequence = [item(ConvolutionKernel="Br40d")]
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.CTExposureSequence = [item(ExposureInmAs=12.5 + number)]
    dataset.save_as(tmp_path / "a")
    slices, _ = read_headers(tmp_path / "a")
    told = [(one.acquisition.kernel, one.acquisition.exposure_mas) for one in slices]
    assert told == [("Br40d", 12.5), ("Br40d", 14.5)]
