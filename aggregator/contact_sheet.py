"""The contact sheet of a release: its pairs as a person would look at them.

One column a pair; rows HQ, LQ and their difference, all grey, with the window written beside them.
The same pairs give the same bytes: no time, no software name, an embedded font.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MOST_COLUMNS = 8
EDGE_PX = 160
"""Edge of one image on the sheet."""
MARGIN_PX, GUTTER_PX, LABEL_PX, HEAD_PX, FOOT_PX = 16, 6, 74, 78, 12
INK, FAINT, GROUND = 235, 150, 16


def contact_sheet(
    *,
    title: str,
    lq: NDArray[np.float32],
    hq: NDArray[np.float32],
    low: float,
    high: float,
    unit: str,
    tasks: Sequence[str] = (),
) -> bytes:
    """PNG of up to eight pairs (N, 1, S, S) in window units, evenly spaced over the release.

    ``low`` and ``high`` are 0 and 1 in ``unit``; ``tasks`` names each pair's, where they differ.
    """
    count = hq.shape[0]
    shown = sorted({round(k) for k in np.linspace(0, count - 1, min(count, MOST_COLUMNS))})
    difference = lq - hq
    width_shown = high - low
    most = float(np.quantile(np.abs(difference), 0.99)) * width_shown
    limit = _round_up(max(most, width_shown / 2000))
    span = limit / width_shown
    ends = f"{low:g} to\n{high:g} {unit}".rstrip()
    differs = f"\u00b1{limit:g} {unit}".rstrip()
    rows = (
        ("HQ", ends, hq),
        ("LQ", ends, lq),
        ("LQ - HQ", f"{differs}\ngrey is 0", difference / (2 * span) + 0.5),
    )
    step = EDGE_PX + GUTTER_PX
    width = MARGIN_PX + LABEL_PX + max(len(shown), 3) * step + MARGIN_PX - GUTTER_PX
    sheet = Image.new("L", (width, HEAD_PX + len(rows) * step + FOOT_PX), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, 10), title, fill=INK, font=_font(17))
    which = f"all {count}" if len(shown) == count else f"{len(shown)} of {count}"
    draw.text((MARGIN_PX, 34), f"{which} synthetic pairs", fill=FAINT, font=_font(12))
    for column, index in enumerate(shown):
        left = MARGIN_PX + LABEL_PX + column * step
        of_what = f"{index} {tasks[index]}" if tasks else f"pair {index}, LQ"
        label = f"{of_what} {_psnr_db(lq[index], hq[index])}"
        draw.text((left, HEAD_PX - 18), label, fill=FAINT, font=_font(11))
        for row, (_, _, images) in enumerate(rows):
            sheet.paste(_picture(images[index, 0]), (left, HEAD_PX + row * step))
    for row, (name, scale, _) in enumerate(rows):
        top = HEAD_PX + row * step
        draw.text((MARGIN_PX, top + 4), name, fill=INK, font=_font(15))
        draw.multiline_text((MARGIN_PX, top + 26), scale, fill=FAINT, font=_font(11), spacing=3)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=False, compress_level=9)
    return out.getvalue()


def _picture(image: NDArray[np.float32]) -> Image.Image:
    grey = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey).resize((EDGE_PX, EDGE_PX), Image.Resampling.BICUBIC)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _psnr_db(lq: NDArray[np.float32], hq: NDArray[np.float32]) -> str:
    error = float(np.mean((lq.astype(np.float64) - hq) ** 2))
    return "= HQ" if error == 0 else f"{-10 * math.log10(error):.1f} dB"


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten; ``value`` is above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value)
