import os
import time

import pytest

from shared.messages import RefusalCode
from site_agent.incidents import RefusedError
from site_agent.outbox import Entry, Outbox
from site_agent.policy import Policy
from site_agent.quota import gradients_in, refuse_beyond_quota, size_of

HOUR_S = 3600.0


@pytest.fixture
def outbox(tmp_path):
    """Three answers, 1, 12 and 30 hours ago, each of 4 gradients, 1000 bytes and half an hour."""
    made = Outbox(tmp_path)
    for round, hours in enumerate((1, 12, 30), 1):
        about = {"round": round, "shape": (4, 2), "gradients": 4, "norm": 1.0, "digest": "cd" * 32}
        entry = Entry(
            contract="ab" * 32,
            answered="2026-01-01T00:00:00Z",
            kind="gradients",
            seconds=HOUR_S / 2,
            bytes=1000,
            **about,
        )
        made.store(b"answer", contract_digest="ab" * 32, round=round, entry=entry)
        then = time.time() - hours * HOUR_S - 1
        os.utime(made.path(entry), (then, then))
    return made


def refused(outbox, *, size_bytes=0, **limits):
    try:
        refuse_beyond_quota(Policy(**limits), outbox, size_bytes=size_bytes)
    except RefusedError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("limit", "enough", "too_little", "code"),
    [
        # Two of the three answers are of the last day.
        ("max_requests_a_day", 3, 2, RefusalCode.TOO_OFTEN),
        ("max_compute_hours_a_day", 1.01, 1.0, RefusalCode.TOO_OFTEN),
        ("max_bytes_a_day", 2500, 2499, RefusalCode.TOO_OFTEN),
    ],
)
def test_a_quota_counts_what_was_given_and_what_is_asked(outbox, limit, enough, too_little, code):
    asked = {"size_bytes": 500}
    assert refused(outbox, **asked) is None
    assert refused(outbox, **asked, **{limit: enough}) is None
    assert refused(outbox, **asked, **{limit: too_little}) is code


def test_sizes_are_those_of_the_numbers():
    assert size_of((3, 5), masked=False) == 3 * 5 * 4
    assert size_of((3, 5), masked=True) == (3 * 5 + 1) * 8
    assert (gradients_in((3, 5)), gradients_in((2, 3, 5))) == (3, 6)
