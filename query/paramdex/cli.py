"""The command line: one command a verb of the atlas, and ``build`` and ``demo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from paramdex_schemas import ParamdexError, QueryError

Command = TypeVar("Command", bound=Callable[..., Any])
_ATLAS = click.argument("atlas", type=click.Path(path_type=Path))
_K = click.option("-k", "k", type=click.IntRange(1, 10_000), default=10, show_default=True, help="how many to give")
_MODEL = click.option("--in", "model", metavar="MODEL", help="only in this model")
_KIND = click.option("--kind", help="only of this kind: ff_key, ff_value, attn_query, ...")
_LAYER = click.option("--layer", type=click.IntRange(0), help="only in this layer")
_SIDE = click.option(
    "--side", type=click.Choice(["top", "bottom", "both"]), default="top", show_default=True,
    help="largest correlations, most negative ones, or largest in size",
)  # fmt: skip
_FORMAT = click.option(
    "--format", "output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True,
    help="a table for people, or JSON or CSV for machines",
)  # fmt: skip


class _Group(click.Group):
    """Commands in the order in which a reader meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click calls it so
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="paramdex")
def cli() -> None:
    """What the weights of language models say: an index of every parameter in embedding space.

    \b
    paramdex build gpt2 NAME=./my-model -o my.atlas     make an atlas of two models
    paramdex find my.atlas canada                       ask which parameters speak of a word
    paramdex COMMAND --help                             examples of each command
    """


def _print(result: Any, output: str) -> None:
    click.echo(result.render(output))


def _open(path: Path) -> Any:
    from paramdex.atlas import Atlas

    return Atlas(path)


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="the atlas to make or add to")
@click.option("--top-k", type=int, default=50, show_default=True, help="strongest tokens kept a parameter and side")
@click.option("--pair-k", type=int, default=200, show_default=True, help="strongest pairs kept a head, matrix and side")
@click.option("--neighbor-k", type=int, default=5, show_default=True, help="nearest kept a parameter and other model")
@click.option("--space", type=click.Choice(["output", "input"]), default="output", show_default=True,
              help="the embedding whose rows the scores belong to")  # fmt: skip
@click.option("--base", help="the model that the sources were tuned from: keep what moved (also from a LoRA folder)")
@click.option("--fold-norm", is_flag=True, help="multiply the gains of norms into the vectors beside them")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--memory", help="the most it may take, such as 8G  [default: half of what is free]")
def build(
    sources: tuple[str, ...], output: Path, top_k: int, pair_k: int, neighbor_k: int, space: str,
    base: str | None, fold_norm: bool, device: str, memory: str | None,
) -> None:  # fmt: skip
    """Build an atlas of models, or add models to one. Interrupted, the same command goes on where it was.

    SOURCE is a folder with config.json, safetensors weights and tokenizer, or a name on the Hugging Face hub.

    \b
    paramdex build gpt2 gpt2-medium -o gpt2.atlas
    paramdex build base=./bert tuned=./bert-imdb -o bert.atlas --top-k 100
    paramdex build moved=./bert-imdb --base ./bert -o bert.atlas
    """
    # Threads that wait for each other without spinning: a little slower alone, more than twice as fast where two
    # builds share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from paramdex_builder import Options, TerminalProgress
        from paramdex_builder import build as run

        options = Options(top_k, pair_k, neighbor_k, base, fold_norm, space, device, memory)
        run(sources, output, options, TerminalProgress())
    except KeyboardInterrupt as error:
        raise QueryError("interrupted; run the same command again, and it goes on where it was") from error
    except ImportError as error:  # some are loaded where they are used
        raise QueryError(
            f"building needs {error.name}; install it with: pip install 'paramdex[build,cpu]' (or [build,gpu])"
        ) from error


@cli.command()
@_ATLAS
@_FORMAT
def info(atlas: Path, output: str) -> None:
    """The models of an atlas.

    \b
    paramdex info demo.atlas
    """
    _print(_open(atlas).info(), output)


@cli.command()
@_ATLAS
@click.argument("address")
@_K
@click.option("--same-word", is_flag=True, help="for a head: keep pairs of one word with itself")
@_FORMAT
def show(atlas: Path, address: str, k: int, same_word: bool, output: str) -> None:
    """The strongest tokens of a parameter, or the strongest token pairs of a head, both sides.

    \b
    paramdex show demo.atlas tiny-a/L3/ff_value/17
    paramdex show demo.atlas tiny-a/L2/H1 --same-word
    paramdex show demo.atlas tiny-a
    """
    _print(_open(atlas).show(address, k, distinct=not same_word), output)


@cli.command()
@_ATLAS
@click.argument("tokens", nargs=-1, required=True)
@_K
@_MODEL
@click.option("--kind", help="only of this kind: ff_key, ff_value, ..., or QK or VO for heads")
@_LAYER
@_FORMAT
def find(atlas: Path, tokens: tuple[str, ...], k: int, model: str, kind: str, layer: int, output: str) -> None:
    """Parameters and heads that have these tokens among their strongest.

    A bare word finds every spelling of it; a word with a mark of its own (" Canada", Ġcanada, ##ing) just that one.

    \b
    paramdex find demo.atlas soup bread wine
    paramdex find demo.atlas french --kind VO --in minilm
    """
    _print(_open(atlas).find(tokens, k, model=model, kind=kind, layer=layer), output)


@cli.command()
@_ATLAS
@click.argument("words", nargs=-1, required=True)
@_K
@_MODEL
@_KIND
@_LAYER
@_SIDE
@_FORMAT
def search(
    atlas: Path, words: tuple[str, ...], k: int, model: str, kind: str, layer: int, side: str, output: str
) -> None:
    """The parameters nearest to a set of words, by correlation over the whole vocabulary.

    \b
    paramdex search demo.atlas "canada ottawa toronto"
    paramdex search demo.atlas "crime murder" --kind ff_value --side both
    """
    # a word with a space of its own is one item, as for find; any other argument is split at white space
    parts = [part for word in words for part in ([word] if word != word.strip() != "" else word.split())]
    _print(_open(atlas).search(parts, k, model=model, kind=kind, layer=layer, side=side), output)


@cli.command()
@_ATLAS
@click.argument("address")
@_K
@click.option("--in", "model", metavar="MODEL", help='in this model, or "all"; by default in its own')
@click.option("--kind", help="of this kind; by default of its own")
@_LAYER
@_SIDE
@_FORMAT
def similar(atlas: Path, address: str, k: int, model: str, kind: str, layer: int, side: str, output: str) -> None:
    """The parameters nearest to one, in its own or another model, by correlation over the whole vocabulary.

    \b
    paramdex similar demo.atlas tiny-a/L3/ff_value/17
    paramdex similar demo.atlas tiny-a/L3/ff_value/17 --in tiny-wide
    """
    _print(_open(atlas).similar(address, k, model=model, kind=kind, layer=layer, side=side), output)


@cli.command()
@_ATLAS
@click.argument("model_a")
@click.argument("model_b")
@_KIND
@click.option("--plot", type=click.Path(path_type=Path), help="draw heat maps into this file (.png, .svg, .pdf)")
@_FORMAT
def align(atlas: Path, model_a: str, model_b: str, kind: str, plot: Path | None, output: str) -> None:
    """Which layers of two models do the same: mean |correlation| of their parameters, and the best matching.

    \b
    paramdex align demo.atlas tiny-a tiny-b
    paramdex align demo.atlas tiny-a tiny-wide --plot heat.png
    """
    result = _open(atlas).align(model_a, model_b, kind)
    if plot is not None:
        result.plot(plot)
    _print(result, output)
    if plot is not None:
        click.echo(f"heat maps: {plot}", err=output != "table")


@cli.command()
@_ATLAS
@click.argument("base")
@click.argument("tuned", required=False)
@_K
@click.option("--kind", help="only of this kind: ff_key, ff_value, ..., or QK or VO for heads")
@_LAYER
@_FORMAT
def diff(atlas: Path, base: str, tuned: str | None, k: int, kind: str, layer: int, output: str) -> None:
    """What training moved most: neurons and heads, with the tokens they moved toward and away from.

    BASE and TUNED are names in the atlas or the sources of a build with --base, whose name alone does as well.

    \b
    paramdex diff bert.atlas ./bert ./bert-imdb
    paramdex diff bert.atlas moved --kind ff_value --layer 4
    """
    _print(_open(atlas).diff(base, tuned, k, kind=kind, layer=layer), output)


@cli.command()
@_ATLAS
@click.argument("query")
@_FORMAT
def sql(atlas: Path, query: str, output: str) -> None:
    """The rows of one SELECT over the atlas's tables (README lists them).

    \b
    paramdex sql demo.atlas "SELECT * FROM heads ORDER BY vo_norm DESC LIMIT 5"
    paramdex sql demo.atlas "DESCRIBE parameter_tokens"
    """
    _print(_open(atlas).sql(query), output)


@cli.command()
@_ATLAS
@_FORMAT
def check(atlas: Path, output: str) -> None:
    """Read a whole atlas and compare it with its checksums.

    \b
    paramdex check demo.atlas
    """
    _print(_open(atlas).check(), output)


@cli.command()
@_ATLAS
@click.option("--host", default="127.0.0.1", show_default=True, help="the address to listen on; 0.0.0.0 is every one")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 takes one that is free")
@click.option("--sql-seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True,
              help="seconds until a visitor's SQL is stopped")  # fmt: skip
@click.option("--sql-memory", type=click.IntRange(64), default=512, show_default=True,
              help="megabytes that a visitor's SQL may hold")  # fmt: skip
def serve(atlas: Path, host: str, port: int, sql_seconds: float, sql_memory: int) -> None:
    """Explore an atlas in the browser: a page for every model, head and parameter, and its data as JSON.

    \b
    paramdex serve demo.atlas
    paramdex serve demo.atlas --port 9000
    """
    try:
        from paramdex.web.fence import Limits
        from paramdex.web.serve import serve as run
    except ImportError as error:
        raise QueryError(f"serving needs {error.name}; install it with: pip install 'paramdex[web]'") from error
    opened = _open(atlas)
    limits = Limits(seconds=sql_seconds, memory_mb=sql_memory)
    run(opened, host, port, limits, lambda url: click.echo(f"{atlas} is at {url} (Ctrl+C stops)"))


@cli.command()
@click.option("--models", default="data/models", show_default=True, type=click.Path(path_type=Path),
              help="folder of the demo models")  # fmt: skip
@click.option("-o", "--output", default="demo.atlas", show_default=True, type=click.Path(path_type=Path),
              help="the atlas to make")  # fmt: skip
def demo(models: Path, output: Path) -> None:
    """Build an atlas of the demo models, and of all-MiniLM-L6-v2 where it is installed, and take the tour.

    \b
    paramdex demo
    """
    from paramdex.tour import demo_sources, tour

    sources = demo_sources(models)
    build.callback(sources, output, 50, 200, 5, "output", base=None, fold_norm=False, device="auto")  # type: ignore[misc]
    for command in tour(output, {source.partition("=")[0] for source in sources}):
        click.echo()
        click.secho(f"# {command.question}", fg="green")
        click.secho(f"$ {command.text}", bold=True)
        cli.main(command.arguments, standalone_mode=False)


def fail(message: str) -> NoReturn:
    """End with one clear line on standard error and exit code 2."""
    click.echo(f"error: {message}", err=True)
    sys.exit(2)


def main() -> None:
    """The program ``paramdex``."""
    try:
        cli.main(prog_name="paramdex", standalone_mode=False)
    except click.exceptions.Abort:
        fail("interrupted")
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ParamdexError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `paramdex ... | head` is no error
