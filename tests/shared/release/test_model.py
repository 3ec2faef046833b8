import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.architectures import DnCnn, Edsr, Network, RedCnn, Residual, UNet
from shared.networks import apply_network, initial_weights
from shared.release.errors import LocalError
from shared.release.model import About, load_model, model_bytes
from shared.tasks.settings import CtDenoise, MrSr, MultiTask, Task

NETWORKS: list[Network] = [
    Residual(),
    DnCnn(depth=4, width=8),
    RedCnn(width=4),
    Edsr(blocks=2, width=8),
    UNet(levels=2, width=4),
]


def about(network: Network, task: Task | None = None) -> About:
    return About(
        network=network, task=task or CtDenoise(), release={"name": "a/b"}, steps=10, seed=0
    )


def saved(folder: Path, network: Network, task: Task | None = None) -> Tensor:
    weights = initial_weights(network, seed=3)
    (folder / "model.safetensors").write_bytes(model_bytes(about(network, task), weights))
    return weights


@pytest.mark.parametrize("network", NETWORKS, ids=[network.kind for network in NETWORKS])
def test_a_saved_network_is_loaded_as_it_was(tmp_path: Path, network: Network) -> None:
    task = MultiTask(parts=(MrSr(), MrSr(factor=2)))
    weights = saved(tmp_path, network, task)
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        enhance = load_model(path)
        assert enhance.network == network
        assert enhance.task == task
        assert torch.equal(enhance.weights, weights)
    images = torch.rand(20, 1, 19, 24)  # more than a chunk, of an odd size
    with torch.no_grad():
        expected = apply_network(network, weights, images)
    enhanced = enhance(images)
    torch.testing.assert_close(enhanced, expected)
    assert not enhanced.requires_grad
    assert enhance(images.double()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 3, 32, 32), (1, 1, 7, 32)])
def test_images_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    saved(tmp_path, Residual())
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        load_model(tmp_path)(torch.zeros(shape))


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be read") as caught:
        load_model(tmp_path)
    assert "distilled train --save" in caught.value.hint
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * 100)
    with pytest.raises(LocalError, match="is not a model of fedstill"):
        load_model(file)
    save_file({"weights": torch.zeros(3)}, file)
    with pytest.raises(LocalError, match="is not a model of fedstill"):
        load_model(file)
    save_file({"weights": torch.zeros(3)}, file, metadata={"fedstill": "{"})
    with pytest.raises(LocalError, match="is not a model of fedstill"):
        load_model(file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "fedstill-model/2"}, "another version .format: "),
        ({"network": {"kind": "transformer"}}, "another version .network: "),
        ({"network": {"kind": "residual", "depth": 5, "width": 16}}, "not the weights of its"),
    ],
)
def test_a_model_of_another_form_names_what_differs(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    saved(tmp_path, Residual())
    file = tmp_path / "model.safetensors"
    document = {**about(Residual()).model_dump(mode="json"), **changed}
    save_file(load_file(file), file, metadata={"fedstill": json.dumps(document)})
    with pytest.raises(LocalError, match=message):
        load_model(file)
