"""The theory figures: each is computed to data, written as JSON, and drawn from that JSON alone.

A figure is a module of this package with four names:

- ``data(quick, progress) -> dict``: what is measured; seeded, so that the same call gives the same numbers;
- ``title(data) -> str``: the finding, decided by the data;
- ``draw(figure, data)``: the picture;
- ``HEIGHT``: in inches; the width is that of one column, `style.WIDTH`.

`render` writes NAME.json, NAME.png and NAME.pdf, `redraw` the two pictures of a JSON file again.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["names", "redraw", "render"]

SCHEMA = "quadlab.figure/1"

_NAMES = (
    "heterogeneity_map",
    "measured_vs_bound",
    "zhang_cases",
    "tightness",
    "rotation",
    "lr_scaling",
    "soft_sign",
    "noise",
    "worst_cases",
    "scaling",
    "transformer_blocks",
    "js_matrix",
    "spectra",
    "replay_vs_training",
    "heterogeneity_in_training",
    "edge_of_stability",
)


def names() -> tuple[str, ...]:
    """Return the names of the figures.

    Examples
    --------
    >>> names()[:4]
    ('heterogeneity_map', 'measured_vs_bound', 'zhang_cases', 'tightness')
    """
    return _NAMES


def module(name: str) -> Any:
    """Return the module of a figure.

    Raises
    ------
    ValueError
        If there is no such figure.
    """
    if name not in _NAMES:
        raise ValueError(f"figure must be one of {', '.join(_NAMES)}, received {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def render(
    names: Sequence[str] | None = None,
    out: Path | str = "figures",
    quick: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Compute and draw figures.

    Parameters
    ----------
    names : sequence of str, optional
        The figures; all by default.
    out : path
        The folder that NAME.json, NAME.png (300 dpi) and NAME.pdf are written to; made if it is missing.
    quick : bool
        Fewer and smaller problems: seconds instead of minutes.
    progress : bool
        A progress bar over anything that takes more than two seconds.

    Returns
    -------
    list of dict
        One a figure: "name", "title", "files" (paths as strings) and "seconds".

    Raises
    ------
    ValueError
        If a name is unknown, before anything is computed.
    """
    modules = {name: module(name) for name in (_NAMES if names is None else names)}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name, source in modules.items():
        begin = time.perf_counter()
        content = {"schema": SCHEMA, "figure": name, "quick": quick, **source.data(quick, progress)}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n")
        result = redraw(path)
        done.append({**result, "seconds": round(time.perf_counter() - begin, 2)})
    return done


def redraw(path: Path | str) -> dict[str, Any]:
    """Draw NAME.png and NAME.pdf beside a NAME.json that `render` wrote, from what it holds alone.

    Parameters
    ----------
    path : path
        The JSON file.

    Returns
    -------
    dict
        "name", "title" and "files".

    Raises
    ------
    ValueError
        If the file is not the data of a figure.
    """
    from quadlab.figures import style

    source = Path(path)
    try:
        data = json.loads(source.read_text())
    except ValueError as error:
        raise ValueError(f"{source} is not the data of a figure: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{source} is not the data of a figure: its schema is not {SCHEMA!r}")
    drawer = module(data["figure"])
    with style.context():
        figure = style.new_figure(drawer.HEIGHT)
        drawer.draw(figure, data)
        style.set_title(figure, drawer.title(data))
        pictures = style.save(figure, source.with_suffix(""))
    files = [str(source), *(str(picture) for picture in pictures)]
    return {"name": data["figure"], "title": drawer.title(data), "files": files}
