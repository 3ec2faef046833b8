import pytest
from pydicom import Dataset

from site_agent.intake.acquisition import Acquisition, acquisition, kernel_of, maker_of


@pytest.mark.parametrize(
    "code", ["B30f", "I70f", "Br40d", "FC51", "STANDARD", "BONEPLUS", "YA", "L"]
)
def test_vendors_codes_are_kept(code):
    assert kernel_of(f" {code} ") == code


@pytest.mark.parametrize(
    "text", ["JANE DOE", "DOE", "P123", "19620304", "B30f Jane", "QZKXWVJY0000AAAA", "Ümlaut", "JD"]
)
def test_what_is_no_code_is_other(text):
    assert kernel_of(text) == "other"


def test_makers_have_one_name_whatever_they_were_called():
    names = ["SIEMENS", "Siemens Healthineers", "GE MEDICAL SYSTEMS", "TOSHIBA", "Jane Doe", " "]
    assert [maker_of(name) for name in names] == [
        *("Siemens", "Siemens", "GE", "Canon", "other", "not said")
    ]


def test_what_is_absent_or_no_number_is_not_said():
    assert acquisition(Dataset(), Dataset()) == Acquisition()
    header = Dataset()
    header.Manufacturer, header.ConvolutionKernel = "Philips", ["L", "2"]
    header.Exposure = 0
    assert acquisition(header, header) == Acquisition(maker="Philips", kernel="L")
    header.Exposure = 120
    assert acquisition(header, header).exposure_mas == 120
