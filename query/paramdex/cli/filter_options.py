"""The options of a filter, for every command that shows tokens; and how paths and numbers are typed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click


class FilePath(click.Path):
    """A path as it was typed, for what is called to read; not empty, which Python takes for the current folder."""

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


_OPTIONS = [
    click.option("--ascii", is_flag=True, help="show only tokens of ASCII characters"),
    click.option("--alnum", is_flag=True, help="show only tokens of letters and digits"),
    click.option("--word-starts", is_flag=True, help="show only tokens that start a word"),
    click.option(
        "--words", "word_file", type=FilePath(), metavar="FILE", help="show only the words of this file, one a line"
    ),
    click.option("--no-undertrained", is_flag=True, help="show no tokens that training hardly used"),
]
_OF_PAIRS = [
    click.option("--no-identical", is_flag=True, help="show no pairs of a token with itself"),
    click.option("--no-same-word", is_flag=True, help="show no pairs that differ only in case or space"),
]

_NAMES = ("ascii", "alnum", "word_starts", "no_undertrained", "no_identical", "no_same_word")


def filtered(*, pairs: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a filter, and those ``of pairs`` where it shows pairs; it gets one ``filter``."""
    options = [*_OPTIONS, *(_OF_PAIRS if pairs else [])]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def call(*args: Any, **values: Any) -> Any:
            from paramdex.store.filters import TokenFilter

            fields = {name: values.pop(name) for name in _NAMES if name in values}
            chosen = TokenFilter(words=values.pop("word_file"), **fields)
            return command(*args, filter=chosen or None, **values)

        for option in reversed(options):
            call = option(call)
        return call

    return decorate
