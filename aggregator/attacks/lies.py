"""Answers of a site that lies: those that no honest one could be, and those that one could.

The last of a federation's sites tells them. Of the plausible ones:

- ``sign-flipped``, ``scaled``: ten times its own descent, backwards or forwards;
- ``random``: a random direction, as long as is taken;
- ``a-little``: the others' mean, held back at every coordinate by one and a half of their standard
  deviations ("a little is enough": Baruch, Baruch and Goldberg, NeurIPS 2019);
- ``backwards``: the opposite of the others' mean, no longer than it (Xie, Koyejo and Gupta, UAI
  2019);
- ``huge-claim``: the opposite of what it has, from ten thousand patients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.messages import MAX_PATIENTS, FloatArray, Message, SummaryHeader, encode

TIMES = 10.0
HELD_BACK = 1.5
"""Standard deviations of the others by which ``a-little`` stays behind their mean."""


@dataclass(frozen=True)
class Vantage:
    """What a liar knows."""

    header: SummaryHeader
    """Of its honest answer."""
    values: FloatArray
    """Its honest answer, (1, D)."""
    others: tuple[FloatArray, ...]  # (1, D) each: what it cannot know, but a conspiracy could
    earlier: bytes
    """Its answer of a round before; in the first round another site's of this one."""
    longest: float
    """The L2 norm up to which an answer is taken."""

    def told(self, values: NDArray[Any], **header: Any) -> bytes:
        """Its answer with other values, and a header that differs in what is named."""
        said = self.header.model_copy(update=header)
        return encode(Message(header=said, arrays={"values": np.asarray(values, np.float32)}))

    def bounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values``, shortened to what is taken."""
        return values * min(1.0, self.longest / max(float(np.linalg.norm(values)), 1e-30))


Lie = Callable[[Vantage], bytes]


def _with_one(value: float) -> Lie:
    def lie(vantage: Vantage) -> bytes:
        values = vantage.values.copy()
        values[0, 0] = value
        return vantage.told(values)

    return lie


def _other_type(vantage: Vantage) -> bytes:
    """The header of a safetensors file says that its numbers are of another type."""
    return vantage.told(vantage.values).replace(b'"dtype":"F32"', b'"dtype":"I32"')


def _other_key(vantage: Vantage) -> bytes:
    return vantage.told(vantage.values).replace(b'"values"', b'"volume"')


def _a_little(vantage: Vantage) -> bytes:
    others = np.stack(vantage.others).astype(np.float64)
    mean, deviation = others.mean(0), others.std(0, ddof=1)
    return vantage.told(vantage.bounded(mean - HELD_BACK * deviation * np.sign(mean)))


def _unit(values: NDArray[Any]) -> NDArray[Any]:
    unit: NDArray[Any] = values / np.linalg.norm(values)
    return unit


def _random(vantage: Vantage) -> bytes:
    drawn = np.random.default_rng(0).standard_normal(vantage.values.shape)
    return vantage.told(vantage.longest * drawn / np.linalg.norm(drawn))


STRUCTURAL: Mapping[str, Lie] = {
    "nan": _with_one(np.nan),
    "infinite": _with_one(np.inf),
    "1e30": _with_one(1e30),
    "shape": lambda vantage: vantage.told(vantage.values[:, :-1]),
    "type": _other_type,
    "key": _other_key,
    "round": lambda vantage: vantage.told(vantage.values, round=vantage.header.round + 1),
    "other-request": lambda vantage: vantage.told(vantage.values, request_digest="0" * 64),
    "replay": lambda vantage: vantage.earlier,
    "duplicate": lambda vantage: vantage.told(vantage.values, site="site-1"),
    "too-few-patients": lambda vantage: vantage.told(vantage.values, patients_at_least=1),
    "too-long": lambda vantage: vantage.told(1.01 * vantage.longest * _unit(vantage.values)),
    "not-a-message": lambda vantage: b"\x00" * 64,
}
"""Lies that are no honest answer by their form."""

PLAUSIBLE: Mapping[str, Lie] = {
    "sign-flipped": lambda vantage: vantage.told(vantage.bounded(-TIMES * vantage.values)),
    "scaled": lambda vantage: vantage.told(vantage.bounded(TIMES * vantage.values)),
    "random": _random,
    "a-little": _a_little,
    "backwards": lambda vantage: vantage.told(-np.mean(vantage.others, axis=0)),
    "huge-claim": lambda vantage: vantage.told(-vantage.values, patients_at_least=MAX_PATIENTS),
}
"""Lies that only their values give away."""
