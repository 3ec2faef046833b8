from aggregator.attacks.watch import Steps, by_phase
from tests.attacks.conftest import Watched


def test_steps_are_counted() -> None:
    told: list[tuple[int, int]] = []
    step = Steps(lambda *at: told.append(at), total=3)
    step()
    step()
    assert told == [(1, 3), (2, 3)]


def test_a_new_name_begins_a_new_phase() -> None:
    watched = Watched()
    with by_phase(watched) as on_step:
        for phase in ("public", "public", "directions"):
            on_step(phase, len(watched.get(phase, [])) + 1, 2)
    assert watched == {"public": [(1, 2), (2, 2)], "directions": [(1, 2)]}
