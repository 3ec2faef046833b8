"""What one patient alone moves stays at home.

A cohort's mean is a mean only where several patients have a part in it. A unit that next to nobody
but one patient excites, found in honest networks and aimed at by "fishing" (Wen et al., ICML 2022),
would show that one patient's gradient, and in it patches of that patient's images. So every k x k
slice of a kernel, and every bias, of which one patient makes up more than half is left out: set to
zero, which an honest aggregator hardly notices. Differences between units are not covered.
"""

import functools

import torch
from torch import Tensor

from shared.architectures import Network
from shared.families import layers

MOST = 0.5
"""Largest share of one patient in the patients' norms added up, from five patients on."""
FAIR_SHARES = 2.5
"""The same in units of 1 / patients, of fewer: two patients are never equal."""


class Tally:
    """Adds up patients' gradients, and keeps who had which part in them."""

    def __init__(self, network: Network) -> None:
        self._slices = slices_of(network)
        self._patients = 0
        self._total: Tensor | None = None
        self._largest: Tensor | None = None  # (K, slices), norms
        self._together: Tensor | None = None

    def add(self, gradients: Tensor) -> None:
        """One patient's gradients (K, D), as they count."""
        slices = self._slices.to(gradients.device)
        norms = gradients.new_zeros(len(gradients), int(slices[-1]) + 1)
        norms = norms.index_add_(1, slices, gradients.square()).sqrt()
        self._patients += 1
        if self._total is None or self._largest is None or self._together is None:
            self._total, self._largest, self._together = gradients.clone(), norms, norms.clone()
            return
        self._total += gradients
        self._together += norms
        self._largest = torch.maximum(self._largest, norms)

    def mean(self) -> Tensor:
        """The mean (K, D), zero where one patient makes up too much of it.

        Raises ``ValueError`` on no patients.
        """
        if self._total is None or self._largest is None or self._together is None:
            raise ValueError("a cohort needs at least one patient")
        most = max(MOST, FAIR_SHARES / self._patients)
        several = (self._largest <= most * self._together).to(self._total)
        return self._total * several[:, self._slices.to(several.device)] / self._patients


@functools.cache
def slices_of(network: Network) -> Tensor:
    """Of each of a network's parameters (D,), the number of the slice or bias it belongs to."""
    lengths: list[int] = []
    for layer in layers(network):
        lengths += [layer.kernel**2] * (layer.inputs * layer.outputs) + [1] * layer.outputs
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
