"""Names of MR sequences, as sites and scanners write them."""

import re


def names_sequence(text: str, sequence: str) -> bool:
    """Whether a word of ``text`` begins with ``sequence``, in any case: "T1" is in "sub-3_T1w"."""
    return re.search(rf"(?<![a-z0-9]){re.escape(sequence.lower())}", text.lower()) is not None
