"""The command line: one command a verb of the atlas, and ``build`` and ``demo``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import click

from paramdex.cli.filter_options import FilePath, LayerNumber, Whole, filtered
from paramdex_schemas import ParamdexError, QueryError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.errors import escaped

Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Commands in the order in which a reader meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click calls it so
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `paramdex ... | head` is no error, which click takes it for
            _drop_output()
            return None


_ATLAS = click.argument("atlas", type=FilePath())
_K = click.option("-k", "--k", "k", type=Whole(1, 10_000), default=10, show_default=True, help="how many to give")
_MODEL = click.option("--in", "--model", "model", metavar="MODEL", help="only in this model")
_KIND = click.option("--kind", help="only of this kind: ff_key, ff_value, attn_query, ...")
_LAYER = click.option("--layer", type=LayerNumber(0), metavar="N", help="only in this layer")
_SIDE = click.option(
    "--side",
    type=click.Choice(["top", "bottom", "both"]),
    default="top",
    show_default=True,
    help="largest correlations, most negative ones, or largest in size",
)
_FORMAT = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="a table for people, or JSON or CSV for machines",
)


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
    """A table for people in the encoding of the terminal; what a program reads in UTF-8 and byte for byte, of which
    click would take out what looks like a colour.
    """
    text = result.render(output)
    to_bytes = output != "table" and hasattr(sys.stdout, "buffer")  # a stream in memory may take text alone
    click.echo(text.encode() if to_bytes else text, color=True)


def _say(text: str, *, err: bool = False) -> None:
    """Lines for people. No name that they hold acts on the terminal."""
    click.echo(escaped(text, but="\n\t"), err=err)


def _print_and_plot(result: Any, output: str, plot: str | None, printed: Any = None) -> None:
    """Print a result, or what is to be ``printed`` in its place, and draw its picture where there is a file for it."""
    if plot is not None:
        result.plot(plot)
    _print(result if printed is None else printed, output)
    if plot is not None:
        _say(f"picture: {plot}", err=output != "table")


def _check_plot(plot: str | None) -> None:
    """Raises QueryError where ``plot`` cannot be drawn, before the work of which it is to be the picture."""
    if plot is not None:
        from paramdex.picture import picture_format

        picture_format(given_path(plot, "a picture's file", QueryError))


@contextmanager
def _builder(what: str) -> Iterator[None]:
    """Around what loads the builder: says what to install where something of it is missing."""
    try:
        yield
    except ImportError as error:  # some are loaded where they are used
        raise QueryError(
            f"{what} needs {error.name}; install it with: pip install 'paramdex[build,cpu]' (or [build,gpu])"
        ) from error


def _open(path: str) -> Any:
    from paramdex.atlas import Atlas

    return Atlas(path)


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.option("-o", "--output", required=True, type=FilePath(), help="the atlas to make or add to")
@click.option("--top-k", type=int, default=50, show_default=True, help="strongest tokens kept a parameter and side")
@click.option("--pair-k", type=int, default=200, show_default=True, help="strongest pairs kept a head, matrix and side")
@click.option("--neighbor-k", type=int, default=5, show_default=True, help="nearest kept a parameter and other model")
@click.option(
    "--space",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="the embedding whose rows the scores belong to",
)
@click.option("--base", help="the model that the sources were tuned from: keep what moved (also from a LoRA folder)")
@click.option("--fold-norm", is_flag=True, help="fold norms into the vectors beside them")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option(
    "--directions-k", type=int, default=8, show_default=True, help="singular directions kept a head and matrix"
)
@click.option("--memory", help="the most it may take, such as 8G  [default: half of what is free, or what it needs]")
def build(
    sources: tuple[str, ...],
    output: str,
    top_k: int,
    pair_k: int,
    neighbor_k: int,
    space: str,
    base: str | None,
    fold_norm: bool,
    device: str,
    directions_k: int = 8,
    memory: str | None = None,
) -> None:
    """Build an atlas of models, or add models to one. Interrupted, the same command goes on where it was.

    SOURCE is a folder with config.json, weights and tokenizer, or a name on the Hugging Face hub, NAME@REVISION for a
    branch, tag or commit.

    \b
    paramdex build gpt2 gpt2-medium -o gpt2.atlas
    paramdex build early=EleutherAI/pythia-70m@step1000 EleutherAI/pythia-70m -o pythia.atlas
    paramdex build base=./bert tuned=./bert-imdb -o bert.atlas --top-k 100
    paramdex build moved=./bert-imdb --base ./bert -o bert.atlas
    """
    # Threads that wait for each other without spinning: a little slower alone, more than twice as fast where two
    # builds share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _builder("building"):
        from paramdex_builder import Options, TerminalProgress
        from paramdex_builder import build as run

        options = Options(
            top_k, pair_k, neighbor_k, base, fold_norm, space, device, directions_k=directions_k, memory=memory
        )
        try:
            run(sources, output, options, TerminalProgress())
        except KeyboardInterrupt as error:
            raise QueryError("interrupted; run the same command again, and it goes on where it was") from error


@cli.command()
@_ATLAS
@_FORMAT
def info(atlas: str, output: str) -> None:
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
@filtered(pairs=True)
@click.option("--plot", type=FilePath(), help="draw a parameter's tokens into this file (.png, .svg, .html)")
@_FORMAT
def show(atlas: str, address: str, k: int, same_word: bool, filter: Any, plot: str | None, output: str) -> None:
    """The strongest tokens of a parameter, or the strongest token pairs of a head, both sides.

    \b
    paramdex show demo.atlas tiny-a/L3/ff_value/17
    paramdex show demo.atlas tiny-a/L2/H1 --same-word
    paramdex show demo.atlas minilm/L3/ff_value/17 --ascii --alnum --word-starts --no-undertrained
    paramdex show demo.atlas tiny-a
    """
    found = _open(atlas).show(address, k, distinct=not same_word, filter=filter)
    if plot is not None and not hasattr(found, "plot"):
        raise QueryError(f"--plot draws the tokens of a parameter, and {address} is none")
    _print_and_plot(found, output, plot)


@cli.command()
@_ATLAS
@click.argument("tokens", nargs=-1, required=True)
@_K
@_MODEL
@click.option("--kind", help="only of this kind: ff_key, ff_value, ..., or QK or VO for heads")
@_LAYER
@filtered(pairs=True)
@_FORMAT
def find(
    atlas: str, tokens: tuple[str, ...], k: int, model: str, kind: str, layer: int, filter: Any, output: str
) -> None:
    """Parameters and heads that have these tokens among their strongest.

    A bare word finds every spelling of it; a word with a mark of its own (" Canada", Ġcanada, ##ing) just that one.
    Several words in one argument are several words, unless a vocabulary has them as one.

    \b
    paramdex find demo.atlas soup bread wine
    paramdex find demo.atlas french --kind VO --in minilm
    """
    _print(_open(atlas).find(tokens, k, model=model, kind=kind, layer=layer, filter=filter), output)


@cli.command()
@_ATLAS
@click.argument("words", nargs=-1, required=True)
@_K
@_MODEL
@_KIND
@_LAYER
@_SIDE
@filtered()
@_FORMAT
def search(
    atlas: str, words: tuple[str, ...], k: int, model: str, kind: str, layer: int, side: str, filter: Any, output: str
) -> None:
    """The parameters nearest to a set of words, over the whole vocabulary: by the mean z of their tokens, which in one
    vocabulary is by correlation.

    \b
    paramdex search demo.atlas "canada ottawa toronto"
    paramdex search demo.atlas "crime murder" --kind ff_value --side both
    """
    _print(_open(atlas).search(words, k, model=model, kind=kind, layer=layer, side=side, filter=filter), output)


@cli.command()
@_ATLAS
@click.argument("address")
@_K
@click.option("--in", "--model", "model", metavar="MODEL", help='in this model, or "all"; by default in its own')
@click.option("--kind", help="of this kind, by default of its own; for a head QK or VO, by default both")
@_LAYER
@_SIDE
@filtered(pairs=True)
@_FORMAT
def similar(
    atlas: str, address: str, k: int, model: str, kind: str, layer: int, side: str, filter: Any, output: str
) -> None:
    """The parameters or heads nearest to one, in its own or another model.

    Of a parameter by the correlation of scores over the whole vocabulary; of a head by the cosine of its matrices QK
    and VO over all pairs of tokens.

    \b
    paramdex similar demo.atlas tiny-a/L3/ff_value/17
    paramdex similar demo.atlas tiny-a/L3/ff_value/17 --in tiny-wide
    paramdex similar demo.atlas tiny-a/L2/H1 --in all --kind VO
    """
    _print(_open(atlas).similar(address, k, model=model, kind=kind, layer=layer, side=side, filter=filter), output)


@cli.command()
@_ATLAS
@click.argument("vectors", metavar="FILE", type=FilePath())
@click.option("--model", "--in", "model", required=True, help="the model of whose residual stream they are")
@click.option("--row", type=click.IntRange(0), help="this row of a matrix, counted from 0")
@click.option("--name", help="this tensor of a .safetensors file")
@_K
@_KIND
@_LAYER
@_SIDE
@filtered()
@_FORMAT
def lens(
    atlas: str,
    vectors: str,
    model: str,
    row: int | None,
    name: str | None,
    k: int,
    kind: str,
    layer: int,
    side: str,
    filter: Any,
    output: str,
) -> None:
    """What a vector of your own says: its tokens, and the parameters nearest to it.

    FILE is a .npy or .safetensors file with a vector of the model's residual stream, or a matrix with one a row: a
    steering vector, a probe, the decoder of a sparse autoencoder.

    \b
    paramdex lens demo.atlas steering.npy --model minilm
    paramdex lens demo.atlas sae.safetensors --name W_dec --row 1234 --model tiny-a --no-undertrained
    """
    found = _open(atlas).lens(vectors, model, k, row=row, name=name, kind=kind, layer=layer, side=side, filter=filter)
    _print(found, output)


@cli.command()
@_ATLAS
@click.argument("address")
@click.option("-k", "--k", "k", type=Whole(1, 10_000), default=4, show_default=True, help="how many of each matrix")
@click.option("--matrix", type=click.Choice(["QK", "VO"]), help="of this matrix alone")
@filtered()
@_FORMAT
def directions(atlas: str, address: str, k: int, matrix: str | None, filter: Any, output: str) -> None:
    """What a head reads and what it writes for it: the singular directions of its matrices.

    \b
    paramdex directions demo.atlas minilm/L5/H10
    paramdex directions demo.atlas tiny-a/L3/H1 --matrix QK -k 2
    """
    _print(_open(atlas).directions(address, k, matrix=matrix, filter=filter), output)


@cli.command()
@_ATLAS
@click.option("--pairs", required=True, type=FilePath(), help="a file: SOURCE, a tab and TARGET a line")
@_K
@_MODEL
@click.option(
    "--matrix", type=click.Choice(["VO", "QK"]), default="VO", show_default=True, help="read → written, or query → key"
)
@click.option(
    "--top",
    type=click.IntRange(0, 10_000),
    default=10,
    show_default=True,
    help="of how many strongest tokens of a row the shares are; 0 leaves them out and is faster",
)
@click.option(
    "--side",
    type=click.Choice(["top", "bottom", "both"]),
    default="top",
    show_default=True,
    help="largest z, most negative, or largest in size",
)
@_FORMAT
def heads(atlas: str, pairs: str, k: int, model: str, matrix: str, top: int, side: str, output: str) -> None:
    """Which heads do what your pairs of words do: a country and its capital, a verb and its past.

    \b
    paramdex heads demo.atlas --pairs countries.tsv
    paramdex heads demo.atlas --pairs countries.tsv --in minilm --matrix QK --side both
    """
    _print(_open(atlas).heads(pairs, k, model=model, matrix=matrix, top=top, side=side), output)


@cli.command()
@_ATLAS
@click.argument("model_a")
@click.argument("model_b")
@_KIND
@click.option("--plot", type=FilePath(), help="draw heat maps into this file (.png, .svg, .html)")
@click.option("--summary", is_flag=True, help="with json and csv: a row a kind, not a row a pair of layers")
@_FORMAT
def align(atlas: str, model_a: str, model_b: str, kind: str, plot: str | None, summary: bool, output: str) -> None:
    """Which layers of two models do the same: mean |correlation| of their parameters, the best matching, and how
    diagonal it is.

    \b
    paramdex align demo.atlas tiny-a tiny-b
    paramdex align demo.atlas tiny-a tiny-wide --plot heat.png
    paramdex align demo.atlas tiny-a tiny-wide --summary --format json
    """
    result = _open(atlas).align(model_a, model_b, kind)
    _print_and_plot(result, output, plot, result.summary if summary else None)


@cli.command()
@_ATLAS
@click.argument("model_a")
@click.argument("model_b")
@click.option("--kind", default="ff_value", show_default=True, help="of this kind: ff_key, ff_value, ...")
@click.option("--layer-a", type=LayerNumber(0), metavar="N", help="only of this layer of the first model")
@click.option("--layer-b", type=LayerNumber(0), metavar="N", help="only of this layer of the second model")
@_K
@click.option(
    "--side",
    type=click.Choice(["top", "both"]),
    default="top",
    show_default=True,
    help="both: a large negative correlation is near, too",
)
@filtered()
@_FORMAT
def match(
    atlas: str,
    model_a: str,
    model_b: str,
    kind: str,
    layer_a: int,
    layer_b: int,
    k: int,
    side: str,
    filter: Any,
    output: str,
) -> None:
    """Which parameter of another model does the job of each of one model's: nearest, mutual, and one to one.

    Prints the most similar; json and csv give all.

    \b
    paramdex match demo.atlas tiny-a tiny-b
    paramdex match demo.atlas tiny-a tiny-wide --kind ff_key --layer-a 3 --layer-b 3 --format csv
    """
    found = _open(atlas).match(model_a, model_b, kind, k, layer_a=layer_a, layer_b=layer_b, side=side, filter=filter)
    _print(found, output)


@cli.command()
@_ATLAS
@click.argument("base")
@click.argument("tuned", required=False)
@_K
@click.option("--kind", help="only of this kind: ff_key, ff_value, ..., or QK or VO for heads")
@_LAYER
@filtered(pairs=True)
@click.option("--plot", type=FilePath(), help="draw what moved most into this file (.png, .svg, .html)")
@_FORMAT
def diff(
    atlas: str,
    base: str,
    tuned: str | None,
    k: int,
    kind: str,
    layer: int,
    filter: Any,
    plot: str | None,
    output: str,
) -> None:
    """What training moved most: neurons and heads, with the tokens they moved toward and away from.

    BASE and TUNED are names in the atlas or the sources of a build with --base, whose name alone does as well.

    \b
    paramdex diff bert.atlas ./bert ./bert-imdb
    paramdex diff bert.atlas moved --kind ff_value --layer 4
    """
    _print_and_plot(_open(atlas).diff(base, tuned, k, kind=kind, layer=layer, filter=filter), output, plot)


@cli.command()
@click.argument("source")
@click.option("--text", required=True, type=FilePath(), help="a text file, plain or .xz, to run it on")
@click.option(
    "--space",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="the embedding whose rows the scores belong to",
)
@click.option("--fold-norm", is_flag=True, help="fold norms into the vectors beside them")
@click.option(
    "-k",
    "k",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="strongest tokens of states and their parameters",
)
@click.option("--pair-k", type=click.IntRange(1), default=100, show_default=True, help="strongest tokens in a pair")
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    help="tokens of the text looked at, and pairs of a kind and layer, at most",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="draws of each baseline; of fewer than 19 no p-value is as small as 0.05",
)
@click.option("--seed", type=int, default=0, show_default=True, help="seed of all that is drawn at random")
@click.option("--plot", type=FilePath(), help="draw all measures into this file (.png, .svg, .html)")
@_FORMAT
def evaluate(
    source: str,
    text: str,
    space: str,
    fold_norm: bool,
    k: int,
    pair_k: int,
    samples: int,
    draws: int,
    seed: int,
    plot: str | None,
    output: str,
) -> None:
    """Can a model's parameters be read as tokens? The measures of Dar et al., beside their baselines.

    Runs the model SOURCE, as for build, over a text. Whether a state's strongest tokens are those of the parameters
    most active there; whether vectors that belong together have strongest tokens in common; whether E^T does for the
    inverse of E.

    \b
    paramdex evaluate gpt2 --text wiki.txt
    paramdex evaluate data/models/tiny-a --text README.md --fold-norm --plot measures.png
    """
    from paramdex.measures import evaluation

    _check_plot(plot)
    with _builder("evaluating"):
        from paramdex_builder import EvaluateOptions, TerminalProgress
        from paramdex_builder import evaluate as run
        from paramdex_builder.measure.evaluate import read_words

        options = EvaluateOptions(space, fold_norm, k, pair_k, samples=samples, draws=draws, seed=seed)
        table = run(source, read_words(text), options, TerminalProgress())
    _print_and_plot(evaluation(table), output, plot)


@cli.command()
@click.argument("pretrained")
@click.argument("tuned", nargs=-1, required=True)
@click.option(
    "--reviews", required=True, type=FilePath(), help="texts to judge: JSON lines with text and label, plain or .xz"
)
@click.option("--base", help="the model that TUNED was tuned from: measured too, and needed for an adapter")
@click.option(
    "--last",
    type=click.IntRange(0),
    multiple=True,
    help="keep so many last layers of TUNED, can be given again (default: every number)",
)
@click.option(
    "--state",
    type=click.Choice(["raw", "scaled", "normed"]),
    default="raw",
    show_default=True,
    help="states as they are, in the mean length of TUNED's own, or through a final norm",
)
@click.option(
    "--space",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="the embeddings that the map leads through",
)
@click.option("--words", type=click.IntRange(1), help="take the last so many words of every text")
@click.option("--limit", type=click.IntRange(1), help="take so many texts, evenly from the file")
@click.option("--plot", type=FilePath(), help="draw accuracies into this file (.png, .svg, .html)")
@_FORMAT
def stitch(
    pretrained: str,
    tuned: tuple[str, ...],
    reviews: str,
    base: str | None,
    last: tuple[int, ...],
    state: str,
    space: str,
    words: int | None,
    limit: int | None,
    plot: str | None,
    output: str,
) -> None:
    """The first layers of one model under the last layers and the classifier of another, without training.

    In between, states go through the vocabulary that the two models share: the kernel E_A E_B^+ of Dar et al.
    TUNED is a classifier: a folder of transformers' with a head for sequence classification, or a model's folder or a
    LoRA adapter with classifier.safetensors beside it. Several are averaged in print. Texts are tokenized by TUNED's
    own tokenizer, and run as if each were alone.

    Labels are the class names of TUNED's config (id2label), LABEL_0, LABEL_1 ..., or all the numbers from 0. Where
    nothing names the classes, other labels are taken in sorted order, which is then said.

    \b
    paramdex stitch gpt2-medium ./gpt2-imdb --reviews imdb-test.jsonl --last 3 --plot stitch.png
    paramdex stitch ./other-bert ./bert-lora --base ./bert --reviews reviews.jsonl --words 180
    """
    from paramdex.measures import stitching

    _check_plot(plot)
    with _builder("stitching"):
        from paramdex_builder import StitchOptions, TerminalProgress
        from paramdex_builder import stitch as run
        from paramdex_builder.measure.classifier import read_labelled

        texts = read_labelled(reviews, words=words, limit=limit)
        options = StitchOptions(last or None, state, space, base)
        table = run(pretrained, tuned, texts, options, TerminalProgress())
    _print_and_plot(stitching(table), output, plot)


@cli.command()
@_ATLAS
@click.argument("query")
@_FORMAT
def sql(atlas: str, query: str, output: str) -> None:
    """The rows of one SELECT over the atlas's tables (README lists them).

    \b
    paramdex sql demo.atlas "SELECT * FROM heads ORDER BY vo_norm DESC LIMIT 5"
    paramdex sql demo.atlas "DESCRIBE parameter_tokens"
    """
    _print(_open(atlas).sql(query), output)


@cli.command()
@_ATLAS
@_FORMAT
def check(atlas: str, output: str) -> None:
    """Read a whole atlas and compare it with its checksums.

    \b
    paramdex check demo.atlas
    """
    _print(_open(atlas).check(), output)


@cli.command()
@_ATLAS
@click.option("--host", default="127.0.0.1", show_default=True, help="the address to listen on; 0.0.0.0 is every one")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 takes one that is free")
@click.option(
    "--sql-seconds",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="seconds until a visitor's SQL is stopped",
)
@click.option(
    "--sql-memory",
    type=click.IntRange(64),
    default=512,
    show_default=True,
    help="megabytes that a visitor's SQL may hold",
)
def serve(atlas: str, host: str, port: int, sql_seconds: float, sql_memory: int) -> None:
    """Explore an atlas in the browser: a page for every model, head and parameter, and its data as JSON.

    \b
    paramdex serve demo.atlas
    paramdex serve demo.atlas --port 9000
    """
    try:
        from paramdex.web.serve import serve as run
        from paramdex.web.sql.fence import Limits
    except ImportError as error:
        raise QueryError(f"serving needs {error.name}; install it with: pip install 'paramdex[web]'") from error
    opened = _open(atlas)
    limits = Limits(seconds=sql_seconds, memory_mb=sql_memory)
    run(opened, host, port, limits, lambda url: _say(f"{atlas} is at {url} (Ctrl+C stops)"))


@cli.command()
@click.option("--models", default="data/models", show_default=True, type=FilePath(), help="folder of the demo models")
@click.option("-o", "--output", default="demo.atlas", show_default=True, type=FilePath(), help="the atlas to make")
def demo(models: str, output: str) -> None:
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
        click.secho(escaped(f"$ {command.text}", but="\n"), bold=True)
        cli.main(command.arguments, standalone_mode=False)


def fail(message: str) -> NoReturn:
    """End with one clear line on standard error and exit code 2."""
    with suppress(OSError):  # of a standard error that cannot be written
        _say(f"error: {message}", err=True)
    sys.exit(2)


class _NoPandas:
    """An import finder that finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def _without_pandas() -> None:
    """Have pyarrow look for pandas now, in vain. Where it finds it, it imports it for the first list that becomes an
    array, which takes as long as all else that most commands do; none needs it.
    """
    import pyarrow as pa

    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_NoPandas)


def main() -> None:
    """The program ``paramdex``."""
    _without_pandas()
    try:
        cli.main(prog_name="paramdex", standalone_mode=False)
    except click.exceptions.Abort:
        fail("interrupted")
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        with suppress(OSError):
            _say(text.getvalue().rstrip("\n"), err=True)
        sys.exit(2)
    except ParamdexError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
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


def run() -> NoReturn:
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
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):  # of what could not be written, which has been said where it could
                stream.flush()
    os._exit(code)
