"""The pictures of a parameter's tokens and of what training moved, as files and in a notebook."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL_OPTIONS
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

import oracle
import paramdex
from paramdex import Atlas
from paramdex.cli import cli, main
from paramdex.text import visible
from paramdex.verbs.show import Card, token_plane
from paramdex_builder import Options, build
from paramdex_schemas import QueryError

PNG = b"\x89PNG\r\n\x1a\n"


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 999))
def test_the_plane_is_that_of_the_largest_eigenvalues(n: int, d: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    found = token_plane(rows)
    assert found.shape == (n, 2)
    centred = rows - rows.mean(axis=0)
    values = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
    np.testing.assert_allclose((found**2).sum(axis=0), [*values, 0.0][:2], atol=1e-9)
    assert abs(found[:, 0] @ found[:, 1]) < 1e-9
    assert (found.max(axis=0) >= -found.min(axis=0) - 1e-9).all()


def test_tokens_lie_where_their_embeddings_do(atlas: Atlas, truths: dict[str, oracle.Truth]) -> None:
    card = atlas.show("bert/L1/ff_value/3", 5)
    ids = [row["token_id"] for row in card]
    np.testing.assert_allclose(card.places(), token_plane(truths["bert"].E[ids]), atol=1e-6)


def test_every_token_is_in_the_picture_once(atlas: Atlas, tmp_path: Path) -> None:
    card = atlas.show("bert/L1/ff_value/3", 5)
    texts = [text.get_text() for text in card.figure().axes[0].texts]
    assert texts == [visible(row["text"]) for row in card]
    assert card.plot(tmp_path / "tokens.png").read_bytes()[:8] == PNG
    page = card.plot(tmp_path / "tokens.html").read_text("utf-8")
    assert all(f">{text}</text>" in page for text in texts if text.isalnum())


def test_labels_do_not_cover_each_other(atlas: Atlas) -> None:
    figure = atlas.show("gpt2-a/L1/ff_value/3", 12).figure()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_texts_are_no_formulas() -> None:
    r"""Tokens such as $\frac$, which would be an error, are drawn as they are."""
    rows = [{"side": side, "text": r"$\frac$", "score": 1.0} for side in ("top", "bottom")]
    card = Card(pa.Table.from_pylist(rows), "x", places=lambda: np.eye(2))
    assert card.plot()._repr_png_()[:8] == PNG


def test_a_notebook_shows_it(atlas: Atlas) -> None:
    for result in (atlas.show("bert/L1/ff_value/3", 5), atlas.align("gpt2-a", "gpt2-b", "ff_key")):
        data = result.plot()._repr_png_()
        assert data[:8] == PNG
        assert imread(io.BytesIO(data)).shape[2] == 4


def test_what_moved_is_drawn(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """A bar for every row, with the address within the model and the tokens of both sides."""
    options = Options(**{**vars(SMALL_OPTIONS), "base": str(model_folders["gpt2-a"])})
    path = build([f"moved={model_folders['gpt2-b']}"], tmp_path / "x.atlas", options)
    with paramdex.open(path) as atlas:
        moved = atlas.diff("moved", k=3)
        figure = moved.figure()
        names = [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
        assert names == [row["address"].removeprefix("moved/") for row in moved]
        widths = [bar.get_width() for axis in figure.axes for bar in axis.patches]
        assert widths == pytest.approx([row["norm"] for row in moved])
        texts = [text.get_text() for axis in figure.axes for text in axis.texts]
        sides = [row[side][:4] for row in moved for side in ("top", "bottom")]
        assert texts == [", ".join(map(visible, tokens)) for tokens in sides]
        assert moved.plot(tmp_path / "moved.svg").read_text("utf-8").count("<svg") == 1


@pytest.mark.parametrize("address", ["bert/L1/H0", "bert"])
def test_only_parameters_are_drawn(
    small_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    path = tmp_path / "x.png"
    monkeypatch.setattr("sys.argv", ["paramdex", "show", str(small_atlas), address, "--plot", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: --plot draws the tokens of a parameter, and {address} is none\n"
    assert not path.exists()


def test_the_commands_draw(small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    monkeypatch.setattr("sys.argv", ["paramdex", "show", str(small_atlas), "bert/L1/ff_key/2", "--plot", str(path)])
    main()
    assert path.read_bytes()[:8] == PNG


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_picture_that_cannot_be_written_leaves_the_earlier_one(
    small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from matplotlib.figure import Figure

    earlier = tmp_path / f"x.{ending}"
    earlier.write_bytes(b"earlier")

    def full(_: object, target: object, **__: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with paramdex.open(small_atlas) as atlas:
        moved = atlas.align("gpt2-a", "gpt2-b", "ff_key")
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", full)
        for path in (earlier, tmp_path / f"new.{ending}"):
            with pytest.raises(QueryError, match=f"^cannot write {path}: No space left on device$"):
                moved.plot(path)
    assert [path.name for path in tmp_path.iterdir()] == [earlier.name]
    assert earlier.read_bytes() == b"earlier"
    moved.plot(earlier)
    assert earlier.stat().st_size > 1000


def test_a_picture_is_written_where_a_link_leads(small_atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "link.svg").symlink_to("x.svg")
    with paramdex.open(small_atlas) as atlas:
        atlas.align("gpt2-a", "gpt2-b", "ff_key").plot(tmp_path / "link.svg")
    assert (tmp_path / "link.svg").is_symlink()
    assert "<svg" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
    "arguments",
    [["evaluate", "./nowhere", "--text", "x"], ["stitch", "./nowhere", "./nowhere", "--reviews", "x"]],
    ids=["evaluate", "stitch"],
)
def test_an_ending_is_refused_before_the_work(arguments: list[str]) -> None:
    with pytest.raises(QueryError, match=r"^x\.txt has no ending that names a picture format; write one of \."):
        cli.main([*arguments, "--plot", "x.txt"], standalone_mode=False)


def test_a_word_list_without_a_name_is_refused(small_atlas: Path) -> None:
    with pytest.raises(click.BadParameter, match="a path cannot be empty"):
        cli.main(["show", str(small_atlas), "bert/L0/ff_key/0", "--words", ""], standalone_mode=False)
