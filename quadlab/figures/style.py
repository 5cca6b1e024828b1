"""How all figures look: one column wide, readable there, and safe for colour-blind readers.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), without their yellow, which is
lost on white. A colour never stands alone: methods also differ in line style, bounds also in marker.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: One column of a two-column page, in inches.
WIDTH = 3.4
DPI = 300

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#808080"

#: Method -> (label, colour, line style), the same in every figure.
METHODS: dict[str, tuple[str, str, Any]] = {
    "gd": ("GD", BLUE, (0, (4, 1.5))),
    "signsgd": ("SignSGD", VERMILLION, (0, (1, 1))),
    "adam": ("Adam", GREEN, "-"),
    "adam_without_momentum": ("Adam, $β_1=0$", SKY, (0, (5, 1.2, 1, 1.2, 1, 1.2))),
    "frozen_adam": ("frozen Adam", PURPLE, (0, (5, 1.2, 1, 1.2))),
}

#: (colour, marker) of the entries of a long list, such as bounds.
CYCLE = (
    (BLUE, "o"),
    (VERMILLION, "s"),
    (GREEN, "^"),
    (PURPLE, "D"),
    (ORANGE, "v"),
    (SKY, "P"),
    (GREY, "x"),
    (VERMILLION, "*"),
    (BLACK, "p"),
    (BLUE, "<"),
    (GREEN, "h"),
    (PURPLE, ">"),
)

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.25,
    "legend.borderaxespad": 0.1,
    "legend.borderpad": 0.1,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # text stays text
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "path.simplify": True,
}
_TITLE = {"size": 8.0, "weight": "bold", "width": 47}


def bound_looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the colour, marker and line style of each bound of a method, the same in every figure."""
    looks = {}
    for k, (name, (colour, marker)) in enumerate(zip(names, itertools.cycle(CYCLE), strict=False)):
        looks[name] = {"color": colour, "marker": marker, "linestyle": "-" if k < 7 else "--"}
    return looks


def bound_label(names: Sequence[str]) -> str:
    """Return bounds that coincide as one label; the prefix of a panel's method goes without saying.

    Examples
    --------
    >>> bound_label(["lemma.direction_l2", "gd.gradient_weighted"])
    'gradient_weighted = lemma.direction_l2'
    """
    told = ("lemma.", "adam_mini.")  # not the first method of any panel
    short = [name if name.startswith(told) else name.partition(".")[2] for name in names]
    return " = ".join(reversed(short))


def bound_legend(figure: Any, axes: Any, extra: Sequence[tuple[Any, str]], handlelength: float) -> None:
    """Put the legend of the bounds below the figure, in two columns, the long labels in the first."""
    handles, labels = axes.get_legend_handles_labels()
    entries = sorted(zip(handles, labels, strict=True), key=lambda entry: -len(entry[1]))
    legend = figure.legend(
        *zip(*entries, *extra, strict=True),
        loc="outside lower center",
        ncols=2,
        fontsize=6.0,
        handlelength=handlelength,
        columnspacing=0.8,
    )
    for line in legend.get_lines():
        line.set(alpha=1.0, markersize=3.2)


def superscript(exponent: float, decimals: int = 1) -> str:
    """Return an exponent in superscript, by default to one decimal.

    Examples
    --------
    >>> superscript(-0.84)
    '⁻⁰·⁸'
    """
    return f"{exponent:.{decimals}f}".translate(str.maketrans("-.0123456789", "⁻·⁰¹²³⁴⁵⁶⁷⁸⁹"))


@contextmanager
def context() -> Iterator[None]:
    """Draw with these settings and matplotlib's own defaults, whatever the user's are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(height: float) -> Any:
    """Return an empty figure of one column's width, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def set_title(figure: Any, text: str) -> None:
    """Set what the figure shows above it, in lines of one column."""
    lines = textwrap.fill(text, int(_TITLE["width"]))  # type: ignore[call-overload]
    figure.suptitle(
        lines, x=0.012, ha="left", fontsize=_TITLE["size"], fontweight=_TITLE["weight"], linespacing=1.15
    )


def save(figure: Any, stem: Path) -> list[Path]:
    """Write stem.png and stem.pdf, without dates, so that the same picture is the same file."""
    png, pdf = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    figure.get_layout_engine().execute(figure)  # once: left to savefig, it costs a draw for each file
    figure.set_layout_engine("none")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]


def significant(value: float) -> str:
    """Return a factor in words of a title: two significant digits below 10, and no exponent above.

    Examples
    --------
    >>> significant(1.26), significant(34.6), significant(1234.0)
    ('1.3', '35', '1,200')
    """
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 9.95 else f"{value:.1f}"


def grid(axes: Any) -> None:
    """Draw a faint grid at the major ticks."""
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.4)


def decades(axis: Any, step: int = 1) -> None:
    """Put the ticks of a log axis at every `step`-th power of ten, minor ones between only for step 1."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(base=10.0**step, numticks=20))
    axis.set_minor_locator(
        LogLocator(base=10.0, subs=range(2, 10), numticks=200) if step == 1 else NullLocator()
    )
    axis.set_minor_formatter(NullFormatter())
