"""The commands that read models: ``build`` makes an atlas of them, ``evaluate`` and ``stitch`` measure them.

They alone load the builder, when they are called, so that asking an atlas needs neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from paramdex.cli.ctrl_c import raise_again
from paramdex.cli.options import ATLAS, FORMAT, FilePath, check_plot, needing_builder, picture, print_and_plot
from paramdex_schemas import QueryError

SPACE = click.option(
    "--space",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="the embedding that scores the tokens: output (the unembedding) or input",
)
FOLD_NORM = click.option(
    "--fold-norm", is_flag=True, help="fold the norms' gains, and LayerNorm's centring, into the weights beside them"
)


DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (a GPU where there is one), cpu, cuda or cuda:N"
)


def build_atlas(sources: Sequence[str], output: str, options: Mapping[str, Any]) -> None:
    """Build an atlas, or add to one. ``options`` are fields of ``paramdex_builder.Options``; others keep their default.

    Raises QueryError where the builder is not installed or the build was interrupted, and what the build raises.
    """
    _let_threads_sleep()
    with needing_builder("building"):
        from paramdex_builder import Options, TerminalProgress
        from paramdex_builder import build as run

        raise_again()
        try:
            run(sources, output, Options(**options), TerminalProgress())
        except KeyboardInterrupt as error:
            raise QueryError("interrupted; run the same command again to continue where it stopped") from error


def _let_threads_sleep() -> None:
    """Let threads wait for each other without spinning: a little slower alone, more than twice as fast where two
    programs share the cores. Call it before torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.option("-o", "--output", required=True, type=FilePath(), help="the atlas to make or add to")
@click.option(
    "--top-k", type=int, default=50, show_default=True, help="strongest tokens to keep per parameter and side"
)
@click.option(
    "--pair-k", type=int, default=200, show_default=True, help="strongest pairs to keep per head, matrix and side"
)
@click.option(
    "--neighbor-k",
    type=int,
    default=5,
    show_default=True,
    help="nearest parameters to keep per parameter and other model",
)
@SPACE
@click.option("--base", help="the model that the sources (LoRA folders, too) were tuned from: keep what moved")
@FOLD_NORM
@click.option(
    "--reading",
    type=click.Choice(["auto", "expected", "effective", "embedding"]),
    default="auto",
    help="what scores what layers read: what they see of a token (expected, fitted on text), the state that enters "
    "layer 0 or leaves it for the token (effective, weights alone), or the embedding  [default: auto, expected for "
    "causal models, or with --text, where they can be run, else embedding]",
)
@click.option(
    "--text", type=FilePath(), help="fit that on this text, plain or .xz  [default: on what the model writes itself]"
)
@DEVICE
@click.option(
    "--directions-k", type=int, default=8, show_default=True, help="singular directions to keep per head and matrix"
)
@click.option(
    "--relate",
    default="auto",
    show_default=True,
    metavar="WHICH",
    help="keep neighbors and alignments with these models of the atlas: all, none, NAME,NAME, or auto: as many as take "
    "less than a minute",
)
@click.option("--replace", is_flag=True, help="replace a model of the same name that was built otherwise")
@click.option("--memory", help="the most memory to take, such as 8G  [default: half of what is free, or what it needs]")
def build(sources: tuple[str, ...], output: str, **options: Any) -> None:
    """Build an atlas of models, or add models to one.

    After an interruption, the same command continues where it stopped.

    SOURCE is a folder with config.json, weights and tokenizer, or a name on the Hugging Face hub, NAME@REVISION for a
    branch, tag or commit.

    \b
    paramdex build gpt2 gpt2-medium -o gpt2.atlas
    paramdex build early=EleutherAI/pythia-70m@step1000 EleutherAI/pythia-70m -o pythia.atlas
    paramdex build base=./bert tuned=./bert-imdb -o bert.atlas --top-k 100
    paramdex build moved=./bert-imdb --base ./bert -o bert.atlas
    """
    build_atlas(sources, output, options)


@click.command()
@ATLAS
@click.argument("models", nargs=-1, metavar="[MODEL MODEL...]")
@click.option(
    "--neighbor-k", type=int, help="nearest parameters to keep per parameter  [default: as the models were built]"
)
@DEVICE
def relate(atlas: str, models: tuple[str, ...], **options: Any) -> None:
    """Keep neighbors and layer alignments of models with each other: of every two that are named, or of all.

    After an interruption, the same command continues where it stopped.

    \b
    paramdex relate pythia.atlas step1000 step2000
    paramdex relate pythia.atlas
    """
    _let_threads_sleep()
    with needing_builder("relating"):
        from paramdex_builder import TerminalProgress
        from paramdex_builder import relate as run

        raise_again()
        run(atlas, models, progress=TerminalProgress(), **options)


@click.command()
@click.argument("source")
@click.option(
    "--text",
    required=True,
    type=FilePath(),
    help="a text file, plain or .xz, to run the model on: of a domain apart, that nothing measured was fitted on",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    type=click.Choice(["states", "pairs", "reads", "hits", "coherence", "hubs", "writes", "keep_k"]),
    help="measure this; can be repeated  [default: everything]",
)
@click.option(
    "--other-model",
    metavar="SOURCE",
    help="another model, in whose embedding the words of lists are compared  [default: coherence is left out]",
)
@SPACE
@FOLD_NORM
@click.option(
    "-k",
    "k",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="strongest tokens to compare, of states and their parameters",
)
@click.option(
    "--pair-k",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="strongest tokens to compare, of the vectors of a pair",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    help="most tokens of the text to look at",
)
@click.option(
    "--parameters",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    help="most parameters, and pairs of them, whose strongest tokens are looked at per kind and layer",
)
@click.option(
    "--heads",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="most heads, of all layers, whose strongest pairs of tokens are looked at; 0 for none",
)
@click.option(
    "--texts",
    type=click.IntRange(0),
    default=144,
    show_default=True,
    help="texts of 128 tokens for a causal model to write, from which it is fitted what its layers read; 0 for none",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="random draws per baseline; with fewer than 19 no p-value can be as small as 0.05",
)
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the random draws")
@picture("all measures")
@FORMAT
def evaluate(source: str, text: str, plot: str | None, output: str, **options: Any) -> None:
    """Can a model's parameters be read as tokens? The measures of Dar et al. and others, beside their baselines.

    Runs a model over a text; SOURCE names it as for build. Measures whether a state's strongest tokens are those of the
    parameters most active there, whether vectors that belong together share strongest tokens, and whether E^T can stand
    in for the inverse of E. Then, of what tables say: whether a parameter fires on it, whether a head writes it,
    whether the words of a list belong together (with --other-model), and how many places hubs take, tokens that stand
    in very many lists. Readers are read by the embedding, by the state that enters layer 0 or leaves it (effective),
    and by what their own layer sees of that (expected). Lists are ranked by score, and by what is unusual for each
    token (token_z).

    Take a text of a domain that the fit never saw. Here the fit sees only what the model writes itself.

    \b
    paramdex evaluate gpt2 --text wiki.txt --other-model sentence-transformers/all-MiniLM-L6-v2
    paramdex evaluate data/models/tiny-a --text README.md --fold-norm --plot measures.png
    """
    from paramdex.measures import evaluation

    check_plot(plot)
    _let_threads_sleep()
    with needing_builder("evaluating"):
        from paramdex_builder import EvaluateOptions, TerminalProgress
        from paramdex_builder import evaluate as run
        from paramdex_builder.read.source import read_words

        raise_again()
        options["measures"] = options["measures"] or None
        table = run(source, read_words(text), EvaluateOptions(**options), TerminalProgress())
    print_and_plot(evaluation(table), output, plot)


@click.command()
@click.argument("pretrained")
@click.argument("tuned", nargs=-1, required=True)
@click.option(
    "--reviews", required=True, type=FilePath(), help="texts to classify: JSON lines with text and label, plain or .xz"
)
@click.option("--base", help="the model that TUNED was tuned from; it is measured, too, and an adapter needs it")
@click.option(
    "--last",
    type=click.IntRange(0),
    multiple=True,
    help="keep this many last layers of TUNED; can be repeated  [default: every number]",
)
@click.option(
    "--state",
    type=click.Choice(["raw", "scaled", "normed"]),
    default="raw",
    show_default=True,
    help="states as they are (raw), in the mean length of TUNED's own (scaled), or through a final norm (normed)",
)
@click.option(
    "--space",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="the embeddings that the map goes through",
)
@click.option("--words", type=click.IntRange(1), help="take only the last words of each text, this many")
@click.option("--limit", type=click.IntRange(1), help="take only this many texts, spread evenly over the file")
@picture("accuracies")
@FORMAT
def stitch(
    pretrained: str,
    tuned: tuple[str, ...],
    reviews: str,
    words: int | None,
    limit: int | None,
    plot: str | None,
    output: str,
    **options: Any,
) -> None:
    """The first layers of one model under the last layers and the classifier of another, without training.

    In between, states are mapped through the vocabulary that the two models share, by the kernel E_A E_B^+ of Dar et
    al. TUNED is a classifier: a folder of transformers with a head for sequence classification, or the folder of a
    model or a LoRA adapter with classifier.safetensors in it. With several, the table shows averages. Texts are
    tokenized by TUNED's own tokenizer, and each is run as if it were alone.

    Labels are the class names of TUNED's config (id2label), LABEL_0, LABEL_1 ..., or the numbers from 0. Where nothing
    names the classes, other labels are numbered in sorted order, and a line says so.

    \b
    paramdex stitch gpt2-medium ./gpt2-imdb --reviews imdb-test.jsonl --last 3 --plot stitch.png
    paramdex stitch ./other-bert ./bert-lora --base ./bert --reviews reviews.jsonl --words 180
    """
    from paramdex.measures import stitching

    check_plot(plot)
    with needing_builder("stitching"):
        from paramdex_builder import StitchOptions, TerminalProgress
        from paramdex_builder import stitch as run
        from paramdex_builder.measure.classifier import read_labelled

        raise_again()
        texts = read_labelled(reviews, words=words, limit=limit)
        options["last"] = options["last"] or None
        table = run(pretrained, tuned, texts, StitchOptions(**options), TerminalProgress())
    print_and_plot(stitching(table), output, plot)
