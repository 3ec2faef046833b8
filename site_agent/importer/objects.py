"""Which DICOM objects are imported, and what is read of one: its file meta information alone."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)

STORAGE_CLASSES: tuple[UID, ...] = (
    CTImageStorage,
    MRImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
)
TRANSFER_SYNTAXES: tuple[UID, ...] = (
    # Those that intake reads; a sender's own order decides.
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
)

_NOISY = ("pynetdicom", "pydicom", "dicomweb_client", "urllib3", "requests")


@dataclass(frozen=True)
class Identity:
    """What file meta information says of an object (part 10 of the standard, 7.1)."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str

    @property
    def wanted(self) -> bool:
        """Whether it is of a storage class and transfer syntax that are imported."""
        return self.sop_class in STORAGE_CLASSES and self.transfer_syntax in TRANSFER_SYNTAXES


def identify(path: Path) -> Identity | None:
    """Reads a file's meta information and nothing else of it; None where it is no DICOM file."""
    try:
        meta = read_file_meta_info(path)
        return Identity(
            sop_class=str(meta.MediaStorageSOPClassUID),
            sop_instance=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax=str(meta.TransferSyntaxUID),
        )
    except Exception:
        # Whatever it says may repeat what the file says.
        return None


def silence() -> None:
    """Turns off the loggers of libraries that repeat tag values, UIDs and addresses of images."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
