"""What a site says of itself beside the verdict of a dry run: version, policy, budget, seconds.

Nothing of it is finer than the bucket of patients that a dry run tells anyway. Of budgets, numbers
are rounded down to 1, 2 or 5 times a power of ten: at granularity ``patient`` a charge counts
patients, and exact numbers before and after another study's run would count them too.
"""

import math
from typing import Annotated

from pydantic import AfterValidator, Field

from shared.contract import Hex32
from shared.frozen import Frozen


def rounded_down(count: int) -> int:
    """The largest of 0, 1, 2, 5, 10, 20, 50 … that is not above ``count``."""
    if count <= 0:
        return 0
    digits = str(count)
    lead = max(one for one in (1, 2, 5) if one <= int(digits[0]))
    return int(lead * 10 ** (len(digits) - 1))


def rounded_epsilon(epsilon: float) -> float:
    """``epsilon`` rounded down to hundredths."""
    return round(math.floor(epsilon * 100 + 1e-6) / 100, 2)


def rounded_seconds(seconds: float) -> float:
    """``seconds`` to two digits."""
    return float(f"{seconds:.2g}")


def time_in_words(seconds: float) -> str:
    """An estimated time, for people."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.{1 if seconds < 36_000 else 0}f} h"


def _coarse(count: int | None) -> int | None:
    if count is not None and count != rounded_down(count):
        raise ValueError("is finer than the steps that are told")
    return count


def _hundredths(epsilon: float | None) -> float | None:
    if epsilon is not None and epsilon != rounded_epsilon(epsilon):
        raise ValueError("is finer than the steps that are told")
    return epsilon


def _two_digits(seconds: float | None) -> float | None:
    if seconds is not None and seconds != rounded_seconds(seconds):
        raise ValueError("is finer than the steps that are told")
    return seconds


class BudgetLeft(Frozen):
    """What a site's policy and ledger leave, over all contracts; none: no limit."""

    gradients: Annotated[int | None, AfterValidator(_coarse)] = Field(
        None, ge=0, le=10**12, description="gradients and descents in all, at least so many"
    )
    requests_today: int | None = Field(
        None, ge=0, le=1_000_000, description="answers, of any 24 hours"
    )
    epsilon: Annotated[float | None, AfterValidator(_hundredths)] = Field(
        None, ge=0, le=1e6, description="privacy loss, at the site's own delta"
    )


class Standing(Frozen):
    """A site as it stands, for the coordinator who asks."""

    version: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+!_-]{0,63}$", description="of its agent")
    policy: Hex32 = Field(description="SHA-256 of what its policy.toml allows, and nothing of it")
    budget: BudgetLeft | None = Field(None, description="none: its ledger cannot be read")
    seconds: Annotated[float | None, AfterValidator(_two_digits)] = Field(
        None,
        ge=0,
        le=1e9,
        description="of computing, that the whole run is estimated to take there; none: not known",
    )


def left_in_words(left: BudgetLeft) -> str:
    """What of it is limited, for people."""
    parts = []
    if left.gradients is not None:
        parts.append(f"at least {left.gradients} gradients" if left.gradients else "no gradient")
    if left.requests_today is not None:
        parts.append(f"{left.requests_today} answers today")
    if left.epsilon is not None:
        parts.append(f"ε {left.epsilon:g}")
    return ", ".join(parts) or "no limit"
