"""Enhanced multi-frame objects: what holds for each frame, out of the functional groups.

Part 3 of the standard, C.7.6.16: a macro is in the shared functional groups or in those of each
frame. The elements that intake knows from single-frame images are gathered into one dataset a
frame, so that both kinds are read by the same rules.
"""

from collections.abc import Iterator

from pydicom import Dataset

from site_agent.intake.reasons import Skipped, SkipReason

FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

# Macro (C.7.6.16.2, C.8.13.5, C.8.15.3), its element, and the one it stands for.
_ELEMENTS = (
    ("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    ("PixelMeasuresSequence", "SliceThickness", "SliceThickness"),
    ("PixelValueTransformationSequence", "RescaleSlope", "RescaleSlope"),
    ("PixelValueTransformationSequence", "RescaleIntercept", "RescaleIntercept"),
    ("PixelValueTransformationSequence", "RescaleType", "RescaleType"),
    ("CTImageFrameTypeSequence", "FrameType", "ImageType"),
    ("MRImageFrameTypeSequence", "FrameType", "ImageType"),
    ("CTReconstructionSequence", "ConvolutionKernel", "ConvolutionKernel"),
    ("CTExposureSequence", "ExposureInmAs", "ExposureInmAs"),
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    ("FrameContentSequence", "StackID", "StackID"),
)


def frame_headers(header: Dataset, *, frames: int) -> Iterator[Dataset]:
    """One dataset a frame. Raises ``Skipped`` (no-geometry) where the groups are not there."""
    shared, each = (header.get(keyword) or [] for keyword in FUNCTIONAL_GROUPS)
    if len(each) != frames or len(shared) > 1:
        raise Skipped(SkipReason.NO_GEOMETRY)
    common = shared[0] if shared else Dataset()
    for own in each:
        frame = Dataset()
        if "ImageType" in header:
            frame.ImageType = header.ImageType
        for macro, element, keyword in _ELEMENTS:
            items = own.get(macro) or common.get(macro) or []
            if len(items) and element in items[0]:
                setattr(frame, keyword, items[0].get(element))
        yield frame
