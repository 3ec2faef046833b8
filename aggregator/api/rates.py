"""How many requests a minute are counted of whom, and whether the edge proxy may answer some."""

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from aggregator.api.errors import ApiError

RESERVE = 2000
"""What must be left of a name's requests for the edge to answer without asking.

The edge lets 500 a second and 100 at once pass (``limit_req`` in its configuration), a grant ends
within 1 s, and what passed is reported within 2 s, or no more is granted: 1600.
"""


class Rates:
    """Requests of the last minute, by whose they are."""

    def __init__(self, requests_a_minute: int) -> None:
        """0: none are counted."""
        self._rate = RateLimitItemPerMinute(requests_a_minute) if requests_a_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    @property
    def counted(self) -> bool:
        """Whether there is a limit."""
        return self._rate is not None

    def count(self, whose: str) -> None:
        """Counts a request; raises the 429."""
        if self._rate is None or self._limiter.hit(self._rate, whose):
            return
        raise ApiError(
            429,
            "too many requests",
            f"at most {self._rate.amount} a minute: wait a moment",
            {"Retry-After": str(max(1, -(-60 // self._rate.amount)))},
        )

    def reported(self, whose: str, requests: int) -> None:
        """Counts requests that were answered elsewhere."""
        if self._rate is not None and (counted := min(requests, self._left(whose))):
            self._limiter.hit(self._rate, whose, cost=counted)

    def ample(self, whose: str) -> bool:
        """Whether so many are left that some may be answered before they are counted."""
        return self._rate is None or self._left(whose) > RESERVE

    def _left(self, whose: str) -> int:
        assert self._rate is not None
        return self._limiter.get_window_stats(self._rate, whose).remaining
