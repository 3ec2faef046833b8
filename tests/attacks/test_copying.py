import pytest
import torch

from aggregator.attacks.copying import measure
from aggregator.attacks.scene import Scene


def rows(result: dict[str, object]) -> dict[tuple[str, str], dict[str, float]]:
    return {(row["set"], row["by"]): row for row in result["rows"]}  # type: ignore[attr-defined]


def test_the_undistilled_prior_copies_nobody(scene: Scene) -> None:
    result = measure(scene, scene.prior.start, seed=0)
    found = rows(result)
    assert set(found) == {
        (s, by) for s in ("released", "null", "control") for by in ("ssim", "ncc")
    }
    for by in ("ssim", "ncc"):
        assert found["released", by] == {**found["null", by], "set": "released"}
        assert found["null", by]["ratio_to_null"] == {"mean": 1.0, "interval": [1.0, 1.0]}
        assert found["null", by]["to_source"] == pytest.approx(1.0, abs=1e-5)
    assert result["passed"]


def test_the_control_is_found(scene: Scene) -> None:
    result = measure(scene, scene.prior.start, seed=0)
    assert result["control_succeeded"]
    control = rows(result)["control", "ssim"]
    assert control["ratio_to_null"]["mean"] > 1.05  # type: ignore[index]


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_participants_slices_do_not_pass(scene: Scene, share: float) -> None:
    slices = torch.cat([patient[:1] for patient in scene.participants[:2]])
    released = scene.prior.start.lerp(slices, share)
    result = measure(scene, released, seed=0)
    assert not result["passed"]
    assert rows(result)["released", "ssim"]["ratio_to_null"]["mean"] > 1.05  # type: ignore[index]


def test_slices_of_the_unseen_are_no_copies_of_participants(scene: Scene) -> None:
    slices = torch.cat([patient[:1] for patient in scene.unseen[:2]])
    found = rows(measure(scene, slices, seed=0))
    assert found["released", "ssim"]["ratio"] < 1.0
    assert found["released", "ssim"]["to_unseen"] == pytest.approx(1.0, abs=1e-5)
