"""What the commands share: options and how their values are typed, opening an atlas, and printing an answer.

A command is a ``click.Command`` of its own, which program.py adds to the program. Packages that bring commands
(others.py) may use what stands here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from paramdex.cli.ctrl_c import raise_again
from paramdex.store.token_filter import FLAGS, RULES, Rule, TokenFilter
from paramdex_schemas import QueryError
from paramdex_schemas.errors import escaped

if TYPE_CHECKING:
    from paramdex.atlas import Atlas


class FilePath(click.Path):
    """A path as it was typed, which what the command calls will read.

    An empty one is refused, as Python would take it for the current folder.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path cannot be empty", param, ctx)
        return super().convert(value, param, ctx)


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class LayerNumber(Whole):
    """The number of a layer, with or without the L that it has in an address."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number: Any = value[1:] if isinstance(value, str) and value[:1] in "lL" and value[1:].isdecimal() else value
        return super().convert(number, param, ctx)


ATLAS = click.argument("atlas", type=FilePath())
K = click.option(
    "-k", "--k", "k", type=Whole(1, 10_000), default=10, show_default=True, help="how many results to give"
)
MODEL = click.option("--in", "--model", "model", metavar="MODEL", help="only this model")
KIND = click.option("--kind", help="only this kind: ff_key, ff_value, attn_query, ...")
KIND_OR_MATRIX = click.option("--kind", help="only this kind: ff_key, ff_value, ...; for heads, QK or VO")
LAYER = click.option("--layer", type=LayerNumber(0), metavar="N", help="only this layer")
SIDE = click.option(
    "--side",
    type=click.Choice(["top", "bottom", "both"]),
    default="top",
    show_default=True,
    help="the largest correlations (top), the most negative (bottom) or the largest in size (both)",
)
FORMAT = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="a table for people; JSON or CSV for programs",
)


def _filter_option(name: str, rule: Rule) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, place, shown = f"--{name.replace('_', '-')}", f"filter_{name}", f"show {rule.help}"
    if name in FLAGS:
        return click.option(flag, place, is_flag=True, help=shown)
    if rule.choices:
        return click.option(flag, place, type=click.Choice(rule.choices), help=shown)
    return click.option(flag, place, type=FilePath(), metavar="FILE", help=shown)


def filtered(*, pairs: bool = False, ranked: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a filter: those about pairs where it shows ``pairs``, the choice of a ranking where
    what it shows is ``ranked`` by more than one.

    The command gets them as one argument, ``filter``, a TokenFilter.
    """
    rules = {n: rule for n, rule in RULES.items() if (pairs or not rule.of_pairs) and (ranked or not rule.choices)}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def call(*args: Any, **values: Any) -> Any:
            chosen = TokenFilter(**{name: values.pop(f"filter_{name}") for name in rules})
            return command(*args, filter=chosen, **values)

        decorated: Callable[..., Any] = call
        for name, rule in reversed(rules.items()):
            decorated = _filter_option(name, rule)(decorated)
        return decorated

    return decorate


def picture(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--plot``; its help says ``what`` is drawn."""
    return click.option("--plot", type=FilePath(), help=f"draw {what} into this file (.png, .svg, .html)")


def open_atlas(path: str) -> Atlas:
    """Open the atlas that a command asks. Raises AtlasError where there is none, or it cannot be read."""
    without_pandas()
    from paramdex.atlas import Atlas

    raise_again()
    return Atlas(path)


@contextmanager
def needing_builder(what: str) -> Iterator[None]:
    """A block that imports the builder. Raises QueryError, which says what to install, where a library is missing."""
    without_pandas()
    try:
        yield
    except ImportError as error:  # some are loaded where they are used
        raise QueryError(
            f"{what} needs {error.name}; install it with: pip install 'paramdex[build,cpu]' (or [build,gpu])"
        ) from error


class _NoPandas:
    """An import finder that finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def without_pandas() -> None:
    """Make pyarrow believe that pandas is not installed.

    pyarrow imports pandas, where it finds it, when it first makes an array of a list. That takes as long as all the
    rest of most commands, and no command needs it. pyarrow looks once: here, while a finder hides pandas.
    """
    import pyarrow as pa

    finder: Any = _NoPandas
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)


def print_result(result: Any, output: str) -> None:
    """Print a result: a table in the terminal's encoding, JSON and CSV in UTF-8.

    JSON and CSV are written as bytes, because click strips what looks like colour codes from text.
    """
    text = result.render(output)
    to_bytes = output != "table" and hasattr(sys.stdout, "buffer")  # a stream in memory may take text alone
    click.echo(text.encode() if to_bytes else text, color=True)


def say(text: str, *, err: bool = False) -> None:
    """Print lines for people. Control characters in them are escaped, so that no name acts on the terminal."""
    click.echo(escaped(text, but="\n\t"), err=err)


def print_and_plot(result: Any, output: str, plot: str | None, printed: Any = None) -> None:
    """Print a result, or ``printed`` in its place. Draw the result's picture first where ``plot`` names a file."""
    if plot is not None:
        result.plot(plot)
    print_result(result if printed is None else printed, output)
    if plot is not None:
        say(f"picture: {plot}", err=output != "table")


def check_plot(plot: str | None) -> None:
    """Raises QueryError where a picture cannot be drawn into ``plot``. Call it before the work."""
    if plot is not None:
        from paramdex.picture import picture_format
        from paramdex_schemas.arguments import given_path

        picture_format(given_path(plot, "a picture's file", QueryError))
