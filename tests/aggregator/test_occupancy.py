import threading
import time
from pathlib import Path

import pytest

from aggregator.home import create_home
from aggregator.occupancy import OccupiedError, is_up, occupied


def test_a_home_is_held_once(tmp_path: Path) -> None:
    home = create_home(tmp_path, {})
    assert not is_up(home)
    with occupied(home):
        assert is_up(home)
        with pytest.raises(OccupiedError, match="already"), occupied(home):
            pass
    assert not is_up(home)
    with occupied(home):
        pass


def test_who_looks_is_in_nobodys_way(tmp_path: Path) -> None:
    home = create_home(tmp_path, {})
    with occupied(home):
        pass
    begin, end = threading.Event(), time.monotonic() + 0.5

    def look() -> None:
        while time.monotonic() < end:
            is_up(home)
            begin.set()

    looker = threading.Thread(target=look)
    looker.start()
    begin.wait(5)
    while looker.is_alive():
        with occupied(home):
            pass
    looker.join()
