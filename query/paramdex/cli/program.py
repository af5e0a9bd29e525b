"""The program ``paramdex``: its commands, in the order in which a reader meets them, and how it ends.

Whatever is wrong with what a user gave ends in one clear line on standard error and exit code 2.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from paramdex.cli.building import build, evaluate, relate, stitch
from paramdex.cli.ctrl_c import INTERRUPTED, end_at_once
from paramdex.cli.demo import demo
from paramdex.cli.managing import export, merge, remove, rename
from paramdex.cli.options import say
from paramdex.cli.others import installed, load
from paramdex.cli.questions import (
    align,
    check,
    diff,
    directions,
    find,
    heads,
    info,
    lens,
    match,
    search,
    show,
    similar,
    sql,
)
from paramdex.cli.serving import serve
from paramdex_schemas import ParamdexError, QueryError


class _Group(click.Group):
    """Commands in the order in which a reader meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click calls it so
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of these commands, or another package's of that name."""
        return super().get_command(ctx, cmd_name) or load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        try:
            found = {name: entries for name, entries in installed().items() if name not in self.commands}
        except QueryError as error:
            found = {}
            formatter.write_text(str(error))
        if found:
            with formatter.section("Commands of other packages"):
                formatter.write_dl([(name, entries[0].value.partition(":")[0]) for name, entries in found.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `paramdex ... | head` is not an error, though click treats it as one
            _drop_output()
            return None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="paramdex")
def cli() -> None:
    """What the weights of language models say: an index of every parameter in embedding space.

    \b
    paramdex build gpt2 NAME=./my-model -o my.atlas     make an atlas of two models
    paramdex find my.atlas canada                       ask which parameters speak of a word
    paramdex COMMAND --help                             examples of each command
    """


for each in (
    *(build, info, show, find, search, similar, lens, directions, heads, align, match, diff),
    *(evaluate, stitch, sql, check, relate, remove, rename, merge, export, serve, demo),
):
    cli.add_command(each)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one clear line on standard error and an exit code."""
    with suppress(OSError):  # of a standard error that cannot be written
        say(f"error: {message}", err=True)
    sys.exit(code)


def main() -> None:
    """The program ``paramdex``."""
    try:
        cli.main(prog_name="paramdex", standalone_mode=False)
    except click.exceptions.Abort:  # what click makes of KeyboardInterrupt
        fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        with suppress(OSError):
            say(text.getvalue().rstrip("\n"), err=True)
        sys.exit(2)
    except ParamdexError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except MemoryError:
        fail("this takes more memory than there is")
    except OSError as error:
        _drop_output()
        what = error.filename or "the output cannot be written"
        fail(f"{what}: {error.strerror or error}")


def _drop_output() -> None:
    """Let nothing more be written to standard output, not even by Python at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_process() -> NoReturn:
    """``main`` as a process of its own, which ends at once: Python and its libraries would take a tenth of a second to
    put away what the system takes back anyhow.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an arrow on a terminal of Latin-1 as \\u2192
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    end_at_once()  # what waits for a reader is written, or not
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):  # of what could not be written, which has been said where it could
                stream.flush()
    os._exit(code)
