"""Pictures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import html
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from paramdex.text import visible
from paramdex.verbs.align import Alignment, short_name
from paramdex.verbs.diff import Moved
from paramdex.verbs.show import Card
from paramdex_schemas import QueryError
from paramdex_schemas.layout import place_name


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise QueryError("pictures need matplotlib; install it with: pip install 'paramdex[plot]'") from error
    return Figure


def alignment_figure(alignment: Alignment) -> Any:
    """Heat maps of an alignment: a column a kind, embedding space above and raw weights, where known, below."""
    Figure = _figure_class()
    kinds = alignment.kinds
    known = not np.isnan(alignment.scores(kinds[0], feature=True)).all()
    a, b = (alignment.table[name][0].as_py() for name in ("model_a", "model_b"))
    rows = 2 if known else 1
    figure = Figure(figsize=(2.3 * len(kinds) + 1.2, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, len(kinds), squeeze=False)
    for line, feature in enumerate([False, True][:rows]):
        for column, kind in enumerate(kinds):
            axis = axes[line, column]
            scores = alignment.scores(kind, feature=feature)
            places = (alignment.places(kind, "a"), alignment.places(kind, "b"))
            picture = axis.imshow(scores, cmap="viridis", origin="lower")
            matched = "feature_matched" if feature else "matched"
            for entry in alignment.table.to_pylist():
                if entry["kind"] == kind and entry[matched]:
                    row_a, row_b = (
                        names.index(place_name((entry[f"stack_{side}"], entry[f"layer_{side}"])))
                        for side, names in zip("ab", places, strict=True)
                    )
                    axis.plot(row_b, row_a, "o", color="white", markeredgecolor="black")
            for names, ticks in ((places[0], axis.set_yticks), (places[1], axis.set_xticks)):
                ticks(_ticks(len(names)), [short_name(names[i]) for i in _ticks(len(names))])
            if line == 0:
                axis.set_title(kind)
            if line == rows - 1:
                axis.set_xlabel(f"layer of {b}")
            if column == 0:
                axis.set_ylabel(f"{'raw weights' if feature else 'embedding space'}\nlayer of {a}")
            bar = figure.colorbar(picture, ax=axis, shrink=0.75)
            bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"{a} and {b}: mean |correlation| of the layers' vectors (dots: best one-to-one matching)")
    return figure


def tokens_figure(card: Card) -> Any:
    """A parameter's strongest tokens in the plane in which their embeddings differ most, the larger the stronger."""
    rows = card.to_rows()
    if not rows:
        raise QueryError("there are no tokens to draw")
    figure = _figure_class()(figsize=(7.5, 6), layout="constrained")
    axis = figure.subplots()
    places = card.places()
    strengths = np.abs([row["score"] for row in rows])
    sizes = 7 + 5 * (strengths - strengths.min()) / max(np.ptp(strengths), 1e-300)
    labels = []
    for side, color in (("top", "C0"), ("bottom", "C3")):
        own = [n for n, row in enumerate(rows) if row["side"] == side]
        axis.scatter(places[own, 0], places[own, 1], s=12, color=color, label=side)
        labels += [
            axis.annotate(
                visible(rows[n]["text"]),
                places[n],
                (4, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=float(sizes[n]),
                parse_math=False,
            )
            for n in own
        ]
    axis.margins(0.15)
    axis.legend(fontsize=8)
    axis.set_xlabel("first principal component of these tokens' embeddings")
    axis.set_ylabel("second")
    figure.suptitle((card.title or "").partition("\n")[0])
    with _any_glyphs():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on nothing moves
    _spread(labels)
    return figure


def _spread(labels: list[Any]) -> None:
    """Move labels up or down to where they cover no earlier one, as little as can be."""
    taken: list[Any] = []
    for label in labels:
        x, height = label.get_position()[0], label.get_fontsize()
        for step in range(41):
            label.set_position((x, (-1) ** step * ((step + 1) // 2) * height * 0.55))
            with _any_glyphs():
                box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def moved_figure(moved: Moved) -> Any:
    """How far what moved most did, a panel a kind, with the tokens it moved toward and away from."""
    rows = moved.to_rows()
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    heights = [1 + sum(row["kind"] == kind for row in rows) for kind in kinds] or [1]
    figure = _figure_class()(figsize=(10, 0.42 * sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axis, kind in zip(axes, kinds, strict=False):
        own = [row for row in rows if row["kind"] == kind]
        axis.barh(range(len(own)), [row["norm"] for row in own], color="0.85")
        for n, row in enumerate(own):
            for column, color, x in (("top", "C0", 0.01), ("bottom", "C3", 0.5)):
                text = ", ".join(visible(each) for each in row[column][:4])
                axis.text(
                    x,
                    n,
                    text,
                    color=color,
                    fontsize=8,
                    va="center",
                    transform=axis.get_yaxis_transform(),
                    parse_math=False,
                    clip_on=True,
                )
        axis.set_yticks(range(len(own)), [row["address"].partition("/")[2] for row in own], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{kind}: toward (blue) and away from (red)", fontsize=9, loc="left")
    axes[-1].set_xlabel("norm of what moved")
    figure.suptitle((moved.title or "").partition("\n")[0], fontsize=9)
    return figure


class Picture:
    """A picture that a notebook shows."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with _any_glyphs():
            self.figure.savefig(data, format="png", dpi=90)
        return data.getvalue()


@contextmanager
def _any_glyphs() -> Iterator[None]:
    """Vocabularies hold characters of all scripts; those that no font here has are drawn as boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        yield


def _ticks(n: int) -> list[int]:
    return list(range(0, n, max(1, -(-n // 8))))


def picture_format(path: Path) -> str:
    """The format that the ending of a picture's name chooses: png, svg, html, ... Raises QueryError where none does."""
    _figure_class()
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted([*FigureCanvasBase.get_supported_filetypes(), "html"])
    ending = path.suffix.removeprefix(".").lower()
    if ending not in known:
        raise QueryError(f"{path} has no ending that names a picture format; write one of .{', .'.join(known)}")
    return ending


def save(figure: Any, path: Path) -> Path:
    """Write a figure; the ending of the name chooses the format, a page that holds the picture for .html.

    Raises QueryError where that cannot be; a picture that is there already stays then.
    """
    ending = picture_format(path)
    place = Path(os.path.realpath(path))  # where a link leads
    part = place.with_name(f"{place.name}.part")
    try:
        with _any_glyphs():
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
