"""The commands that ask an atlas: one per verb, with the verb's own arguments as options."""

from __future__ import annotations

from typing import Any

import click

from paramdex.cli.options import (
    ATLAS,
    FORMAT,
    KIND,
    KIND_OR_MATRIX,
    LAYER,
    MODEL,
    SIDE,
    FilePath,
    K,
    LayerNumber,
    Whole,
    filtered,
    open_atlas,
    picture,
    print_and_plot,
    print_result,
)
from paramdex_schemas import QueryError


@click.command()
@ATLAS
@FORMAT
def info(atlas: str, output: str) -> None:
    """The models of an atlas.

    \b
    paramdex info demo.atlas
    """
    print_result(open_atlas(atlas).info(), output)


@click.command()
@ATLAS
@click.argument("address")
@K
@click.option("--same-word", is_flag=True, help="for a head: also show pairs of a word with itself")
@filtered(pairs=True)
@picture("a parameter's tokens")
@FORMAT
def show(atlas: str, address: str, k: int, same_word: bool, filter: Any, plot: str | None, output: str) -> None:
    """The strongest tokens of a parameter, or token pairs of a head: top and bottom.

    With a model's name alone, prints what the atlas knows about it.

    \b
    paramdex show demo.atlas tiny-a/L3/ff_value/17
    paramdex show demo.atlas tiny-a/L2/H1 --same-word
    paramdex show demo.atlas minilm/L3/ff_value/17 --ascii --alnum --word-starts --no-undertrained
    paramdex show demo.atlas tiny-a
    """
    found = open_atlas(atlas).show(address, k, distinct=not same_word, filter=filter)
    if plot is not None and not hasattr(found, "plot"):
        raise QueryError(f"--plot draws the tokens of a parameter; {address} is not one")
    print_and_plot(found, output, plot)


@click.command()
@ATLAS
@click.argument("tokens", nargs=-1, required=True)
@K
@MODEL
@KIND_OR_MATRIX
@LAYER
@filtered(pairs=True)
@FORMAT
def find(atlas: str, tokens: tuple[str, ...], k: int, output: str, **where: Any) -> None:
    """Parameters and heads that have these tokens among their strongest.

    A plain word finds all its spellings. A word with a marker of its own (" Canada", Ġcanada, ##ing) finds only that
    token. An argument with several words is read as several, unless a vocabulary has it as one token.

    \b
    paramdex find demo.atlas soup bread wine
    paramdex find demo.atlas french --kind VO --in minilm
    """
    print_result(open_atlas(atlas).find(tokens, k, **where), output)


@click.command()
@ATLAS
@click.argument("words", nargs=-1, required=True)
@K
@MODEL
@KIND
@LAYER
@SIDE
@filtered()
@FORMAT
def search(atlas: str, words: tuple[str, ...], k: int, output: str, **where: Any) -> None:
    """The parameters nearest to a set of words, over the whole vocabulary.

    They are ranked by z: how many standard deviations the scores of the words' tokens lie from the mean of all scores,
    on average. Within one vocabulary that is the order of the correlations.

    \b
    paramdex search demo.atlas "canada ottawa toronto"
    paramdex search demo.atlas "crime murder" --kind ff_value --side both
    """
    print_result(open_atlas(atlas).search(words, k, **where), output)


@click.command()
@ATLAS
@click.argument("address")
@K
@click.option("--in", "--model", "model", metavar="MODEL", help='in this model, or in "all"  [default: its own]')
@click.option("--kind", help="this kind  [default: its own]; for a head, QK or VO  [default: both]")
@LAYER
@SIDE
@filtered(pairs=True)
@FORMAT
def similar(atlas: str, address: str, k: int, output: str, **where: Any) -> None:
    """The parameters or heads nearest to a given one, in its own or another model.

    Parameters are compared by the correlation of their scores over the whole vocabulary, heads by the cosine of their
    matrices QK and VO (the OV circuit) over all pairs of tokens.

    \b
    paramdex similar demo.atlas tiny-a/L3/ff_value/17
    paramdex similar demo.atlas tiny-a/L3/ff_value/17 --in tiny-wide
    paramdex similar demo.atlas tiny-a/L2/H1 --in all --kind VO
    """
    print_result(open_atlas(atlas).similar(address, k, **where), output)


@click.command()
@ATLAS
@click.argument("vectors", metavar="FILE", type=FilePath())
@click.option("--model", "--in", "model", required=True, help="the model whose residual stream the vector belongs to")
@click.option("--row", type=click.IntRange(0), help="take this row of a matrix, counted from 0")
@click.option("--name", help="take this tensor of a .safetensors file")
@click.option("--reads", metavar="PLACE", help="it reads here: L3.attn or L3.ff, say  [default: it is written]")
@K
@KIND
@LAYER
@SIDE
@filtered()
@FORMAT
def lens(atlas: str, vectors: str, model: str, k: int, output: str, **which: Any) -> None:
    """What a vector of your own says: its strongest tokens (the logit lens), and the parameters nearest to it.

    FILE is a .npy or .safetensors file with a vector of the model's residual stream, or a matrix with one per row: a
    steering vector, a probe, the decoder of a sparse autoencoder. A vector that reads, a probe or a row of an encoder,
    is scored as what reads at its place is: give that with --reads.

    \b
    paramdex lens demo.atlas steering.npy --model minilm
    paramdex lens demo.atlas probe.npy --model tiny-a --reads L2.ff
    paramdex lens demo.atlas sae.safetensors --name W_dec --row 1234 --model tiny-a --no-undertrained
    """
    print_result(open_atlas(atlas).lens(vectors, model, k, **which), output)


@click.command()
@ATLAS
@click.argument("address")
@click.option(
    "-k", "--k", "k", type=Whole(1, 10_000), default=4, show_default=True, help="how many directions per matrix"
)
@click.option("--matrix", type=click.Choice(["QK", "VO"]), help="only this matrix")
@filtered(ranked=False)
@FORMAT
def directions(atlas: str, address: str, k: int, matrix: str | None, filter: Any, output: str) -> None:
    """What a head reads, and what it writes in response: the singular directions of its matrices.

    \b
    paramdex directions demo.atlas minilm/L5/H10
    paramdex directions demo.atlas tiny-a/L3/H1 --matrix QK -k 2
    """
    print_result(open_atlas(atlas).directions(address, k, matrix=matrix, filter=filter), output)


@click.command()
@ATLAS
@click.option(
    "--pairs", required=True, type=FilePath(), help="a file of word pairs, one per line: SOURCE, a tab, TARGET"
)
@K
@MODEL
@click.option(
    "--matrix",
    type=click.Choice(["VO", "QK"]),
    default="VO",
    show_default=True,
    help="VO: read → written (the OV circuit); QK: query → key",
)
@click.option(
    "--top",
    type=click.IntRange(0, 10_000),
    default=10,
    show_default=True,
    help="share: how often a target is among this many strongest tokens of its source; 0 skips it, which is faster",
)
@click.option(
    "--side",
    type=click.Choice(["top", "bottom", "both"]),
    default="top",
    show_default=True,
    help="the largest z (top), the most negative (bottom) or the largest in size (both)",
)
@FORMAT
def heads(atlas: str, pairs: str, k: int, output: str, **which: Any) -> None:
    """Which heads relate words as your pairs do: a country and its capital, a verb and its past tense.

    \b
    paramdex heads demo.atlas --pairs countries.tsv
    paramdex heads demo.atlas --pairs countries.tsv --in minilm --matrix QK --side both
    """
    print_result(open_atlas(atlas).heads(pairs, k, **which), output)


@click.command()
@ATLAS
@click.argument("model_a")
@click.argument("model_b")
@KIND
@picture("heat maps")
@click.option("--summary", is_flag=True, help="with json and csv: one row per kind, not per pair of layers")
@FORMAT
def align(
    atlas: str, model_a: str, model_b: str, kind: str | None, plot: str | None, summary: bool, output: str
) -> None:
    """Which layers of two models do the same: mean |correlation| of their parameters, the best matching, and how
    diagonal it is.

    \b
    paramdex align demo.atlas tiny-a tiny-b
    paramdex align demo.atlas tiny-a tiny-wide --plot heat.png
    paramdex align demo.atlas tiny-a tiny-wide --summary --format json
    """
    result = open_atlas(atlas).align(model_a, model_b, kind)
    print_and_plot(result, output, plot, result.summary if summary else None)


@click.command()
@ATLAS
@click.argument("model_a")
@click.argument("model_b")
@click.option("--kind", default="ff_value", show_default=True, help="this kind: ff_key, ff_value, ...")
@click.option("--layer-a", type=LayerNumber(0), metavar="N", help="only this layer of the first model")
@click.option("--layer-b", type=LayerNumber(0), metavar="N", help="only this layer of the second model")
@K
@click.option(
    "--side",
    type=click.Choice(["top", "both"]),
    default="top",
    show_default=True,
    help="both: large negative correlations count as near, too",
)
@filtered()
@FORMAT
def match(atlas: str, model_a: str, model_b: str, kind: str, k: int, output: str, **which: Any) -> None:
    """The counterpart in another model of each parameter of one: the nearest, and a one-to-one partner.

    Also says whether each is the other's nearest (mutual). Prints the most similar; json and csv give all.

    \b
    paramdex match demo.atlas tiny-a tiny-b
    paramdex match demo.atlas tiny-a tiny-wide --kind ff_key --layer-a 3 --layer-b 3 --format csv
    """
    print_result(open_atlas(atlas).match(model_a, model_b, kind, k, **which), output)


@click.command()
@ATLAS
@click.argument("base")
@click.argument("tuned", required=False)
@K
@KIND_OR_MATRIX
@LAYER
@filtered(pairs=True)
@picture("what moved most")
@FORMAT
def diff(atlas: str, base: str, tuned: str | None, k: int, plot: str | None, output: str, **which: Any) -> None:
    """What training moved most: neurons and heads, with the tokens they moved toward and away from.

    BASE and TUNED are names in the atlas, or the sources that were given to a build with --base. The name of the model
    that such a build made is enough by itself.

    \b
    paramdex diff bert.atlas ./bert ./bert-imdb
    paramdex diff bert.atlas moved --kind ff_value --layer 4
    """
    print_and_plot(open_atlas(atlas).diff(base, tuned, k, **which), output, plot)


@click.command()
@ATLAS
@click.argument("query")
@FORMAT
def sql(atlas: str, query: str, output: str) -> None:
    """The rows of one SELECT over the atlas's tables (README lists them).

    \b
    paramdex sql demo.atlas "SELECT * FROM heads ORDER BY vo_norm DESC LIMIT 5"
    paramdex sql demo.atlas "DESCRIBE parameter_tokens"
    """
    print_result(open_atlas(atlas).sql(query), output)


@click.command()
@ATLAS
@FORMAT
def check(atlas: str, output: str) -> None:
    """Read a whole atlas and compare it with its checksums.

    \b
    paramdex check demo.atlas
    """
    print_result(open_atlas(atlas).check(), output)
