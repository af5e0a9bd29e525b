"""The shapes of all answers: what the JSON addresses give, and what the templates are filled with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from paramdex.web.cards.choices import PairChoice, TokenChoice

Side = Literal["top", "bottom"]


class Shape(BaseModel):
    model_config = ConfigDict(frozen=True)


class Fault(Shape):
    """What was wrong and what there is instead."""

    status: int
    kind: Literal["address", "token", "query", "request", "busy", "atlas", "server"]
    message: str
    nearest: list[str] = []
    """Addresses or words that there are, nearest first."""


class Problem(Shape):
    """The one shape of all errors."""

    error: Fault


class Token(Shape):
    """A vocabulary item; ``text`` is how it reads, ``token`` how the tokenizer has it."""

    token_id: int
    token: str
    text: str


class Scored(Token):
    """A token with its raw score, and how many standard deviations of all scores that lies from their mean."""

    score: float
    z: float | None


class ModelSummary(Shape):
    """A model as the home page shows it."""

    model: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    neurons: int | None
    experts: int | None
    stacks: list[str] | None
    tokens: int
    parameters: int
    matrices: int
    embedding: str
    tied: bool
    fold_norm: bool
    rotary_left_out: bool
    dtype: str
    vocabulary: str
    source: str
    revision: str | None
    weights_sha256: str
    built_at: str
    builder_version: str


class Home(Shape):
    """The atlas: its models."""

    atlas: str
    megabytes: float
    models: list[ModelSummary]


class Cell(Shape):
    address: str
    value: float
    count: int = 1
    """How many neurons the cell stands for; the address is that of the one with the largest value."""


class GridRow(Shape):
    place: str
    address: str
    cells: list[Cell]


class Grid(Shape):
    """Layers x heads, or layers x neurons."""

    of: Literal["heads", "vectors"]
    kind: str | None
    column: str
    columns: list[str]
    rows: list[GridRow]
    low: float
    high: float
    """The ends of the colours: values beyond them have the end colours."""


class ModelCard(Shape):
    """A model, or one place of it: a stack, a layer or an expert."""

    type: Literal["model"] = "model"
    address: str
    model: str
    summary: ModelSummary
    kinds: dict[str, int]
    """How many parameters there are of each kind."""
    places: list[str]
    """The addresses of its layers."""
    grids: list[Grid]


class Named(Shape):
    """A parameter in a list, with its strongest tokens."""

    address: str
    kind: str
    top: list[Token]
    bottom: list[Token]


class Partner(Named):
    relation: str


class Near(Named):
    rank: int
    similarity: float


class NearWords(Near):
    """A parameter near to words: ``z`` is the mean of their tokens' z among its scores, ``words`` how many of them its
    model's vocabulary has.
    """

    z: float
    words: int


class NearIn(Shape):
    """The nearest parameters in one model."""

    model: str
    rows: list[Near]
    note: str | None = None


class Standing(Shape):
    """Where a number stands among those of the same kind and place."""

    larger: int
    """How many have a larger norm."""
    of: int
    least: float
    quartiles: list[float]
    most: float


class ParameterCard(Shape):
    type: Literal["parameter"] = "parameter"
    address: str
    model: str
    kind: str
    says: str
    role: Literal["reads", "writes"]
    sentence: str
    norm: float
    projected_norm: float
    mean: float
    std: float
    vocabulary_size: int
    standing: Standing
    choice: TokenChoice
    notes: list[str]
    """What the choice of tokens left out, and what it could not."""
    top: list[Scored]
    bottom: list[Scored]
    head: str | None
    """The address of the head or layer that it belongs to."""
    partners: list[Partner]
    nearest: list[NearIn]
    """In its own model and those of its vocabulary, or of nearly the same; /similar.json asks the others."""
    elsewhere: list[str]
    """Models whose vocabularies differ more."""
    before: str | None
    after: str | None
    sql: str


class Pair(Shape):
    source: Token
    target: Token
    score: float
    z: float | None
    rank: int | None
    rank_distinct: int | None
    same_word: bool


class Pairs(Shape):
    matrix: Literal["QK", "VO"]
    side: Side
    pairs: list[Pair]


class Direction(Shape):
    """A singular direction of a head's matrix: tokens of the top sides go together, and those of the bottom sides."""

    matrix: Literal["QK", "VO"]
    direction: int
    singular_value: float
    share: float
    """Its part of the squared Frobenius norm of the centred matrix over tokens."""
    source_top: list[Token]
    source_bottom: list[Token]
    target_top: list[Token]
    target_bottom: list[Token]


class NearHead(Shape):
    """A head whose whole matrix is like another's, by the cosine over all pairs of tokens."""

    matrix: Literal["QK", "VO"]
    rank: int
    similarity: float
    address: str
    pairs: list[str]
    """Its strongest pairs of two words."""


class Vectors(Shape):
    """The vectors of one kind that a head has."""

    kind: str
    says: str
    vectors: list[Cell]


class HeadCard(Shape):
    type: Literal["head"] = "head"
    address: str
    model: str
    layer: str
    kv_head: int
    sharing: list[str]
    """The other heads that use the same keys and values."""
    qk_norm: float
    vo_norm: float
    standing: dict[str, Standing]
    choice: PairChoice
    same_word: dict[str, tuple[int, int]]
    """Matrix -> how many of its top pairs are of a word with itself, and how many are kept."""
    lists: list[Pairs]
    notes: list[str]
    """What the choice of pairs left out, and what it could not."""
    directions: list[Direction]
    """Empty where the atlas was built without."""
    comparable: list[str] | None
    """The models whose heads /similar compares with this one, its own first: those of not too many heads to compare
    while a reader waits. Null for a head of a displacement.
    """
    vectors: list[Vectors]
    before: str | None
    after: str | None
    sql: str


Thing = Annotated[ModelCard | HeadCard | ParameterCard, Field(discriminator="type")]


class Choice(Shape):
    """One value of a facet and how many results have it."""

    value: str
    count: int


class Facets(Shape):
    model: list[Choice] = []
    layer: list[Choice] = []
    kind: list[Choice] = []
    side: list[Choice] = []


class FoundParameter(Named):
    side: Side
    words: int
    rank: int
    z: float | None
    matched: list[str]


class FoundHead(Shape):
    address: str
    kind: str
    side: Side
    words: int
    rank: int | None
    z: float | None
    pairs: list[str]


class Found(Shape):
    """Parameters and heads that have the words among their strongest."""

    q: str
    words: list[str]
    parameters: list[FoundParameter]
    heads: list[FoundHead]
    facets: Facets
    counted: int
    """How many of the strongest results the facets count."""
    notes: list[str]


class Searched(Shape):
    """Parameters nearest to the words over the whole vocabulary: by z, those of models that have most words first."""

    q: str
    words: list[str]
    side: Literal["top", "bottom", "both"]
    rows: list[NearWords]
    facets: Facets
    counted: int
    notes: list[str]


class Similar(Shape):
    """Parameters nearest to one parameter."""

    type: Literal["similar"] = "similar"
    address: str
    model: str
    kind: str
    rows: list[Near]
    notes: list[str]


class SimilarHeads(Shape):
    """Heads of a model whose whole matrices are like those of one head."""

    type: Literal["similar_heads"] = "similar_heads"
    address: str
    model: str
    rows: list[NearHead]
    notes: list[str]


AnySimilar = Annotated[Similar | SimilarHeads, Field(discriminator="type")]


class Understood(Shape):
    """What the search box was understood to ask for."""

    q: str
    kind: Literal["address", "words"]
    address: str | None
    words: list[str]
    says: str


class HeatCell(Shape):
    a: str
    b: str
    score: float
    matched: bool
    feature_score: float | None


class HeatMap(Shape):
    """One kind: the places of model A x those of model B."""

    kind: str
    places_a: list[str]
    places_b: list[str]
    rows: list[list[HeatCell]]
    matched: float
    others: float | None
    low: float
    high: float


class Comparison(Shape):
    a: str
    b: str
    maps: list[HeatMap]
    notes: list[str]


class SimilarPair(Shape):
    rank: int
    similarity: float
    a: Named
    b: Named


class LayerPairs(Shape):
    """The most similar pairs of one kind between two layers."""

    a: str
    b: str
    kind: str
    compared: int
    rows: list[SimilarPair]
    notes: list[str]


class Column(Shape):
    name: str
    type: str


class Table(Shape):
    name: str
    columns: list[Column]


class SqlAnswer(Shape):
    q: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    truncated: bool
    """Whether there are more rows than these."""
    limit: int
    seconds: float
