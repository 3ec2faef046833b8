import io

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import load, save_file

from aggregator.home import AggregatorHome
from aggregator.snapshots import snapshot_file
from tests.aggregator.desk.conftest import FIRST
from tests.aggregator.desk.runs import images, snapshot

PAIRS = f"/api/desk/runs/{FIRST.digest()}/pairs"


def test_the_pairs_of_a_round_are_served_as_they_were_kept(
    desk: TestClient, home: AggregatorHome
) -> None:
    run = home.run_folder(FIRST.digest())
    for round in (0, 3):
        snapshot(run, FIRST, round)
    answer = desk.get(f"{PAIRS}/3")
    assert answer.content == snapshot_file(run, 3).read_bytes()
    np.testing.assert_array_equal(load(answer.content)["hq"], images(3)["hq"])
    part = desk.get(f"{PAIRS}/3", headers={"Range": "bytes=8-23"})
    assert (part.status_code, part.content) == (206, answer.content[8:24])
    assert desk.get(f"{PAIRS}/3", headers={"Range": "bytes=0-1,4-5"}).status_code == 416
    assert "private" in answer.headers["Cache-Control"]
    assert desk.get(f"{PAIRS}/0").content != answer.content
    for absent in ("1", "9999"):
        assert desk.get(f"{PAIRS}/{absent}").status_code == 404
    for wrong in ("-1", "10000", "three", "3.5"):
        assert desk.get(f"{PAIRS}/{wrong}").status_code in (404, 422)


def test_a_picture_of_a_round_needs_no_script(desk: TestClient, home: AggregatorHome) -> None:
    run = home.run_folder(FIRST.digest())
    snapshot(run, FIRST, 2)
    answer = desk.get(f"{PAIRS}/2.png")
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.width > 3 * 160
    assert desk.get(f"{PAIRS}/2.png").content == answer.content
    missing = desk.get(f"{PAIRS}/1.png", headers={"Accept": "application/json"})
    assert missing.status_code == 404
    assert missing.json()["error"] == "no pairs were kept after round 1"
    snapshot_file(run, 2).write_bytes(b"half")
    damaged = desk.get(f"{PAIRS}/2.png")
    assert damaged.status_code == 404 and "damaged" in damaged.text
    assert str(home.root) not in damaged.text


def test_the_pairs_of_the_end_are_there_once_the_run_has_them(
    desk: TestClient, home: AggregatorHome
) -> None:
    assert desk.get(PAIRS).status_code == 404
    path = home.run_folder(FIRST.digest()) / "pairs.safetensors"
    save_file({"lq": np.zeros((2, 1, 4, 4), np.float32), "hq": np.ones((2, 1, 4, 4))}, path)
    assert desk.get(PAIRS).content == path.read_bytes()
