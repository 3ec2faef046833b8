"""How far an attack is: phases that say what they do, and steps that are counted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from aggregator.distill.directions import OnStep
from shared.release.progress import Advance

Watch = Callable[[str], AbstractContextManager[Advance]]
"""Begins a phase of that name; what it gives is called with steps done and in all."""


class Steps:
    """Counts to ``total``, one step a call, and tells how far it is."""

    def __init__(self, advance: Advance, *, total: int) -> None:
        self._advance, self._total, self._done = advance, total, 0

    def __call__(self) -> None:
        """One more is done."""
        self._done += 1
        self._advance(self._done, self._total)


@contextmanager
def by_phase(watch: Watch) -> Iterator[OnStep]:
    """Listens to something that names its phases itself: begins one whenever the name changes."""
    with ExitStack() as open_phase:
        now: list[tuple[str, Advance]] = []

        def on_step(phase: str, done: int, total: int) -> None:
            if not now or now[-1][0] != phase:
                open_phase.close()
                now.append((phase, open_phase.enter_context(watch(phase))))
            now[-1][1](done, total)

        yield on_step
