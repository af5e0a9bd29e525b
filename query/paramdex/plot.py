"""Pictures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from paramdex.alignment import Alignment, short_name
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


def _ticks(n: int) -> list[int]:
    return list(range(0, n, max(1, -(-n // 8))))


def save(figure: Any, path: Path) -> Path:
    """Write a figure; the ending of the name chooses the format, a page that holds the picture for .html.

    Raises QueryError where that cannot be.
    """
    known = sorted([*figure.canvas.get_supported_filetypes(), "html"])
    ending = path.suffix.removeprefix(".")
    if ending not in known:
        raise QueryError(f"{path} has no ending that names a picture format; write one of .{', .'.join(known)}")
    try:
        if ending == "html":
            path.write_text(_page(figure, path.stem), "utf-8")
        else:
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise QueryError(f"cannot write {path}: {error.strerror}") from error
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
