import logging
import warnings

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from site_agent.intake import syntaxes
from site_agent.intake.dicom import read_header, read_pixels, read_signal
from site_agent.intake.reasons import Skipped, SkipReason


def reason_of(path, *, pixels=False):
    with pytest.raises(Skipped) as caught:
        header = read_header(path)
        if pixels:
            read_pixels(header)
    assert str(caught.value) == caught.value.reason.value
    assert caught.value.__cause__ is None
    return caught.value.reason


def test_a_slice_is_read(tmp_path, write_slice):
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    path = write_slice(
        tmp_path / "a", stored, position=(1, 2, 30), PixelSpacing=[0.7, 0.8], SliceThickness=1.25
    )
    header = read_header(path)
    assert header.position_mm == 30
    assert header.spacing_mm == (0.7, 0.8)
    assert header.thickness_mm == 1.25
    assert header.patient_id == "P1"
    assert (read_pixels(header) == stored.astype(int) - 1024).all()


def test_a_slice_lying_on_its_side_is_turned_with_its_spacing(tmp_path, write_slice):
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    path = write_slice(
        tmp_path / "a", stored, orientation=(0, -1, 0, 1, 0, 0), PixelSpacing=[0.7, 0.8]
    )
    header = read_header(path)
    assert header.spacing_mm == (0.8, 0.7)
    assert (read_pixels(header) == stored.T[::-1].astype(int) - 1024).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("declared", "vr"), [(-2000, "SS"), (63536, "US")])
def test_padding_as_declared_in_the_header(tmp_path, write_slice, syntax, declared, vr):
    stored = np.full((32, 32), 1064, np.int16)
    stored[:4] = -2000
    # An intercept such that only the declaration tells what is air.
    path = write_slice(tmp_path / "a", stored, RescaleIntercept=1500, syntax=syntax)
    dataset = dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, declared)
    dataset.save_as(path)
    hu = read_pixels(read_header(path))
    assert (hu[:4] == -1000).all()
    assert (hu[4:] == 2564).all()


def test_monochrome1_concerns_display_not_hounsfield_units(tmp_path, write_slice):
    stored = np.full((32, 32), 1064, np.int16)
    path = write_slice(tmp_path / "a", stored, PhotometricInterpretation="MONOCHROME1")
    assert (read_pixels(read_header(path)) == 40).all()


def test_run_length_encoding_is_decoded(tmp_path, write_slice):
    stored = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    path = write_slice(tmp_path / "a", stored)
    dataset = dcmread(path)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.save_as(path)
    assert (read_pixels(read_header(path)) == stored.astype(int) - 1024).all()


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR"}, SkipReason.NOT_CT),
        ({"Modality": None}, SkipReason.NOT_CT),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, SkipReason.LOCALISER),
        ({"NumberOfFrames": 3}, SkipReason.MULTI_FRAME),
        ({"PhotometricInterpretation": "RGB"}, SkipReason.NOT_GREYSCALE),
        ({"SamplesPerPixel": 3}, SkipReason.NOT_GREYSCALE),
        ({"BurnedInAnnotation": "YES"}, SkipReason.BURNED_IN),
        ({"orientation": (1, 0, 0, 0, 0, -1)}, SkipReason.NOT_AXIAL),
        ({"ImageOrientationPatient": None}, SkipReason.NO_GEOMETRY),
        ({"ImagePositionPatient": None}, SkipReason.NO_GEOMETRY),
        ({"PixelSpacing": None}, SkipReason.NO_GEOMETRY),
        ({"PixelSpacing": [0, 1]}, SkipReason.NO_GEOMETRY),
        ({"RescaleSlope": None}, SkipReason.NOT_HOUNSFIELD),
        ({"RescaleSlope": 0}, SkipReason.NOT_HOUNSFIELD),
        ({"RescaleIntercept": None}, SkipReason.NOT_HOUNSFIELD),
        ({"RescaleType": "US"}, SkipReason.NOT_HOUNSFIELD),
        ({"Rows": 5000, "Columns": 5000}, SkipReason.TOO_LARGE),
        ({"Rows": 0}, SkipReason.UNREADABLE),
        ({"Rows": 1024, "Columns": 1024}, SkipReason.TRUNCATED),
    ],
)
def test_what_is_not_an_axial_ct_slice_is_skipped(tmp_path, write_slice, elements, reason):
    assert reason_of(write_slice(tmp_path / "a", **elements)) is reason


def test_scanners_spell_hounsfield_in_their_own_ways(tmp_path, write_slice):
    assert read_header(write_slice(tmp_path / "a", RescaleType="Houndsfield Unit")).slope == 1


def test_a_syntax_without_decoder_is_a_code(tmp_path, write_slice):
    path = write_slice(tmp_path / "a")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    assert reason_of(path) is SkipReason.UNSUPPORTED_SYNTAX


def test_deflated_files_are_read_up_to_a_limit(tmp_path, write_slice, monkeypatch):
    stored = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    path = write_slice(tmp_path / "a", stored, syntax=DeflatedExplicitVRLittleEndian)
    assert (read_pixels(read_header(path)) == stored.astype(int) - 1024).all()
    monkeypatch.setattr(syntaxes, "MAX_INFLATED_BYTES", 2000)
    assert reason_of(path) is SkipReason.TOO_LARGE


def test_pixels_that_are_no_jpeg_are_a_code(tmp_path, write_slice):
    path = write_slice(tmp_path / "a")
    dataset = dcmread(path)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.PixelData = dataset.PixelData[:40] + b"\xff" * (len(dataset.PixelData) - 40)
    dataset.save_as(path)
    assert reason_of(path, pixels=True) is SkipReason.UNDECODABLE


def test_jpeg_lossless_is_read_or_refused_by_its_header(tmp_path, write_slice):
    path = write_slice(tmp_path / "a")
    dataset = dcmread(path)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1  # which it is not
    dataset.save_as(path)
    reason = reason_of(path, pixels=True)
    assert reason in (SkipReason.UNSUPPORTED_SYNTAX, SkipReason.UNDECODABLE)


def test_a_damaged_file_is_a_code(tmp_path, write_slice):
    path = write_slice(tmp_path / "a")
    whole = path.read_bytes()
    for length in (0, 100, 140, 200, 400, len(whole) - 100):
        path.write_bytes(whole[:length])
        assert reason_of(path, pixels=True) in (
            SkipReason.NOT_AN_IMAGE,
            SkipReason.UNREADABLE,
            SkipReason.UNSUPPORTED_SYNTAX,
            SkipReason.UNDECODABLE,
            SkipReason.TRUNCATED,
            SkipReason.UNSUPPORTED_CLASS,
            SkipReason.NOT_CT,
        )


def test_bad_values_reach_neither_log_nor_warnings_nor_exception(
    tmp_path, write_slice, caplog, capfd
):
    path = write_slice(tmp_path / "a")
    # A UID that is none, of which pydicom warns, and a number that cannot be parsed.
    content = path.read_bytes().replace(b"1.2.3\0", b"CANUID", 1)
    path.write_bytes(content.replace(b"-1024.0 ", b"CANARY-1", 1))
    caplog.set_level(logging.DEBUG)
    # The positive control: without us both are said aloud.
    with pytest.warns(UserWarning, match="CANUID"):
        _ = dcmread(path).SeriesInstanceUID
    with pytest.raises(ValueError, match="CANARY"):
        float(dcmread(path).RescaleIntercept)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert reason_of(path) is SkipReason.UNREADABLE
    assert not caught
    output = capfd.readouterr()
    assert "CAN" not in caplog.text + output.out + output.err


def test_mr_signal_is_rescaled_slice_by_slice_and_needs_no_rescale(tmp_path, write_slice):
    stored = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    scaled = write_slice(
        tmp_path / "a", stored, Modality="MR", RescaleSlope=0.5, RescaleIntercept=3, EchoTime=20
    )
    bare = write_slice(
        tmp_path / "b", stored, Modality="MR", RescaleSlope=None, RescaleIntercept=None, EchoTime=90
    )
    first, second = (read_header(path, modality="MR") for path in (scaled, bare))
    np.testing.assert_array_equal(read_signal(first), stored * 0.5 + 3)
    np.testing.assert_array_equal(read_signal(second), stored)
    assert first.series != second.series, "two echoes of a series are two contrasts"


def test_mr_padding_becomes_zero_but_only_outside(tmp_path, write_slice):
    stored = np.full((32, 32), 500, np.uint16)
    stored[:4] = stored[20, 20] = 4000
    path = write_slice(tmp_path / "a", stored, Modality="MR", RescaleIntercept=0)
    dataset = dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 4000)
    dataset.save_as(path)
    signal = read_signal(read_header(path, modality="MR"))
    assert (signal[:4] == 0).all() and signal[20, 20] == 4000


def test_a_slice_lying_on_its_side_has_its_shape_turned(tmp_path, write_slice):
    stored = np.zeros((32, 48), np.uint16)
    turned = write_slice(tmp_path / "a", stored, orientation=(0, -1, 0, 1, 0, 0))
    assert read_header(turned).shape == (48, 32)
    assert read_header(write_slice(tmp_path / "b", stored)).shape == (32, 48)


@pytest.mark.parametrize("tag", ["ProtocolName", "SeriesDescription"])
def test_a_sequence_is_looked_for_in_the_names_of_a_series(tmp_path, write_slice, tag):
    path = write_slice(tmp_path / "a", Modality="MR", **{tag: "ax T2 FLAIR CANARY"})
    header = read_header(path, modality="MR", sequence="flair")
    assert "CANARY" not in repr(header)
    with pytest.raises(Skipped) as caught:
        read_header(path, modality="MR", sequence="T1")
    assert caught.value.reason is SkipReason.OTHER_SEQUENCE


def test_ct_is_not_mr(tmp_path, write_slice):
    with pytest.raises(Skipped) as caught:
        read_header(write_slice(tmp_path / "a"), modality="MR")
    assert caught.value.reason is SkipReason.NOT_MR
