"""The atlas: one noun, whose methods are the verbs of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paramdex.result import Result
from paramdex.store.filters import TokenFilter
from paramdex.store.nearest import Hit
from paramdex.store.scope import how_many, layer_number
from paramdex.store.store import Store
from paramdex.verbs.align import Alignment, align
from paramdex.verbs.check import check
from paramdex.verbs.diff import diff
from paramdex.verbs.directions import directions
from paramdex.verbs.find import find
from paramdex.verbs.heads import Pairs, heads
from paramdex.verbs.info import info
from paramdex.verbs.lens import lens
from paramdex.verbs.match import match
from paramdex.verbs.search import WordHit, search, search_hits
from paramdex.verbs.show import show
from paramdex.verbs.similar import similar, similar_hits
from paramdex_schemas.arguments import yes_or_no


def open(path: str | Path) -> Atlas:  # noqa: A001  # `paramdex.open` reads as `gzip.open` does
    """Open an atlas for reading; ``~`` at the beginning of a path, here as everywhere, is the home folder.

    Raises AtlasError where it is none, is damaged or is of a newer format.
    """
    return Atlas(path)


class Atlas(Store):
    """A database of what the weights of models say; see ``paramdex.open``.

    Threads that share an atlas wait for each other's look-ups; with a ``fork`` each they do not.
    """

    def info(self) -> Result:
        """The models of the atlas, one row each; a note says of which no neighbors and alignments are kept."""
        return info(self)

    def check(self) -> Result:
        """Read every file and table and compare them with their checksums. Raises AtlasError where one differs."""
        return check(self)

    def sql(self, query: str, values: Sequence[Any] | dict[str, Any] | None = None) -> Result:
        """The rows of one SELECT over the atlas's tables; ``values`` fill ``?`` or ``$name``.

        Raises QueryError for SQL that fails or would write.
        """
        return Result(self.database.user_query(query, values))

    def show(self, address: str, k: int = 10, *, distinct: bool = True, filter: TokenFilter | None = None) -> Result:
        """The k strongest tokens of a parameter, both sides; of a head the k strongest pairs of QK and VO.

        ``distinct`` leaves out a head's pairs of one word with itself, ``filter`` what it does not let pass; ``rank``
        counts all, what is printed beside it as # only what is shown. Of a model alone what the atlas says of it.
        Raises AddressError.
        """
        return show(self, address, how_many(k), filter, distinct=yes_or_no("distinct", distinct))

    def find(
        self,
        tokens: str | Iterable[str],
        k: int = 10,
        *,
        model: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        filter: TokenFilter | None = None,
    ) -> Result:
        """Parameters and heads that have these tokens among their strongest: k of each, those with most of them first.
        ``tokens`` are words, or one; what has white space inside and is no word of any vocabulary is split there.

        ``kind`` is a parameter kind, QK or VO. ``z`` is how many standard deviations of all the vector's (or
        matrix's) scores the tokens (or the strongest pair) lie from their mean towards the side, averaged over the
        words. With a ``filter`` only tokens and pairs that pass count. Raises TokenError for a word that no vocabulary
        has.
        """
        return find(self, tokens, how_many(k), self.scope(model, kind, layer, matrices=True), filter)

    def search(
        self,
        words: str | Iterable[str],
        k: int = 10,
        *,
        model: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
        filter: TokenFilter | None = None,
    ) -> Result:
        """The k parameters nearest to a set of words, exactly. ``words`` are read as those of ``find``.

        ``similarity`` is the Pearson correlation of a parameter's V scores with the indicator of the words' m tokens,
        ``z`` how many standard deviations those lie above the mean of the scores, on average. In one vocabulary both
        have the same order. Correlations of two do not compare: they are z sqrt(m / (V - m)), larger where V is small.
        So parameters are in the order of z, but first those whose vocabulary has most of the words (``words``), as in
        ``find``: the z of one word alone is no answer to three.

        ``side`` asks for the largest z (top), the most negative (bottom) or the largest in size (both). ``filter`` says
        by which tokens parameters are described. Raises TokenError for a word that no vocabulary has.
        """
        return search(self, words, how_many(k), self.scope(model, kind, layer), side, filter)

    def search_hits(
        self,
        words: str | Iterable[str],
        k: int = 10,
        *,
        model: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
    ) -> tuple[list[WordHit], list[str]]:
        """What ``search`` finds, and its notes."""
        return search_hits(self, words, how_many(k), self.scope(model, kind, layer), side)

    def similar(
        self,
        address: str,
        k: int = 10,
        *,
        model: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
        filter: TokenFilter | None = None,
    ) -> Result:
        """The k parameters nearest to one, by the Pearson correlation of their V scores, or the k heads nearest to one,
        by the cosine of their matrices QK and VO (``kind`` for one of them) over all V x V pairs of tokens; exactly.

        In the same model unless ``model`` names another (or "all"), of the same kind unless ``kind`` names another.
        Between models of different vocabularies, scores are compared on the tokens whose text both have: how many is
        said. Correlations over different tokens stand in one order, but one over few says less: those of unrelated
        scores spread around 0 by 1 / sqrt(n) for n tokens, or more.
        ``side`` and ``filter`` as in search. Raises AddressError.
        """
        return similar(self, address, k, model, kind, layer, side, filter)

    def similar_hits(
        self,
        address: str,
        k: int = 10,
        *,
        model: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
    ) -> tuple[list[Hit], list[str]]:
        """What ``similar`` finds of a parameter, each a (similarity, param_id), and its notes."""
        return similar_hits(self, address, k, model, kind, layer, side)

    def lens(
        self,
        vector: Any,
        model: str,
        k: int = 10,
        *,
        row: int | None = None,
        name: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
        filter: TokenFilter | None = None,
    ) -> Result:
        """What a vector of a model's residual stream says: its k strongest tokens, both sides, and the k parameters
        nearest to it by the Pearson correlation of their V scores. Both are exact.

        ``vector`` is an array of any library, a tensor with a gradient or of bfloat16 too, a list of numbers or of
        arrays, or a .npy or .safetensors file (``name`` is the tensor's); of a matrix ``row`` chooses a
        row, and without one each has a line: five tokens a side and the nearest parameter, whatever k is. ``kind``,
        ``layer`` and ``side`` are of the parameters, as in search.
        Raises QueryError for what is no vector of the model's width, is zero, or holds NaN; AddressError.
        """
        k, scope = how_many(k), self.scope(self.model(model).name, kind, layer)
        return lens(self, vector, scope, k, row, name, side, filter)

    def directions(
        self, address: str, k: int = 8, *, matrix: str | None = None, filter: TokenFilter | None = None
    ) -> Result:
        """The first k singular directions of a head's matrices over tokens, QK and VO or one: each a set of tokens that
        it reads (or that ask, of QK) and a set that it writes (or that answer).

        Tokens of the top sides go together, and those of the bottom sides. ``share`` is a direction's part of the
        squared Frobenius norm of the matrix, whose rows and columns are centred. Raises AddressError.
        """
        return directions(self, address, how_many(k), matrix, filter)

    def heads(
        self,
        pairs: Pairs,
        k: int = 10,
        *,
        model: str | None = None,
        matrix: str = "VO",
        top: int = 10,
        side: str = "top",
    ) -> Result:
        """The k heads that most do what ``pairs`` do: each head's matrix, VO (read → written) or QK (query → key), is
        scored on pairs of a source and a target word, a file with a tab between them or a sequence.

        ``score`` is the mean over the pairs, of a word with several spellings over those. ``z`` is how many standard
        errors that is above the mean of all V^2 token pairs (``vo_mean`` and ``vo_std`` of the table ``heads``), were
        the pairs drawn at random and independently: (score - mean) / (std / sqrt(n)). ``share`` is the relation score
        of MAPS, the share of pairs whose target is among the ``top`` strongest of its source's row (0 leaves it out),
        ``share_bottom`` among the most negative. Pairs of unknown words are named in a note.
        Raises QueryError, AddressError, and TokenError where no pair is known.
        """
        return heads(self, pairs, self.scope(model), matrix, how_many(k), top, side)

    def diff(
        self,
        base: str,
        tuned: str | None = None,
        k: int = 10,
        *,
        kind: str | None = None,
        layer: int | None = None,
        filter: TokenFilter | None = None,
    ) -> Result:
        """What training moved most: of each kind of neuron and each of the heads' matrices (or of ``kind`` alone) the k
        parameters whose tuned vector lies farthest from the base's, with the tokens they moved toward and away from.

        The atlas must have been built with ``--base``. ``base`` and ``tuned`` are names in the atlas or the sources
        given at the build; the displacement's own name alone does as well. ``norm`` is that of the difference,
        ``relative`` in parts of the base's own where the atlas has the base. Raises QueryError or AddressError.
        """
        return diff(self, base, tuned, how_many(k), kind, layer, filter)

    def align(self, model_a: str, model_b: str, kind: str | None = None) -> Alignment:
        """How alike the layers of two models are: for every kind and pair of layers the mean |Pearson correlation| over
        all pairs of their vectors, the one-to-one matching of layers that maximizes its sum, and how diagonal it is.

        Beside it the same on the raw weights, for models of one width, and of one vocabulary or nearly the same, whose
        embeddings have full rank.
        Raises AddressError for an unknown model.
        """
        return align(self, model_a, model_b, kind)

    def match(
        self,
        model_a: str,
        model_b: str,
        kind: str,
        k: int = 10,
        *,
        layer_a: int | None = None,
        layer_b: int | None = None,
        side: str = "top",
        filter: TokenFilter | None = None,
    ) -> Result:
        """For each parameter of a kind of one model (or of one of its layers) its counterpart in another (or in a layer
        of it): the nearest one, whether each is the other's nearest, and a one-to-one partner within a pair of layers.

        The layers are those given, or those that align; of a kind that is no weight, by which none are aligned, only
        those given. All rows are in the result, the k most similar are printed.
        ``side`` both counts a large negative correlation as near; ``filter`` says by which tokens they are described.
        Raises AddressError or QueryError.
        """
        k, layers = how_many(k), (layer_number(layer_a), layer_number(layer_b))
        return match(self, (model_a, model_b), kind, layers, k, side, filter)
