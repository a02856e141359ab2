"""How every picture looks, and how a figure becomes a PNG. No pyplot: no state between pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from mqi.case import Verdict
from mqi.report.content import Picture

__all__ = [
    "DISTANCE_COLOURS",
    "DOSE_COLOURS",
    "GAMMA_COLOURS",
    "GAMMA_TOP",
    "INK",
    "LIMIT_LINES",
    "LOG_COLOUR",
    "PLAN_COLOUR",
    "TPS_COLOUR",
    "VERDICT_COLOURS",
    "plain_axes",
    "render",
]

INK: Final = "#1f2933"
LOG_COLOUR: Final = "#0b5cad"
PLAN_COLOUR: Final = "#1f2933"
TPS_COLOUR: Final = "#b35900"

VERDICT_COLOURS: Final = {
    Verdict.PASS: "#1a7f37",
    Verdict.ACTION: "#b35900",
    Verdict.FAIL: "#b42318",
    Verdict.NOT_EVALUABLE: "#57606a",
}

LIMIT_LINES: Final = (
    (VERDICT_COLOURS[Verdict.ACTION], "dashed"),  # tolerance
    (VERDICT_COLOURS[Verdict.FAIL], "solid"),  # action limit
)

GAMMA_TOP: Final = 2.0
"""Gamma at which the colour scale ends."""

GAMMA_COLOURS: Final = LinearSegmentedColormap.from_list(
    "gamma",
    [(0.0, "#eef5f9"), (0.5, "#9cc4dc"), (0.5001, "#fb6a4a"), (0.75, "#d7191c"), (1.0, "#67000d")],
    N=1001,  # odd: gamma 1, which passes, has an entry of its own
).with_extremes(bad="#ffffff")

DOSE_COLOURS: Final = LinearSegmentedColormap.from_list(
    "dose", ["#ffffff", "#dbe9f4", "#b5d4e9", "#fde9a9", "#fbb562", "#ee7b51"]
).with_extremes(bad="#ffffff")

DISTANCE_COLOURS: Final = LinearSegmentedColormap.from_list(
    "distance", ["#cfe3ef", "#7fb1d1", "#f4a259", "#b42318"]
)

_PALETTE_COLOURS = 192


def plain_axes(axes: Axes, title: str, across: str = "", up: str = "", *, size: float = 8.0) -> None:
    """Give axes the report's quiet look."""
    axes.set_title(
        title, fontsize=size + 1, color=INK, loc="left", y=1.0
    )  # a fixed place: looking for one costs a layout
    axes.set_xlabel(across, fontsize=size, color=INK)
    axes.set_ylabel(up, fontsize=size, color=INK)
    axes.tick_params(labelsize=size - 0.5, colors=INK, length=2.5)
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")


def render(
    title: str,
    caption: str,
    size: tuple[float, float, int],
    draw: Callable[[Figure], None],
    *,
    small: bool = False,
) -> Picture:
    """Draw on a new figure of (width in, height in, dpi) and return it as a PNG.

    ``small`` reduces the colours to a palette: a third of the bytes, for artifacts in a database.
    """
    width_in, height_in, dpi = size
    figure = Figure(figsize=(width_in, height_in), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    draw(figure)
    raw = io.BytesIO()
    figure.savefig(raw, format="rgba", dpi=dpi)
    width_px, height_px = int(width_in * dpi), int(height_in * dpi)
    image = Image.frombuffer("RGBA", (width_px, height_px), raw.getvalue()).convert("RGB")
    if small:
        image = image.quantize(_PALETTE_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return Picture(title, caption, buffer.getvalue(), width_px, height_px)
