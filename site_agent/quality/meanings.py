"""What each code of intake means, and what a hospital can do about it."""

from site_agent.intake.reasons import Finding, SkipReason

MEANINGS: dict[SkipReason, tuple[str, str]] = {
    SkipReason.NOT_AN_IMAGE: (
        "neither DICOM nor NIfTI, or a DICOM directory",
        "nothing, where such files are expected there",
    ),
    SkipReason.UNREADABLE: (
        "damaged, or may not be read",
        "check the file's permissions; export it again",
    ),
    SkipReason.TOO_LARGE: ("larger than a slice or volume can be", "export single images"),
    SkipReason.UNSUPPORTED_SYNTAX: (
        "a transfer syntax that is not read, or has no decoder here",
        "export uncompressed, or as JPEG 2000 or JPEG-LS lossless",
    ),
    SkipReason.UNSUPPORTED_CLASS: (
        "a DICOM object other than a CT or MR image",
        "nothing: reports, segmentations and the like are not for this",
    ),
    SkipReason.SECONDARY_CAPTURE: ("a screen capture", "nothing: it has no units"),
    SkipReason.NOT_CT: ("another modality than CT", "nothing, or set modality in site.toml"),
    SkipReason.NOT_MR: ("another modality than MR", "nothing, or set modality in site.toml"),
    SkipReason.OTHER_SEQUENCE: (
        "an MR series of another name than the site's sequence",
        "nothing, or change sequence in site.toml",
    ),
    SkipReason.NO_SIGNAL: ("an MR series in which nothing stands out", "look at the series"),
    SkipReason.MOSTLY_AIR: ("an MR slice at the end of the anatomy", "nothing"),
    SkipReason.NOT_GREYSCALE: ("colour or palette", "nothing: a screen capture or a report"),
    SkipReason.MULTI_FRAME: (
        "several frames in an object with no place for theirs",
        "export it as single images, or as an enhanced object",
    ),
    SkipReason.LOCALISER: ("a localiser", "nothing"),
    SkipReason.BURNED_IN: (
        "text in the pixels, which may name the patient",
        "nothing: such images must not take part",
    ),
    SkipReason.NOT_AXIAL: ("coronal, sagittal or oblique", "nothing: axial slices are used"),
    SkipReason.NO_GEOMETRY: (
        "position, orientation or spacing absent or impossible",
        "export the original images; a tool may have removed them",
    ),
    SkipReason.NOT_HOUNSFIELD: (
        "no rescale to Hounsfield units",
        "export the original images; a tool may have removed it",
    ),
    SkipReason.TRUNCATED: ("fewer pixels than the header promises", "export the file again"),
    SkipReason.UNDECODABLE: (
        "pixels that could not be decoded",
        "export the file again, uncompressed",
    ),
    SkipReason.DUPLICATE: ("the same image again", "nothing"),
    SkipReason.SAME_PLACE: (
        "another image of a series where it has one already",
        "nothing: of phases and repeats one is used",
    ),
    SkipReason.NOT_A_VOLUME: ("NIfTI of other than three dimensions", "export single volumes"),
    SkipReason.CHANGED: ("changed while it was indexed", "run site-agent index again"),
    SkipReason.TOO_SLOW: (
        "took longer than a file may",
        "run site-agent index again; export the file again where it stays",
    ),
    SkipReason.TOO_MUCH_MEMORY: (
        "took more memory than a file may",
        "run site-agent index again; export the file again where it stays",
    ),
    SkipReason.CRASHED: (
        "ended the process that read it",
        "run site-agent index again; where it stays, keep the file away and tell us",
    ),
}
"""Of a quarantined file: what its code means, and what to do."""

ODDITIES: dict[Finding, str] = {
    Finding.GAPS: "slices are missing between the first and the last",
    Finding.TILTED_GANTRY: "the slices are off the body axis by 3 degrees or more",
    Finding.MIXED_GEOMETRY: "several orientations, matrices, pixel sizes or thicknesses in one",
}
"""What is odd about series that are used all the same."""
