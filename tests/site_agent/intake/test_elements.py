"""Values taken from bytes are those that pydicom gives, whatever is read first."""

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from site_agent.intake.dicom import read_header, read_pixels
from site_agent.intake.elements import header_elements, integer, number, numbers, text, texts
from site_agent.intake.syntaxes import opened, transfer_syntax

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def elements_of(path):
    with opened(path) as file:
        syntax, begin = transfer_syntax(file)
        file.seek(begin)
        return header_elements(file, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_are_pydicoms(write_slice, tmp_path, syntax):
    path = write_slice(
        tmp_path / "a",
        syntax=syntax,
        position=(-12.5, 3e1, 0.25),
        PixelPaddingValue=24,
        ConvolutionKernel=["B30f", "2"],
    )
    ours, theirs = elements_of(path), dcmread(path)
    assert numbers(ours, "ImagePositionPatient") == [-12.5, 30.0, 0.25]
    assert numbers(ours, "PixelSpacing") == list(theirs.PixelSpacing)
    assert number(ours, "SliceThickness") == theirs.SliceThickness
    assert texts(ours, "ImageType") == list(theirs.ImageType)
    assert texts(ours, "ConvolutionKernel") == ["B30f", "2"]
    assert text(ours, "SOPInstanceUID") == theirs.SOPInstanceUID
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelRepresentation", "PixelPaddingValue"):
        assert integer(ours, keyword) == theirs[keyword].value, keyword
    assert texts(ours, "EchoTime") == [] and text(ours, "EchoTime") == ""
    assert number(ours, "EchoTime") is None and integer(ours, "PixelPaddingRangeLimit") is None


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_text_outside_ascii_is_of_the_files_character_set(write_slice, tmp_path, charset):
    path = write_slice(tmp_path / "a", patient_id="Müller-7", SpecificCharacterSet=charset)
    assert read_header(path).patient_id == "Müller-7"


def test_a_header_longer_than_the_first_read_is_read_whole(write_slice, tmp_path):
    stored = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    plain = write_slice(tmp_path / "a", stored)
    # A long element before the pixels, but after much of what is asked for.
    padded = write_slice(tmp_path / "b", stored)
    dataset = dcmread(padded)
    dataset.add_new(0x00290010, "LO", "MAKER")
    dataset.add_new(0x00291010, "OB", bytes(300_000))
    dataset.save_as(padded)
    assert padded.stat().st_size > 300_000
    for path in (plain, padded):
        assert (read_pixels(read_header(path)) == stored.astype(int) - 1024).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("bits_stored", [12, 16])
def test_bits_above_those_stored_are_ignored_as_pydicom_does(
    write_slice, tmp_path, dtype, bits_stored
):
    stored = np.random.default_rng(0).integers(0, 2**16, (32, 32)).astype(np.uint16).view(dtype)
    path = write_slice(
        tmp_path / "a", stored, BitsStored=bits_stored, HighBit=bits_stored - 1, RescaleIntercept=0
    )
    expected = dcmread(path).pixel_array.astype(int)
    if dtype == np.uint16:
        expected = np.where(expected > 32767, expected - 2**16, expected)  # a negative number
    expected = np.where(expected < -1200, -1000, np.maximum(expected, -1024))
    assert (read_pixels(read_header(path)) == expected).all()
