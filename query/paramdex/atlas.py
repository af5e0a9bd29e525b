"""The atlas: one noun, whose methods are the verbs of the command line.

Each method reads k and where to look, and hands them to its verb.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paramdex.result import Result
from paramdex.store.nearest import Hit
from paramdex.store.scope import how_many
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.verbs.align import Alignment, align
from paramdex.verbs.check import check
from paramdex.verbs.diff import diff
from paramdex.verbs.directions import directions
from paramdex.verbs.find import find
from paramdex.verbs.heads import WordPairs, heads
from paramdex.verbs.info import Info, info
from paramdex.verbs.lens import lens
from paramdex.verbs.match import match
from paramdex.verbs.search import WordHit, search, search_hits
from paramdex.verbs.show import show
from paramdex.verbs.similar import similar, similar_hits
from paramdex_schemas.arguments import yes_or_no


def open(path: str | Path) -> Atlas:  # noqa: A001  # `paramdex.open` reads as `gzip.open` does
    """Open an atlas for reading. ``~`` at the beginning of a path is the home folder, here as everywhere.

    Raises AtlasError if the path is not an atlas, or the atlas is damaged or has another format.
    """
    return Atlas(path)


class Atlas(Store):
    """A database of what the weights of models say; see ``paramdex.open``.

    Threads that share an atlas wait for each other's look-ups. Give each thread a ``fork`` of its own and they do not.
    """

    def info(self) -> Info:
        """The models of the atlas, one row each, and how well their tables tell what their layers read (``readings``).
        Notes say for which models no neighbors and alignments are kept.
        """
        return info(self)

    def check(self) -> Result:
        """Compare every file and table with its checksum. Raises AtlasError for the first that differs."""
        return check(self)

    def sql(self, query: str, values: Sequence[Any] | dict[str, Any] | None = None) -> Result:
        """The rows of one SELECT over the atlas's tables; ``values`` fill ``?`` or ``$name``.

        Raises QueryError for SQL that fails or would write.
        """
        return Result(self.database.everything.query(query, values))

    def show(self, address: str, k: int = 10, *, distinct: bool = True, filter: TokenFilter | None = None) -> Result:
        """The k strongest tokens of a parameter on both sides, or the k strongest pairs of a head's matrices QK and VO
        (OV circuit). For a model alone, what the atlas says of it.

        They are the strongest by score or by ``token_z``, how unusual the score is for the token or for the two tokens
        of the pair: by the model's own ranking, or as ``filter.by`` says (see ``TokenFilter``). A line above the list
        says so where it is not score.

        ``distinct`` leaves out a head's pairs of a word with itself, ``filter`` what does not pass. ``rank`` counts all
        tokens or pairs of the ranking; the printed column # counts only those that are shown. Raises AddressError.
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
        """The parameters and heads that have some tokens among their strongest: k of each, those with the most first.
        ``tokens`` is a word or a sequence of words. An item with white space is several words if no vocabulary has it.

        ``kind`` is a kind of parameter, QK or VO. ``z`` says how many standard deviations the tokens (or the strongest
        pair) lie from the mean of all scores of the vector (or matrix), towards the side, averaged over the words.
        ``token_z`` says the same of the scores of the tokens over all vectors of the kind. With a ``filter`` only
        tokens and pairs that pass count.

        What counts, and ``rank``, is by each model's own ranking, or as ``filter.by`` says: of rows with equally many
        words those with the largest z come first where the ranking is by score, otherwise those with the largest
        token_z. So rows of models whose rankings differ stand in one list; a note names the models. Raises TokenError
        for a word that no vocabulary has.
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
        """The k parameters nearest to a set of words, exactly. ``words`` are read as in ``find``.

        ``similarity`` is the Pearson correlation (-1 to 1) of a parameter's V scores with the indicator of the words' m
        tokens. ``z`` is how many standard deviations those tokens lie above the mean of the scores, on average. Within
        one vocabulary both give the same order. Correlations in two vocabularies cannot be compared: they are
        z sqrt(m / (V - m)), which is larger where V is small. So parameters are in the order of z; but those whose
        vocabulary has the most of the words (``words``) come first, as in ``find``.

        ``side`` asks for the largest z (top), the most negative (bottom) or the largest in size (both). ``filter``
        chooses the tokens that describe the parameters, and by which ranking. Raises TokenError for a word that no
        vocabulary has.
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
        """What ``search`` finds, as hits without a description, and its notes."""
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
        """The k parameters nearest to one, by the Pearson correlation of their V scores; or the k heads nearest to one,
        by the cosine of their matrices QK and VO over all V x V pairs of tokens (``kind`` chooses one). Both are exact.

        They are of the same model unless ``model`` names another one or "all", and of the same kind unless ``kind``
        names another. Models of different vocabularies are compared on the tokens whose text both have; a note says how
        many. Correlations over different tokens are ranked together, but over few tokens they say less: those of
        unrelated scores spread around 0 by at least 1 / sqrt(n) for n tokens.

        ``side`` and ``filter`` are as in ``search``. Raises AddressError or QueryError.
        """
        return similar(self, address, how_many(k), model, kind, layer, side, filter)

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
        """What ``similar`` finds for a parameter, each a (similarity, param_id), and its notes."""
        return similar_hits(self, address, how_many(k), model, kind, layer, side)

    # Ten arguments: the vector is found by three (vector, row, name) and meant by one (reads), its neighbours are found
    # by as many as in search.
    def lens(
        self,
        vector: Any,
        model: str,
        k: int = 10,
        *,
        row: int | None = None,
        name: str | None = None,
        reads: str | None = None,
        kind: str | None = None,
        layer: int | None = None,
        side: str = "top",
        filter: TokenFilter | None = None,
    ) -> Result:
        """What a vector of a model's residual stream says (logit lens): its k strongest tokens on both sides, and the k
        parameters nearest to it by the Pearson correlation of their V scores. Both are exact.

        ``vector`` is an array or tensor of any library, a list of numbers or of arrays, or a .npy or .safetensors file
        (``name`` is the tensor's name). ``row`` chooses a row of a matrix. Without it every row of a matrix has one
        line, with five tokens per side and the nearest parameter, whatever k is. ``kind``, ``layer`` and ``side`` are
        for the parameters, as in ``search``. The vector's own tokens are the strongest by score, whatever ``filter.by``
        says of those that describe parameters.

        Without ``reads`` the vector is one that is written: a steering vector, a row of an SAE's decoder. ``reads``
        names the place where it reads, ``L3.attn`` or ``L3.ff``: a probe of what enters that attention or feed-forward,
        a row of an SAE's encoder. It is then scored as the parameters of that place are. The model must have been built
        with the reading expected, or effective: then no map is kept, and the gain of the norm before the place belongs
        in the vector.

        Raises QueryError for a vector that does not have the model's width, is zero or holds NaN, and for a place of
        which nothing is known; AddressError.
        """
        k, scope = how_many(k), self.scope(self.model(model).name, kind, layer)
        return lens(self, vector, scope, k, row, name, reads, side, filter)

    def directions(
        self, address: str, k: int = 8, *, matrix: str | None = None, filter: TokenFilter | None = None
    ) -> Result:
        """The first k singular directions of a head's matrices QK and VO over tokens (``matrix`` chooses one). Each has
        a set of tokens that the head reads (for QK, queries) and a set that it writes (for QK, keys).

        Tokens of the top sides belong together, and so do those of the bottom sides. ``share`` (0 to 1) is the part
        of a direction in the squared Frobenius norm of the matrix, whose rows and columns are centred. The tokens are
        the strongest by score alone.

        Raises AddressError or QueryError.
        """
        return directions(self, address, how_many(k), matrix, filter)

    def heads(
        self,
        pairs: WordPairs,
        k: int = 10,
        *,
        model: str | None = None,
        matrix: str = "VO",
        top: int = 10,
        side: str = "top",
    ) -> Result:
        """The k heads that do most what ``pairs`` do. Each head's matrix, VO (read → written) or QK (query → key), is
        scored on pairs of a source and a target word: a sequence, or a file with a tab between the two.

        ``score`` is the mean over the pairs; a word with several spellings counts with the mean over them. ``z`` is how
        many standard errors that is above the mean of all V^2 pairs of tokens (``vo_mean`` and ``vo_std`` of the table
        ``heads``), if the pairs were drawn at random: (score - mean) / (std / sqrt(n)). ``share`` (0 to 1) is the
        relation score of MAPS: the share of pairs whose target is among the ``top`` strongest of its source's row;
        ``share_bottom`` is the same for the most negative. With ``top`` 0 there are no shares. Notes name the pairs of
        unknown words.

        Raises QueryError, AddressError, and TokenError if no pair is known.
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
        """What training moved most: for each kind of neuron and each of the heads' matrices (or for ``kind`` alone) the
        k parameters or heads that lie farthest from the base's, with the tokens they moved toward and away from.

        The atlas must have been built with ``--base``. ``base`` and ``tuned`` are names in the atlas or the sources
        given to the build; the name of the displacement alone is enough. ``norm`` is that of the difference,
        ``relative`` its share of the base's own norm, if the atlas has the base. Raises QueryError or AddressError.
        """
        return diff(self, base, tuned, how_many(k), kind, layer, filter)

    def align(self, model_a: str, model_b: str, kind: str | None = None) -> Alignment:
        """How alike the layers of two models are: for every kind and pair of layers the mean |Pearson correlation| (0
        to 1) over all pairs of their vectors, the one-to-one matching of layers that maximizes its sum, and how
        diagonal the scores are.

        The same is given for the raw weights if the models have the same width, nearly the same vocabulary and
        embeddings of full rank. Raises AddressError for an unknown model, QueryError for a kind that has no weights.
        """
        return align(self, self.scope_of_two("align", model_a, model_b, kind))

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
        """The counterpart of each parameter of a kind in another model: the nearest one, whether each is the other's
        nearest, and a one-to-one partner within two layers. Either model may be narrowed to one of its layers.

        Partners are matched in the layers given, or else in those that align. Kinds that are not weights do not align,
        so they have partners only in the layers given. The result has all rows; the k most similar are printed.

        ``side`` both counts a large negative correlation as near. ``filter`` chooses the tokens that describe them, and
        by which ranking.
        Raises AddressError or QueryError.
        """
        k, (a, b) = how_many(k), self.scope_of_two("match", model_a, model_b, kind).models
        return match(self, (self.scope(a.name, kind, layer_a), self.scope(b.name, kind, layer_b)), k, side, filter)
