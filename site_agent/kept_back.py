"""Patients whom a site keeps back: out of every gradient of a contract that is judged at the sites.

Whether a patient is one of them follows from an HMAC of the pseudonym under the site's own key: who
was kept back once stays so, whoever joins the cohort, and nobody outside can tell who it is. Where
the share brings fewer than ``LEAST``, those of the smallest HMAC are taken, as many as that.
"""

import hashlib
import hmac
from functools import lru_cache

from site_agent.cohort import Cohort, subset

LEAST = 2
"""Figures are never of one patient."""
_DOMAIN = b"fedstill kept back v1\0"


@lru_cache(maxsize=2)
def divided(cohort: Cohort, *, key: bytes, share: float) -> tuple[Cohort | None, Cohort | None]:
    """(those who answer, those kept back) of ``cohort``; None where there is nobody.

    ``share`` of the patients, on average, are kept back; 0: none.
    """
    names = cohort.index.patients
    draws = {name: _draw(name, key) for name in names}
    kept = {name for name in names if draws[name] < share}
    if share > 0 and len(kept) < LEAST:
        kept = set(sorted(names, key=draws.__getitem__)[:LEAST])
    places = range(len(names))
    return (
        subset(cohort, tuple(place for place in places if names[place] not in kept)),
        subset(cohort, tuple(place for place in places if names[place] in kept)),
    )


def _draw(pseudonym: str, key: bytes) -> float:
    """A number in [0, 1) that is a patient's for ever."""
    code = hmac.new(key, _DOMAIN + pseudonym.encode(), hashlib.sha256).digest()
    return int.from_bytes(code[:6], "big") / 2**48
