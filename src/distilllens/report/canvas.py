"""Figures in the style of the pages: size and colours, and output as inline SVG or files."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path

from distilllens.files import write_atomically

# Name -> colour on a light and on a dark page. The models' colours are those of Okabe and Ito, who
# chose them for colour-blind readers, a little lighter on a dark page.
COLOURS = {
    "paper": ("#ffffff", "#171b21"),
    "sheet": ("#f6f7f9", "#0f1216"),
    "full": ("#6cb2ec", "#1b6ca8"),
    "link": ("#0b62b0", "#7cc0ff"),
    "ink": ("#1b1f24", "#e6e8eb"),
    "muted": ("#5b6470", "#a3abb6"),
    "rule": ("#c9ced6", "#454c56"),
    "grid": ("#e8ebef", "#2a3038"),
    "teacher": ("#30363d", "#d5d9de"),
    "first": ("#0072b2", "#58b4ea"),
    "second": ("#d55e00", "#ff8a3d"),
    "third": ("#009e73", "#2fc99b"),
    "fourth": ("#b4559a", "#e08cc4"),
    "fifth": ("#c28b00", "#f0b429"),
    "sixth": ("#4b8fc0", "#8fd0ff"),
}
STUDENTS = ("first", "second", "third", "fourth", "fifth", "sixth")
# Models differ without colour too. One more marker and dash than colours, so the seventh differs.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (3, 1.5), (8, 2, 2, 2, 2, 2), (2, 4))
# Who made a file, in its metadata: a command replaces no figure of another.
_MAKER = "distilllens"
_NO_GLYPH = re.compile(r"Glyph (\d+) .*missing from")
_told: set[str] = set()  # the first character that a font did not have
logger = logging.getLogger(__name__)
_NAMES = {light: name for name, (light, _) in COLOURS.items()}


def require_plotting():
    """Fail early if figures cannot be drawn.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
    """
    new_figure()


def new_figure(width: float = 4.4, height: float = 2.9):
    """An empty matplotlib figure, sizes in inches: narrow, so its text is readable on a phone.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install 'distilllens[plot]'"
        ) from error
    # Figure, not pyplot: pyplot looks for a window system and keeps global state.
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def colour(name: str) -> str:
    """A colour of ``COLOURS`` as drawn in figures; ``to_svg`` makes it follow light and dark."""
    return COLOURS[name][0]


def style_of(number: int) -> dict:
    """The line style of a model: 0 is the teacher, 1 and on are students."""
    if number == 0:
        return {"color": colour("teacher"), "marker": "o", "markersize": 3.5, "linewidth": 1.6}
    at = number - 1
    return {
        "color": colour(STUDENTS[at % len(STUDENTS)]),
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
        "dashes": DASHES[number % len(DASHES)],
    }


def frame(axes, xlabel: str, ylabel: str):
    """Style the axes: two spines, a light grid, labels."""
    axes.set_xlabel(xlabel, fontsize=9.5, color=colour("ink"))
    axes.set_ylabel(ylabel, fontsize=9.5, color=colour("ink"))
    axes.tick_params(labelsize=8.5, colors=colour("muted"), length=3, color=colour("rule"))
    axes.set_facecolor("none")
    axes.grid(color=colour("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colour("rule"))


def mark(artist, *, series: str | None = None, when: str | None = None):
    """Tag an artist with the legend entry that toggles it and the choices that show it.

    ``when`` is ``"depth=3"``, or several such words separated by spaces.
    """
    words = [f"series={series}" if series else "", when or ""]
    artist.set_gid("mark " + " ".join(filter(None, words)))


def to_svg(figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element for a page, with its colours as CSS variables.

    Args:
        name: unique on the page; equal figures of one name give equal text.
        description: alternative text for screen readers.
    """
    text = _svg(figure, name, "none")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="mark ([^"]*)"', _marked, text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"#[0-9a-f]{6}", _variable, tag[0]), text)
    # Keep font sizes, drop families; how matplotlib writes them depends on its version.
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", text)
    # Round coordinates but not text: a tick label of 0.0005 must not become 0.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _rounded, tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    opening = f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(description)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def save(figure, stem: Path, chosen: Mapping[str, str]):
    """Write ``stem.png`` and ``stem.svg`` for a paper, with a legend, each atomically.

    Args:
        chosen: choice -> value; artists marked for another value are left out.
    """
    words = {f"{name}={value}" for name, value in chosen.items()}
    for artist in figure.findobj(lambda a: (a.get_gid() or "").startswith("mark ")):
        when = [w for w in artist.get_gid().split()[1:] if not w.startswith("series=")]
        artist.set_visible(words.issuperset(when))
    add_legend(figure)
    write_atomically(stem.with_name(f"{stem.name}.svg"), _svg(figure, stem.name, "path"))
    save_png(figure, stem.with_name(f"{stem.name}.png"))


def save_png(figure, path: Path):
    """Write a PNG of 200 dpi on a white background, atomically."""
    _make_literal(figure)
    stream, about = io.BytesIO(), {"Software": _MAKER}
    with _boxes_told():
        figure.savefig(stream, dpi=200, format="png", facecolor="white", metadata=about)
    write_atomically(path, stream.getvalue())


def add_legend(figure):
    """Put one legend for all visible labelled artists above the axes."""
    found = {
        artist.get_label(): artist
        for axes in figure.axes
        for artist in axes.get_children()
        if isinstance(artist, _drawn_kinds()) and artist.get_visible() and _is_labelled(artist)
    }
    if found:
        # matplotlib takes a label with a leading underscore for none: the names are set afterwards.
        legend = figure.legend(
            found.values(),
            [str(number) for number in range(len(found))],
            loc="outside upper center",
            ncols=3 if max(map(len, found)) < 16 else 2,
            fontsize=8,
            frameon=False,
            handlelength=2.6,
        )
        for text, label in zip(legend.get_texts(), found, strict=True):
            text.set_text(label)


def _drawn_kinds():
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return (Line2D, Patch, Collection)


def _is_labelled(artist):
    # matplotlib's own names of artists that got no label: "_child0", "_child1" and so on.
    label = artist.get_label()
    return bool(label) and not re.fullmatch(r"_child\d+", label)


def _make_literal(figure):
    """Show all texts as they are: a name with "$" or "\\" is no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)


def _svg(figure, salt, fonttype):
    import matplotlib

    _make_literal(figure)
    stream = io.StringIO()
    settings = {"svg.fonttype": fonttype, "svg.hashsalt": f"distilllens {salt}"}
    # A browser draws the text of a page with its own fonts.
    with matplotlib.rc_context(settings), _boxes_told(tell=fonttype == "path"):
        figure.savefig(stream, format="svg", metadata={"Creator": _MAKER, "Date": None})
    return stream.getvalue()


@contextmanager
def _boxes_told(*, tell=True):
    """One warning for all characters that the font lacks, not one each and file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not (found := _NO_GLYPH.match(str(warning.message))):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif tell and not _told:
            _told.add(found[1])
            logger.warning(
                "the figures show boxes for characters that matplotlib's font does not have, such "
                "as %s; a page shows them",
                chr(int(found[1])),
            )


def _marked(match):
    """Data attributes of a marked group: its series for the legend, its choices for switches."""
    words = match[1].split()
    series = [word.removeprefix("series=") for word in words if word.startswith("series=")]
    when = [word for word in words if not word.startswith("series=")]
    attributes = [f' data-series="{name}"' for name in series]
    attributes += [f' data-when="{" ".join(when)}"'] if when else []
    return "<g" + "".join(attributes)


def _variable(match):
    name = _NAMES.get(match[0])
    return f"var(--{name})" if name else match[0]


def _rounded(match):
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
