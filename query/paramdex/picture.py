"""What all pictures share: matplotlib, where it is installed, and writing them to a file or into a notebook."""

from __future__ import annotations

import html
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paramdex_schemas import QueryError


def figure_class() -> Any:
    """matplotlib's Figure. Raises QueryError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise QueryError("pictures need matplotlib; install it with: pip install 'paramdex[plot]'") from error
    return Figure


class Picture:
    """A picture that a notebook shows."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with any_glyphs():
            self.figure.savefig(data, format="png", dpi=90)
        return data.getvalue()


@contextmanager
def any_glyphs() -> Iterator[None]:
    """Vocabularies hold characters of all scripts. Those that no font has are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        yield


def picture_format(path: Path) -> str:
    """The format that the ending of a file's name chooses: png, svg, html, ... Raises QueryError if it chooses none."""
    figure_class()
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted([*FigureCanvasBase.get_supported_filetypes(), "html"])
    ending = path.suffix.removeprefix(".").lower()
    if ending not in known:
        raise QueryError(f"{path} has no ending that names a picture format; write one of .{', .'.join(known)}")
    return ending


def save(figure: Any, path: Path) -> Path:
    """Write a figure to a file. The ending of the name chooses the format; .html is a page that holds the picture.

    Raises QueryError if it cannot be written; a picture that was there before stays.
    """
    ending = picture_format(path)
    place = Path(os.path.realpath(path))  # where a link leads
    part = place.with_name(f"{place.name}.part")
    try:
        with any_glyphs():
            if ending == "html":
                part.write_text(_page(figure, path.stem), "utf-8")
            else:
                figure.savefig(part, dpi=150, format=ending)
        part.replace(place)
    except Exception as error:  # of the system, and of what matplotlib calls for some formats
        with suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise QueryError(f"cannot write {path}: {reason}") from error
    return path


def _page(figure: Any, title: str) -> str:
    """A page of its own with the figure in it as SVG: it scales, and its words can be searched and copied."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "paramdex"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width"><style>svg { max-width: 100%; height: auto }</style>'
        f"</head>\n<body>\n{svg[svg.index('<svg') :]}</body></html>\n"
    )
