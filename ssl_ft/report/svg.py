"""From a matplotlib Figure to SVG that stands inside the page: themed, deterministic, no global state left behind.

Figures are drawn in stand-in colours that become CSS variables, so one drawing serves light and dark mode.
What is drawn is decided in `figures.py`.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any, cast

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

# Stand-ins: colours that nobody would choose, so that replacing them cannot hit anything else.
INK = "#010101"
MUTED = "#010102"
RULE = "#010103"
PAGE = "#010104"
SERIES = tuple(f"#0101{index:02x}" for index in range(0xA0, 0xA8))
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}

_STYLE: dict[str, str | float | bool] = {
    "svg.fonttype": "none",  # text stays text: the page's own font, searchable, small
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # class names may hold a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def render(
    draw: Callable[[Figure], None], *, size: tuple[float, float], font_size: float, prefix: str, description: str
) -> str:
    """Draws on a fresh transparent figure and returns it as inline SVG.

    Args:
        draw: Adds axes and artists to the figure it is given.
        size: Width and height in CSS pixels before scaling to the page's width.
        font_size: Text size in the same pixels.
        prefix: Put before every id, because several figures share one page. Letters, digits, hyphens.
        description: What the figure shows, for those who cannot see it.
    """
    assert re.fullmatch(r"[a-z][a-z0-9-]*", prefix), f"no prefix for ids: {prefix!r}"
    buffer = io.StringIO()
    with rc_context(), warnings.catch_warnings():
        # Glyphs missing from matplotlib's font concern its layout only: the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        rcdefaults()
        rcParams.update(cast(Any, _STYLE | {"svg.hashsalt": prefix, "font.size": font_size}))  # keys are literals there
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=144, layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), prefix, description)


def _inline(document: str, prefix: str, description: str) -> str:
    """Strips what only a file of its own needs, and what would leak into the page (its style rule, its ids)."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _themed(name, value, prefix) for name, value in attributes.items()})
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view_box, "role": "img", "aria-label": description, "class": "plot"})
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _themed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = value.replace("url(#", f"url(#{prefix}-")
    if name == "style":
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var({variable})")
        # The page chooses the family; size and weight stay.
        value = re.sub(r"font: ([^;]*?px)[^;]*", r"font-size: \1", value)
    return value
