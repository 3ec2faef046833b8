import numpy as np
import pytest
from scipy import ndimage

from site_agent.cohort import build_cohort, paired
from site_agent.intake.acquisition import Acquisition
from site_agent.intake.dicom import read_header
from site_agent.intake.folder import read_folder
from site_agent.intake.pairing import couples, fine_power, kind_of, unlikeness, worse_side
from site_agent.intake.reasons import IntakeReport

FRAME, EDGE = "1.2.3.77", 48


def image(seed, noise):
    generator = np.random.default_rng(seed)
    body = 3000 * ndimage.gaussian_filter(generator.standard_normal((EDGE, EDGE)), 4) + 1000
    return np.rint(body + noise * generator.standard_normal((EDGE, EDGE))).astype(np.uint16)


def write_series(folder, write_slice, *, series, noise, positions=range(4), moved=0, **elements):
    for z in positions:
        write_slice(
            folder / f"{series}-{z}-{noise}.dcm",
            np.roll(image(z, noise), moved, axis=0),
            series=series,
            **{
                "position": (0, 0, 3 * z),
                "FrameOfReferenceUID": FRAME,
                "StudyInstanceUID": "1.2.5",
                **elements,
            },
        )


def read(folder, **settings):
    report = IntakeReport()
    patients = list(
        read_folder(
            folder,
            **{"pseudonym_key": b"", "slices_per_patient": 8, **settings},
            report=report,
            modality="CT",
            readers=1,
        )
    )
    return patients, report


def test_two_kernels_are_pairs_and_the_noisier_is_lq(tmp_path, write_slice):
    write_series(tmp_path, write_slice, series="1.1", noise=60, ConvolutionKernel="B70f")
    # The soft series reaches further and says it is the noisier one: what is measured counts.
    soft = {"ConvolutionKernel": "B30f", "Exposure": 1, "positions": range(6)}
    write_series(tmp_path, write_slice, series="1.2", noise=5, **soft)
    (patient,), report = read(tmp_path)
    assert len(patient.pairs) == 4
    for z, pair in enumerate(patient.pairs):
        assert pair.kind == "kernel"
        np.testing.assert_array_equal(pair.lq.pixels, image(z, 60).astype(int) - 1024)
        np.testing.assert_array_equal(pair.hq.pixels, image(z, 5).astype(int) - 1024)
    assert report.as_json()["pairs"] == {"kernel": 4}
    assert "1 patients have 4 of kernel" in report.summary()
    # And through the cohort: patients who have pairs, HQ and LQ side by side.
    cohort = build_cohort(tmp_path / "cohort", [patient], modality="CT")
    assert paired(cohort, "dose") is None
    own = paired(cohort, "kernel")
    assert own is not None
    assert (own.patients, own.slices) == (1, 4)
    (images,) = own.images(size_px=EDGE, low=-1024, high=3071)
    assert images.shape == (4, 2, EDGE, EDGE)
    for z in range(4):
        for side, noise in enumerate((5, 60)):
            np.testing.assert_allclose(images[z, side] * 4095, image(z, noise), atol=0.01)
    assert cohort.slices == len(patient.slices)


@pytest.mark.parametrize(
    "change",
    [
        {"StudyInstanceUID": "1.2.6"},
        {"FrameOfReferenceUID": "1.2.3.78"},
        {"FrameOfReferenceUID": ""},
        {"SliceThickness": 2.2},
        {"PixelSpacing": [1.01, 1.01]},
        {"orientation": (0.999, 0.0447, 0, -0.0447, 0.999, 0)},
        {"patient_id": "P2"},
        {"noise": 61},  # hardly differs
        {"AcquisitionTime": "101112"},  # another phase
        {"moved": 4},
    ],
)
def test_what_differs_in_place_or_hardly_in_noise_is_no_pair(tmp_path, write_slice, change):
    write_series(tmp_path, write_slice, series="1.1", noise=60, AcquisitionTime="101010")
    alike = {"noise": 5, "AcquisitionTime": "101010"}
    write_series(tmp_path, write_slice, series="1.2", **{**alike, **change})
    patients, report = read(tmp_path)
    assert not report.pairs
    assert all(not patient.pairs for patient in patients)


def test_pairs_are_no_more_than_asked_and_lose_what_cannot_be_read(tmp_path, write_slice):
    write_series(tmp_path, write_slice, series="1.1", noise=60)
    write_series(tmp_path, write_slice, series="1.2", noise=5)
    assert len(read(tmp_path, slices_per_patient=2)[0][0].pairs) == 2
    broken = tmp_path / "1.2-3-5.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert len(read(tmp_path)[0][0].pairs) == 3


def test_each_series_is_in_one_couple_the_one_with_most_places(tmp_path, write_slice):
    write_series(tmp_path, write_slice, series="1.1", noise=60)
    write_series(tmp_path, write_slice, series="1.2", noise=5)
    write_series(tmp_path, write_slice, series="1.3", noise=20, positions=range(2))
    slices = [read_header(path) for path in sorted(tmp_path.iterdir())]
    (couple,) = couples(slices)
    assert [{a.series, b.series} for a, b in couple] == [{"1.1", "1.2"}] * 4


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (("B30f", None), ("B70f", 10.0), "kernel"),
        (("B30f", None), ("B30f", None), "dose"),
        (("not said", 100.0), ("not said", 25.0), "dose"),
        (("other", 100.0), ("other", 101.0), "kernel"),
        (("not said", None), ("B30f", 10.0), "kernel"),
    ],
)
def test_tags_say_what_a_pair_differs_by(one, other, kind):
    made = [Acquisition(kernel=kernel, exposure_mas=dose) for kernel, dose in (one, other)]
    assert kind_of(*made) == kind_of(*reversed(made)) == kind


def test_fine_power_of_white_noise_is_its_share_above_half_nyquist():
    noise = np.rint(40 * np.random.default_rng(0).standard_normal((256, 256))).astype(np.int16)
    taper = np.mean(np.hanning(256) ** 2) ** 2
    share = 1 - np.pi / 16  # of the square of frequencies, what lies outside the circle
    half = 1 / 2  # the transform of real numbers keeps one of two conjugate halves
    assert fine_power(noise) == pytest.approx(40**2 * 256**2 * taper * share * half, rel=0.03)
    assert worse_side([(noise, 2 * noise)]) == 1
    assert worse_side([(2 * noise, noise)]) == 0
    assert worse_side([(noise, noise)]) is None
    assert worse_side([]) is None


def test_unlikeness_is_the_coarse_difference_over_the_contrast():
    halves = np.zeros((64, 64), np.int16)
    halves[:, 32:] = 1000  # standard deviation 500
    assert unlikeness(halves, halves) == 0
    assert unlikeness(halves, halves + np.int16(50)) == pytest.approx(0.1)
    checks = halves + np.int16(300) * (np.indices((64, 64)).sum(axis=0) % 2 * 2 - 1)
    assert unlikeness(halves, checks.astype(np.int16)) == 0
    assert unlikeness(0 * halves, 0 * halves + np.int16(20)) == pytest.approx(0.1)


def test_what_is_told_twice_must_agree_and_what_is_not_told_may(tmp_path, write_slice):
    write_series(tmp_path, write_slice, series="1.1", noise=60, AcquisitionTime="101010")
    write_series(tmp_path, write_slice, series="1.2", noise=5)
    assert read(tmp_path)[1].pairs == {"kernel": 4}
