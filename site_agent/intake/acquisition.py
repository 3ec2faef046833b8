"""How a slice was made, in words that can name nobody: maker, kernel, tube current and time.

These elements are free text that a person or a de-identification tool may have written anything
into. A maker is one of a list, a kernel a short code in the way vendors write theirs; whatever else
a file says is ``other``, and its own text is not kept.
"""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from pydicom import Dataset

from site_agent.intake.elements import number, texts
from site_agent.intake.strictness import STRICT

OTHER, UNSAID = "other", "not said"

_MOST_MAS = 1e6

_MAKERS = {
    "GE MEDICAL": "GE",
    "GE HEALTHCARE": "GE",
    "SIEMENS": "Siemens",
    "PHILIPS": "Philips",
    "PICKER": "Philips",
    "MARCONI": "Philips",
    "TOSHIBA": "Canon",
    "CANON": "Canon",
    "HITACHI": "Fujifilm",
    "FUJIFILM": "Fujifilm",
    "UIH": "United Imaging",
    "UNITED IMAGING": "United Imaging",
    "NEUSOFT": "Neusoft",
    "NEUROLOGICA": "NeuroLogica",
    "SAMSUNG": "Samsung",
    "SHIMADZU": "Shimadzu",
    "ESAOTE": "Esaote",
    "BRUKER": "Bruker",
}
_KERNEL_WORDS = re.compile(
    r"STANDARD|STND|STD\+|SOFT|DETAIL|LUNG|BONE|BONEPLUS|BONE\+|EDGE|CHEST|ULTRA|SMOOTH|SHARP"  # GE
    r"|[A-FL]|U[A-D]|Y[A-E]|L[ABCI]|I[AB]|[CE][ABC]",  # Philips
    re.IGNORECASE,
)
_KERNEL_CODE = re.compile(
    r"(?:FC\d{2}"  # Canon
    r"|[ABDEFHIJSTU]\d{2}[fhmsuv]?"  # Siemens up to VB
    r"|(?:Bf|Bl|Bn|Br|Bv|Hc|Hf|Hn|Hp|Hr|Hv|Qr|Sa|Sd)\d{2}[dfhmsuv]?)"  # Siemens since
)


@dataclass(frozen=True)
class Acquisition:
    """A slice's maker, kernel and exposure in mAs, as far as its file tells them."""

    __pydantic_config__: ClassVar = STRICT

    maker: str = UNSAID
    kernel: str = UNSAID
    exposure_mas: float | None = None


def acquisition(header: Dataset, frame: Dataset) -> Acquisition:
    """What the elements of an object and of its frame tell; never raises on what they hold."""
    return Acquisition(
        maker=maker_of(_first(header, "Manufacturer")),
        kernel=kernel_of(_first(frame, "ConvolutionKernel")),
        exposure_mas=_exposure_mas(frame),
    )


def maker_of(text: str) -> str:
    """The maker's usual name, whatever the firm was called when the scanner was sold."""
    if not text.strip():
        return UNSAID
    found = text.strip().upper()
    return next((name for begin, name in _MAKERS.items() if found.startswith(begin)), OTHER)


def kernel_of(text: str) -> str:
    """A kernel's code, where it is written as vendors write theirs."""
    code = text.strip()
    if not code:
        return UNSAID
    known = _KERNEL_WORDS.fullmatch(code) or _KERNEL_CODE.fullmatch(code)
    return code if known else OTHER


def _first(elements: Dataset, keyword: str) -> str:
    try:
        return next(iter(texts(elements, keyword)), "")
    except Exception:  # what cannot be read says nothing; its text is not repeated
        return ""


def _exposure_mas(frame: Dataset) -> float | None:
    for keyword in ("Exposure", "ExposureInmAs"):  # the second of enhanced objects
        try:
            value = number(frame, keyword)
        except Exception:  # as above
            continue
        if value is not None and math.isfinite(value) and 0 < value < _MOST_MAS:
            return value
    return None
