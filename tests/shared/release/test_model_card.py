import re
from pathlib import Path

from shared.architectures import UNet
from shared.release.model_card import model_card
from shared.tasks.settings import CtDenoise, MrDenoise, MrSr, MultiTask

ROW = {"psnr": {"mean": 31.25, "std": 0.125, "n": 3}, "ssim": {"mean": 0.75, "std": 0.5, "n": 3}}
REPORT = {
    "release": {"name": "fedstill/mr-demo", "version": 2, "digest": "d" * 64},
    "pairs": 16,
    "parameters": 535_505,
    "steps": 2000,
    "batch": 4,
    "crop_px": 32,
    "learning_rate": 2e-3,
    "seeds": 3,
    "patients": 4,
    "slices": 40,
    "rows": {"input": ROW, "distilled": ROW},
    "tasks": {"mr-denoise": {"input": ROW, "distilled": ROW}, "mr-sr": {"input": ROW}},
}


def test_the_card_says_what_was_trained_on_what_and_what_it_scored() -> None:
    task = MultiTask(parts=(MrDenoise(), MrSr()))
    card = model_card(REPORT, network=UNet(), task=task, license="CC-BY-4.0")
    for text in (
        "# unet trained on fedstill/mr-demo v2",
        "| network | a U-Net halved 3 times, with 16 channels at full size: 535,505 parameters |",
        "| trained on | fedstill/mr-demo v2, 16 synthetic pairs (CC-BY-4.0) |",
        f"`{'d' * 64}`",
        "2000 steps of 4 crops of 32 pixels, Adam from 0.002 to 0",
        "| seed | 0; the scores are of 3 |",
        "| mr-sr: sampling | k-space cut to the central 1/4",
        "| `input` | 31.25 ± 0.12 | 0.7500 ± 0.5000 |",
        "| `distilled, mr-denoise` | 31.25 ± 0.12 |",
        "4 patients (40 slices)",
        "torch.rand(1, 1, 128, 128)",
        "Not for diagnosis",
    ):
        assert text in card


def test_the_page_shows_the_lines_of_the_card() -> None:
    card = model_card(REPORT, network=UNet(), task=CtDenoise(), license="CC-BY-4.0")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code in (Path(__file__).parents[3] / "docs" / "researcher.md").read_text("utf-8")
