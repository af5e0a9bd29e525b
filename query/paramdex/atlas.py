"""The atlas: one noun, whose methods are the verbs of the command line."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from paramdex.result import Result, visible
from paramdex.store.database import Database
from paramdex.store.filters import Sieve, TokenFilter
from paramdex.store.nearest import Hit
from paramdex.store.nearest import signs_of as _signs
from paramdex.store.related import unrelated
from paramdex.store.vectors import Vectors
from paramdex.store.words import Wanted, resolve, separated, words_of
from paramdex.verbs.align import Alignment, align
from paramdex.verbs.diff import diff
from paramdex.verbs.directions import directions
from paramdex.verbs.find import find
from paramdex.verbs.heads import Pairs, heads
from paramdex.verbs.hits import WordHit, hits_of_parameter, hits_of_words, listed, listed_by_words
from paramdex.verbs.lens import lens
from paramdex.verbs.match import match
from paramdex.verbs.show import show_head, show_parameter
from paramdex.verbs.similar_heads import similar_heads
from paramdex_schemas import KINDS, Address, AddressError, AtlasError, QueryError
from paramdex_schemas.arguments import given_path, yes_or_no
from paramdex_schemas.checks import check_text, suggest, whole_number
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import Model, read_models

_MOST = 2**31 - 1
"""What a larger k is taken for."""


def open(path: str | Path) -> Atlas:  # noqa: A001  # `paramdex.open` reads as `gzip.open` does
    """Open an atlas for reading; ``~`` at the beginning of a path, here as everywhere, is the home folder.

    Raises AtlasError where it is none, is damaged or is of a newer format.
    """
    return Atlas(path)


class Atlas:
    """A database of what the weights of models say; see ``paramdex.open``.

    Threads that share an atlas wait for each other's look-ups; with a ``fork`` each they do not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = given_path(path, "an atlas", AtlasError)
        self._database = Database(self.path)
        self.models = {model.name: model for model in read_models(self._database.rows)}

    def __repr__(self) -> str:
        return f"<Atlas {self.path}: {', '.join(self.models)}>"

    def close(self) -> None:
        """Close the database: what other threads ask it is stopped, and what asks it from then on raises AtlasError."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fork(self) -> Atlas:
        """The same open atlas for another thread, with a connection of its own; vectors, once read, are shared.

        Closing it leaves the others open; ``close`` of the atlas that was opened closes all. Raises AtlasError where
        that was closed.
        """
        _ = self.vectors  # made before the copy, so that there is one
        twin = copy.copy(self)
        twin._database = self._database.fork()  # noqa: SLF001  # of this class
        return twin

    @property
    def database(self) -> Database:
        """Where the verbs look things up, for queries on the physical tables."""
        return self._database

    @cached_property
    def vectors(self) -> Vectors:
        """What the atlas keeps in files, for products of one's own."""
        database = self._database.fork()  # which waits for no look-up of another thread
        files = database.rows("SELECT path, bytes, sha256 FROM store.files ORDER BY path")
        return Vectors(self.path, {path: (size, digest) for path, size, digest in files})

    def owner(self, param_id: int) -> Model:
        """The model of a parameter. Raises QueryError where there is none."""
        number = whole_number("the number of a parameter", param_id, 0)
        found = next((one for one in self.models.values() if one.span[0] <= number < one.span[1]), None)
        if found is None:
            raise QueryError(f"there is no parameter of the number {quoted(number)}")
        return found

    # ---- the verbs

    def info(self) -> Result:
        """The models of the atlas, one row each; a note says of which no neighbors and alignments are kept."""
        table = self._database.named("info")
        few = table.select(
            ["model", "family", "layers", "width", "heads", "neurons", "tokens", "parameters", "matrices"]
        )
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        models = f"{len(table)} model" + ("" if len(table) == 1 else "s")
        notes = unrelated(self._database, list(self.models.values()))
        return Result(table, f"{self.path}: {models}, {size / 2**20:.0f} MiB", notes, few)

    def check(self) -> Result:
        """Read every file and table and compare them with their checksums. Raises AtlasError where one differs."""
        rows = []
        for (name,) in self._database.rows(
            "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'store' ORDER BY table_name"
        ):
            ((count, _),) = self._database.rows(f"SELECT count(*), bit_xor(hash(t)) FROM store.{name} AS t")
            rows.append({"what": f"table {name}", "rows": count})
        n_files = self.vectors.check_all()
        return Result(
            pa.Table.from_pylist(rows), notes=[f"{n_files} files beside the database are as they were written"]
        )

    def sql(self, query: str, values: Sequence[Any] | dict[str, Any] | None = None) -> Result:
        """The rows of one SELECT over the atlas's tables; ``values`` fill ``?`` or ``$name``.

        Raises QueryError for SQL that fails or would write.
        """
        return Result(self._database.user_query(query, values))

    def show(self, address: str, k: int = 10, *, distinct: bool = True, filter: TokenFilter | None = None) -> Result:
        """The k strongest tokens of a parameter, both sides; of a head the k strongest pairs of QK and VO.

        ``distinct`` leaves out a head's pairs of one word with itself, ``filter`` what it does not let pass; ``rank``
        counts all, what is printed beside it as # only what is shown. Of a model alone what the atlas says of it.
        Raises AddressError.
        """
        where = self.address(address)
        k, distinct = _how_many(k), yes_or_no("distinct", distinct)
        model = self.models[where.model]
        if where.is_parameter:
            return show_parameter(self, model, where, k, Sieve(self._database, filter))
        if where.is_head:
            return show_head(self, model, where, k, Sieve(self._database, filter), distinct=distinct)
        if where != Address(where.model):
            what = "an expert" if where.expert is not None else "a layer" if where.layer is not None else "a stack"
            example = model.layout.example(where)
            head = Address(where.model, example.layer, 0, stack=example.stack)
            examples = str(example) if where.expert is not None else f"{example} or {head}"
            raise AddressError(f"{where} is {what}; show takes a parameter or a head, {examples}, say")
        table = self._database.named("info")
        row = table.slice(table["model"].to_pylist().index(model.name), 1)
        pairs = {"property": row.column_names, "value": [_text(value) for value in row.to_pylist()[0].values()]}
        return Result(row, shown=pa.table(pairs))

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
        k, layer = _how_many(k), _layer(layer)
        chosen = self._with_layer(self._choose(model), layer)
        self._check_kind(kind, chosen, layer, matrices=True)
        wanted, notes = self._resolve(chosen, tokens)
        return find(self._database, wanted, chosen, notes, k, kind, layer, filter)

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
        hits, notes = self.search_hits(words, k, model=model, kind=kind, layer=layer, side=side)
        return listed_by_words(self, hits, notes, filter)

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
        k, layer = _how_many(k), _layer(layer)
        chosen = self._with_layer(self._choose(model), layer)
        self._check_kind(kind, chosen, layer)
        wanted, notes = self._resolve(chosen, words)
        if len({item.known for item in wanted}) > 1:
            notes = [*notes, "parameters of models that have more of the words come first"]
        return hits_of_words(self, wanted, chosen, k, kind, layer, side), notes

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
        where = self.address(address)
        layer = _layer(layer)
        if where.is_head:
            k = _how_many(k)
            chosen = self._beside(where, model, layer)
            return similar_heads(self, where, k, chosen, kind, layer, _signs(side), filter, strict=model != "all")
        hits, notes = self.similar_hits(address, k, model=model, kind=kind, layer=layer, side=side)
        own_id = self.models[where.model].param_id(where)
        return listed(self, hits, f"nearest to {where}", notes, filter, of=own_id)

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
        where = self.address(address)
        k, layer = _how_many(k), _layer(layer)
        if where.kind is None:
            example = self.models[where.model].layout.example(where)
            raise AddressError(f"similar takes the address of a parameter or a head, {example}, say, not {where}")
        chosen = self._beside(where, model, layer)
        kind = where.kind if kind is None else kind
        self._check_kind(kind, chosen, layer)
        return hits_of_parameter(self, where, chosen, k, kind, layer, side, strict=model != "all")

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
        k, layer = _how_many(k), _layer(layer)
        (chosen,) = self._with_layer([self._model(model)], layer)
        self._check_kind(kind, [chosen], layer)
        return lens(self, vector, chosen, k, row, name, kind, layer, side, filter)

    def directions(
        self, address: str, k: int = 8, *, matrix: str | None = None, filter: TokenFilter | None = None
    ) -> Result:
        """The first k singular directions of a head's matrices over tokens, QK and VO or one: each a set of tokens that
        it reads (or that ask, of QK) and a set that it writes (or that answer).

        Tokens of the top sides go together, and those of the bottom sides. ``share`` is a direction's part of the
        squared Frobenius norm of the matrix, whose rows and columns are centred. Raises AddressError.
        """
        k = _how_many(k)
        return directions(self, self.address(address), k, matrix, filter)

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
        k = _how_many(k)
        top = min(whole_number("top", top, 0), _MOST)
        return heads(self, pairs, self._choose(model), model is not None, matrix, k, top, side)

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
        k, layer = _how_many(k), _layer(layer)
        return diff(self, base, tuned, k, kind, layer, filter)

    def align(self, model_a: str, model_b: str, kind: str | None = None) -> Alignment:
        """How alike the layers of two models are: for every kind and pair of layers the mean |Pearson correlation| over
        all pairs of their vectors, the one-to-one matching of layers that maximizes its sum, and how diagonal it is.

        Beside it the same on the raw weights, for models of one width, and of one vocabulary or nearly the same, whose
        embeddings have full rank.
        Raises AddressError for an unknown model.
        """
        return align(self, self._model(model_a), self._model(model_b), kind)

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
        k, layers = _how_many(k), (_layer(layer_a), _layer(layer_b))
        a, b = self._model(model_a), self._model(model_b)
        return match(self, a, b, kind, layers, k, signed=_one_or_both(side), filter=filter)

    # ---- what they are made of

    def address(self, text: str | Address) -> Address:
        """Read an address and check that the atlas has it. Raises AddressError, naming the nearest there are."""
        where = Address.parse(text)
        self._model(where.model).layout.check(where)
        return where

    def _model(self, name: str) -> Model:
        name = check_text(name, AddressError(f"a model's name is text, not {quoted(name)}"))
        if name not in self.models:
            raise AddressError(f"{self.path} has no model {quoted(name)}; {suggest(name, self.models)}")
        return self.models[name]

    def _choose(self, name: str | None) -> list[Model]:
        return list(self.models.values()) if name is None else [self._model(name)]

    def _check_kind(
        self, kind: str | None, models: list[Model], layer: int | None = None, *, matrices: bool = False
    ) -> None:
        """Raises QueryError where no model has such a kind, or a layer is asked for that it cannot have."""
        if kind is not None:
            check_text(kind, QueryError(f"kind is text, not {quoted(kind)}"))
        known = [each for each in KINDS if any(each in model.layout.kinds for model in models)]
        known += ["QK", "VO"] if matrices else []
        if kind is not None and kind not in known:
            where = f"{models[0].name} has no parameters of" if len(models) == 1 else "there is no"
            raise QueryError(f"{where} kind {quoted(kind)}; {suggest(kind, known)}")
        if kind in KINDS and KINDS[kind].owner == "model" and layer is not None:
            raise QueryError(f"{kind} belongs to no layer; ask without layer {layer}")

    def _beside(self, where: Address, model: str | None, layer: int | None) -> list[Model]:
        """The models in which to look for what is like a thing: its own, another one, or "all"."""
        every = isinstance(model, str) and model == "all"
        models = [self.models[where.model]] if model is None else self._choose(None if every else model)
        return self._with_layer(models, layer)

    def _with_layer(self, models: list[Model], layer: int | None) -> list[Model]:
        """The models that have this layer. Raises AddressError where none has."""
        if layer is None:
            return models
        found = [model for model in models if 0 <= layer < model.layout.n_layers()]
        if not found:
            most = max(models, key=lambda model: model.layout.n_layers())
            last = most.layout.n_layers() - 1
            raise AddressError(f"there is no layer {quoted(layer)}; {most.name} has layers L0 to L{last}")
        return found

    def _resolve(self, models: list[Model], given: object) -> tuple[list[Wanted], list[str]]:
        """The items of the models' vocabularies that are asked for, and what a reader has to know of them."""
        vocabularies = list(dict.fromkeys(model.vocabulary for model in models))
        read = separated(self._database, vocabularies, words_of(given))
        wanted = resolve(self._database, vocabularies, [word for words in read.values() for word in words])
        split = [item for item, words in read.items() if len(words) > 1] if len(read) > 1 else []
        notes = [f"{quoted(item)} is no word here; read as {', '.join(map(visible, read[item]))}" for item in split]
        return wanted, [*notes, *self._missing(wanted, models)]

    def _missing(self, wanted: list[Wanted], models: list[Model]) -> list[str]:
        notes = []
        for item in wanted:
            if item.missing:
                names = ", ".join(model.name for model in models if model.vocabulary == item.vocabulary)
                notes.append(f"the vocabulary of {names} has no {', '.join(map(visible, item.missing))}")
        silent = [m.name for m in models if all(m.vocabulary != item.vocabulary for item in wanted)]
        if silent:
            notes.append(f"the vocabulary of {', '.join(silent)} has none of these words")
        return notes


def _one_or_both(side: str) -> bool:
    """Whether only large correlations count, not their size. Raises QueryError for a side that is neither."""
    if not isinstance(side, str) or side not in ("top", "both"):
        raise QueryError(f"side is one of top, both, not {quoted(side)}")
    return side == "top"


def _how_many(k: Any) -> int:
    """k, as a number that all libraries take. Raises QueryError for no whole number, and for less than 1."""
    return min(whole_number("k", k, 1), _MOST)


def _layer(number: Any) -> int | None:
    """The number of a layer, which there may not be, or None. Raises QueryError for no whole number."""
    return None if number is None else whole_number("layer", number, -sys.maxsize)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
