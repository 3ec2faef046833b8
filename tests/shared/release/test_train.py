import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from safetensors.numpy import save
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from shared import readers
from shared.architectures import Residual
from shared.contract import RunContract
from shared.frozen import canonical_json
from shared.networks import parameter_count
from shared.release import train as training
from shared.release.cli import app
from shared.release.dataset import DistilledPairs
from shared.release.errors import LocalError
from shared.release.model import load_model
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise, MrDenoise

SIZE = 32
CONTRACT = RunContract(
    name="ct-demo",
    task=CtDenoise(
        size_px=SIZE, pixel_mm=10.0, angles=40, bins=48, photons=30.0, electronic_sigma=30.0
    ),
    student=Residual(depth=3, width=8),
    anchor={"crop_px": 32},
)


def discs(count: int, *, seed: int) -> NDArray[np.float32]:
    """(count, 1, S, S): a body with a denser disc in it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    images = []
    for _ in range(count):
        cx, cy = random.uniform(-0.3, 0.3, 2)
        body = np.where(x**2 + y**2 < 0.7, 0.5, 0.0)
        images.append(np.where((x - cx) ** 2 + (y - cy) ** 2 < 0.05, 0.7, body))
    return np.array(images, dtype=np.float32)[:, None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainable(tmp_path: Path, contents: Callable[..., dict[str, bytes]]) -> Path:
    """A release with real pairs of a tiny task."""
    hq = discs(4, seed=1)
    lq = degrade(CONTRACT.task, torch.from_numpy(hq), seed=7).numpy()
    files = {
        "pairs.safetensors": save({"lq": np.ascontiguousarray(lq), "hq": hq}),
        "provenance.json": canonical_json({"contract": CONTRACT.model_dump(mode="json")}),
    }
    folder = tmp_path / "trainable"
    folder.mkdir()
    for name, content in contents(files=files).items():
        (folder / name).write_bytes(content)
    return folder


def read_discs(
    folder: Path,
    *,
    size_px: int,
    low: float,
    high: float,
    modality: str,
    sequence: str | None,
) -> list[NDArray[np.float32]]:
    window = {"CT": (-1000.0, 1000.0), "MR": (0.0, 1000.0)}[modality]
    assert (size_px, low, high) == (SIZE, *window)
    assert sequence == (None if modality == "CT" else "FLAIR")
    return [discs(2, seed=20), discs(1, seed=21), discs(3, seed=22)]


@pytest.fixture
def _reader(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point(EntryPoint):
        def load(self) -> Any:
            return read_discs

    point = Point(name="folder", value="anything:read", group="fedstill.readers")
    monkeypatch.setattr(readers, "entry_points", lambda group: [point])


def test_pairs_load_in_batches(trainable: Path) -> None:
    pairs = DistilledPairs(trainable)
    assert len(pairs) == 4
    lq, hq = pairs[2]
    assert lq.shape == hq.shape == (1, SIZE, SIZE)
    assert lq.dtype == hq.dtype == torch.float32
    np.testing.assert_array_equal(hq.numpy(), discs(4, seed=1)[2])
    batches = list(DataLoader(pairs, batch_size=3))
    assert [batch[0].shape[0] for batch in batches] == [3, 1]


def test_pairs_of_a_folder_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="pairs"):
        DistilledPairs(tmp_path)


@pytest.mark.usefixtures("_reader")
def test_train_beats_the_input_and_saves_the_network(
    trainable: Path,
    tmp_path: Path,
    key: Ed25519PrivateKey,
    write_pem: Callable[[Ed25519PrivateKey], Path],
) -> None:
    model, figures = tmp_path / "model", tmp_path / "figures.json"
    command = ["train", trainable, "--evaluate", tmp_path, "--steps", 150, "--seeds", 2]
    command += ["--key", write_pem(key), "--json", figures, "--save", model]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    report = json.loads(figures.read_text())
    assert report["patients"] == 3
    assert report["slices"] == 6
    rows = report["rows"]
    assert rows["distilled"]["psnr"]["mean"] > rows["input"]["psnr"]["mean"] + 0.5
    assert rows["distilled"]["psnr"]["n"] == 2
    assert f"{rows['distilled']['psnr']['mean']:.2f}" in done.stdout

    enhance = load_model(model)
    assert enhance.about.release["digest"] == report["release"]["digest"]
    assert enhance.task == CONTRACT.task
    assert enhance.network == CONTRACT.student
    assert enhance.weights.shape == (parameter_count(CONTRACT.student),)

    # The saved network, applied by hand, gives the figure of seed 0 again: patient means, averaged.
    untouched, enhanced = [], []
    for number, patient in enumerate(
        read_discs(tmp_path, size_px=32, low=-1e3, high=1e3, modality="CT", sequence=None)
    ):
        hq = torch.from_numpy(patient)
        lq = degrade(CONTRACT.task, hq, seed=number)
        for images, psnrs in ((lq, untouched), (enhance(lq), enhanced)):
            errors = ((images - hq) ** 2).mean(dim=(1, 2, 3))
            psnrs.append(float((-10 * torch.log10(errors)).mean()))
    assert np.mean(enhanced) - np.mean(untouched) > 0.5
    spread = 3 * (rows["distilled"]["psnr"]["std"] + 0.05)
    assert np.mean(enhanced) == pytest.approx(rows["distilled"]["psnr"]["mean"], abs=spread)


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(
    "network", ["dncnn:depth=4,width=8", "red-cnn:width=4", "edsr:blocks=2,width=4", "unet:width=4"]
)
def test_any_network_is_trained_and_the_code_of_its_card_runs(
    trainable: Path,
    tmp_path: Path,
    key: Ed25519PrivateKey,
    write_pem: Callable[[Ed25519PrivateKey], Path],
    network: str,
) -> None:
    model = tmp_path / "model"
    command = ["train", trainable, "--evaluate", tmp_path, "--steps", 3, "--seeds", 1]
    command += ["--key", write_pem(key), "--network", network, "--save", model, "--json", "-"]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert load_model(model).network.kind == report["network"]["kind"] == network.split(":")[0]
    card = (model / "MODEL_CARD.md").read_text()
    assert f"{report['parameters']:,} parameters" in card
    assert f"| `input` | {report['rows']['input']['psnr']['mean']:.2f}" in card
    assert str(tmp_path) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    check = "assert hq.shape == lq.shape == (1, 1, 32, 32) and not torch.equal(hq, lq)"
    ran = subprocess.run(
        [sys.executable, "-c", code + check],
        cwd=model,
        env={**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("_reader")
def test_a_release_of_several_tasks_has_each_ones_figures(
    tmp_path: Path,
    contents: Callable[..., dict[str, bytes]],
    key: Ed25519PrivateKey,
    write_pem: Callable[[Ed25519PrivateKey], Path],
) -> None:
    parts = [MrDenoise(size_px=SIZE, sigma=sigma).model_dump() for sigma in (0.05, 0.2)]
    contract = RunContract(
        name="mr-demo",
        task={"name": "multi", "parts": parts},
        student=Residual(depth=2, width=4),
        anchor={"crop_px": 32},
    )
    hq = np.concatenate([discs(2, seed=1)] * 2)
    index = np.array([0, 0, 1, 1], dtype=np.int32)
    about = {"fedstill": json.dumps({"tasks": ["mr-denoise-1", "mr-denoise-2"]})}
    files = {
        "pairs.safetensors": save({"lq": hq, "hq": hq, "task": index}, metadata=about),
        "provenance.json": canonical_json({"contract": contract.model_dump(mode="json")}),
    }
    folder = tmp_path / "mr"
    folder.mkdir()
    for name, content in contents(files=files).items():
        (folder / name).write_bytes(content)
    assert DistilledPairs(folder).tasks == ["mr-denoise-1"] * 2 + ["mr-denoise-2"] * 2
    command = ["train", folder, "--evaluate", tmp_path, "--steps", 2, "--seeds", 1]
    command += ["--sequence", "FLAIR", "--key", write_pem(key), "--json", tmp_path / "figures"]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "figures").read_text())
    first, second = (report["tasks"][f"mr-denoise-{k}"]["input"]["psnr"]["mean"] for k in (1, 2))
    # Rician noise of four times the standard deviation: about 12 dB.
    assert 9 < first - second < 14
    assert report["rows"]["input"]["psnr"]["mean"] == pytest.approx((first + second) / 2)
    assert "input, mr-denoise-2" in done.stdout


def test_pairs_of_before_several_tasks_have_their_tasks_name(tmp_path: Path) -> None:
    hq = discs(2, seed=1)
    about = {"fedstill": json.dumps({"task": "ct-denoise"})}
    (tmp_path / "pairs.safetensors").write_bytes(save({"lq": hq, "hq": hq}, metadata=about))
    assert DistilledPairs(tmp_path).tasks == ["ct-denoise"] * 2


@pytest.mark.usefixtures("_reader")
def test_train_refuses_a_tampered_release(
    trainable: Path,
    tmp_path: Path,
    key: Ed25519PrivateKey,
    write_pem: Callable[[Ed25519PrivateKey], Path],
) -> None:
    (trainable / "pairs.safetensors").write_bytes(b"")
    command = ["train", trainable, "--evaluate", tmp_path, "--key", write_pem(key)]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 10
    assert "pairs.safetensors" in done.stderr


def test_spread_is_the_sample_standard_deviation() -> None:
    assert training._spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert training._spread([5.0]) == {"mean": 5.0, "std": 0.0, "n": 1}


def test_a_missing_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "entry_points", lambda group: [])
    with pytest.raises(LocalError) as caught:
        training.read_patients(tmp_path, CONTRACT)
    assert "fedstill[train]" in caught.value.hint


def test_an_unreadable_provenance(tmp_path: Path) -> None:
    for content in ("", "{}", '{"contract": {"version": 2}}'):
        (tmp_path / "provenance.json").write_text(content)
        with pytest.raises(LocalError, match="provenance"):
            training.read_contract_of(tmp_path)
