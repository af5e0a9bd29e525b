"""Stitching without training: the first layers of one model, a map through the vocabulary, the last layers of another.

A state h of model A (d_A) becomes the state h K of model B, where

    K = E_A E_B^+        d_A x d_B, in the paper's row form, E d x V

(Dar et al. 2022), which with E as V x d here is E_A^T (E_B^+)^T: h K is the state of B whose scores over the vocabulary
are nearest to those of h, argmin_x ||E_B x - E_A h||. Nothing is trained, neither the map nor anything on top of it.
The paper's notebook ``sentiment-analysis`` passes a state through A's final norm before it maps it, which the formula
does not have: ``state="normed"``. ``state="scaled"`` gives the mapped states the mean length of B's own, by one number
per point. The notebook also feeds what it maps to B as if it were embeddings, so that GPT-2 adds its positions once
more; here it enters the block as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from paramdex_builder.measure.classifier import Classifier, Labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream.forward import Batch, Runner, replaced
from paramdex_builder.work.arguments import check_space_name, given, source_text, source_texts
from paramdex_schemas import BuildError
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import whole_number
from paramdex_schemas.errors import quoted
from paramdex_schemas.progress import Advance, Progress

STATES = ("raw", "scaled", "normed")
_BATCH = 16
_CHUNK = 8192
_SCHEMA = pa.schema(
    [
        ("pretrained", pa.string()),
        ("tuned", pa.string()),
        ("part", pa.string()),
        ("state", pa.string()),
        ("first", pa.int16()),
        ("last", pa.int16()),
        ("accuracy", pa.float32()),
        ("right", pa.int32()),
        ("n", pa.int32()),
        ("largest_class", pa.float32()),
    ]
)


@dataclass(frozen=True)
class StitchOptions:
    """Where models are stitched, and how."""

    last: tuple[int, ...] | None = None
    """how many last layers of the tuned model to keep; by default every number of them"""
    state: str = "raw"
    """raw, scaled or normed: what is done with a state beside mapping it"""
    space: str = "output"
    """output or input: the embeddings that the map leads through"""
    base: str | None = None
    """the model that the tuned ones were tuned from: needed for an adapter, and measured beside them"""

    def check(self) -> StitchOptions:
        """These options, numbers and base as they are stored. Raises BuildError where one cannot be met."""
        if not isinstance(self.state, str) or self.state not in STATES:
            raise BuildError(f"state is {', '.join(STATES)}, not {quoted(self.state)}")
        check_space_name(self.space)
        base = None if self.base is None else source_text(self.base)
        wrong = BuildError(f"last must be whole numbers, (1, 3), say, or None for all, not {quoted(self.last)}")
        last = None
        if self.last is not None:
            numbers = given_items(self.last, wrong)
            if not numbers:
                raise wrong
            last = tuple(whole_number("each number of last", number, 0, None, BuildError) for number in numbers)
        return replace(self, base=base, last=last)


def state_map(E_a: torch.Tensor, E_b: torch.Tensor) -> torch.Tensor:
    """The paper's kernel K (d_A x d_B, float64), of E_A (V x d_A) and E_B (V x d_B): A's state h becomes h K of B.

    K = E_A^T E_B G^+ with G = E_B^T E_B, whose pseudo-inverse leaves out what float32 cannot tell from nothing.
    """
    d_a, d_b = E_a.shape[1], E_b.shape[1]
    cross, gram = torch.zeros(d_a, d_b, dtype=torch.float64), torch.zeros(d_b, d_b, dtype=torch.float64)
    for a, b in zip(torch.split(E_a, _CHUNK), torch.split(E_b, _CHUNK), strict=True):
        cross += a.double().T @ b.double()
        gram += b.double().T @ b.double()
    inverse: torch.Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=1e-12)
    return cross @ inverse


@dataclass(frozen=True)
class _Tuned:
    """A tuned model, and how it is stitched to A."""

    classifier: Classifier
    K: torch.Tensor
    """d_A x d_B"""
    lasts: list[int]
    """how many last layers to keep"""
    numbers: list[int] | None
    """the class number of each label; None where nothing tells, and their order is taken"""

    def classes(self, texts: Labelled) -> torch.Tensor:
        """The class number of every text (n)."""
        return texts.classes if self.numbers is None else torch.tensor(self.numbers)[texts.classes]


def stitch(
    pretrained: str,
    tuned: str | Sequence[str],
    texts: Labelled,
    options: StitchOptions | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """The accuracy of every stitched model on labelled texts, one row per tuned model and point. The tuned models
    themselves have rows too (part ``fine-tuned``), and so does their base under their classifiers (``pre-trained``).

    ``first`` is the number of layers of ``pretrained`` that are kept, ``last`` that of the tuned model's. Texts are
    tokenized by the tuned model's tokenizer, and labels are its classes as ``Classifier.class_numbers`` says;
    ``progress`` is told where the order of the classes is a guess, or ``pretrained`` would tokenize otherwise.

    Raises BuildError, CheckpointError or FamilyError: other vocabularies, more layers than there are, other classes.
    """
    options, progress = given(options, StitchOptions).check(), given(progress, Progress)
    pretrained, tuned = source_text(pretrained), source_texts(tuned)
    if not isinstance(texts, Labelled):
        raise BuildError(f"texts are what paramdex_builder.measure.classifier.labelled gives, not {quoted(texts)}")
    A = Runner.open(Checkpoint.open(pretrained))
    norm = _final_norm(A) if options.state == "normed" else None
    classifiers = [Classifier.open(source, options.base) for source in tuned]
    if not classifiers:
        raise BuildError("give at least one tuned model to stitch")
    base = None
    if options.base is not None and any(each.weights is not None for each in classifiers):
        base = Runner.open(Checkpoint.open(options.base))
    for note in A.checkpoint.notes(options.space):  # a tuned classifier has no output embedding
        progress.say(f"{pretrained}: {note}")
    fitted = _fit(A, list(zip(tuned, classifiers, strict=True)), base, texts, options)
    longest = min(runner.longest for runner in (A, *(each.runner for each in classifiers)))
    for note in _notes(A, fitted, texts, longest):
        progress.say(note)
    scales: list[torch.Tensor | None] = [None] * len(fitted)
    total = len(fitted) * len(texts.texts)
    if options.state == "scaled":
        with progress.step("mean lengths of states", total) as advance:
            scales = [_scales(A, one, _batches(one, texts.texts, longest, advance)) for one in fitted]
    right: Counter[tuple[int, str, int | None, int | None]] = Counter()
    with progress.step("texts", total) as advance:
        for i, (one, scale) in enumerate(zip(fitted, scales, strict=True)):
            classifier, classes = one.classifier, one.classes(texts)
            for chosen, batch in _batches(one, texts.texts, longest, advance):
                truth = classes[chosen]
                for first, last, logits in _points(one, A.states(batch), batch, norm, scale):
                    right[i, "stitched", first, last] += _right(logits, truth)
                right[i, "fine-tuned", None, None] += _right(classifier.logits(batch), truth)
                if base is not None and classifier.weights is not None:
                    right[i, "pre-trained", None, None] += _right(classifier.on(base).logits(batch), truth)
    n = len(texts.texts)
    rows = [
        {
            "pretrained": pretrained,
            "tuned": tuned[i],
            "part": part,
            "first": first,
            "last": last,
            "state": options.state if part == "stitched" else None,
            "accuracy": count / n,
            "right": count,
            "n": n,
            "largest_class": texts.largest_share,
        }
        for (i, part, first, last), count in right.items()
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _fit(
    A: Runner,
    tuned: Sequence[tuple[str, Classifier]],
    base: Runner | None,
    texts: Labelled,
    options: StitchOptions,
) -> list[_Tuned]:
    """The tuned models, each with its map from A; they are given with their sources. Raises BuildError for a model that
    A cannot be stitched to.
    """
    E, name = _embedding(A.checkpoint, options.space)
    fitted = []
    for source, each in tuned:
        E_b, other = _embedding(each.runner.checkpoint, options.space)
        if other != name:
            raise BuildError(
                f"{A.checkpoint.source} and {source} have different vocabularies; stitching needs one that both share"
            )
        numbers = each.class_numbers(source, texts.names)
        if base is not None and base.checkpoint.d_model != each.runner.checkpoint.d_model:
            raise BuildError(f"{source} was not tuned from {options.base}: it has another width")
        lasts = _lasts(source, options.last, len(each.runner.blocks))
        fitted.append(_Tuned(each, state_map(E, E_b).float(), lasts, numbers))
    return fitted


def _notes(A: Runner, fitted: Sequence[_Tuned], texts: Labelled, longest: int) -> Iterator[str]:
    """What a person should know of how the texts and their labels were taken."""
    guessed = sum(each.numbers is None for each in fitted)
    if guessed:
        order = ", ".join(f"{name}={i}" for i, name in enumerate(texts.names))
        models = "" if guessed == len(fitted) else f" for {guessed} of {len(fitted)} tuned models"
        yield f"classes are taken in sorted order{models}, because nothing names them: {order}"
    given = A.tokens(texts.texts, longest)
    others: set[int] = set()
    for each in fitted:
        own = each.classifier.runner.tokens(texts.texts, longest)
        others |= {i for i, (x, y) in enumerate(zip(own, given, strict=True)) if x != y}
    if others:
        yield (
            f"texts are tokenized as for the tuned models; {A.checkpoint.source}'s own tokenizer would give other ids "
            f"for {len(others):,} of {len(given):,}"
        )


def _points(
    tuned: _Tuned, states: list[torch.Tensor], batch: Batch, norm: torch.nn.Module | None, scales: torch.Tensor | None
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first, last, logits) of every point, for A's states before each block and after the last."""
    runner = tuned.classifier.runner
    for first, state in enumerate(states):
        with torch.no_grad():
            mapped = (state if norm is None else norm(state)) @ tuned.K
        for last in tuned.lasts:
            layer = len(runner.blocks) - last
            with replaced(runner, layer, mapped if scales is None else mapped * scales[first, layer]):
                yield first, last, tuned.classifier.logits(batch)


def _scales(A: Runner, tuned: _Tuned, batches: Iterable[tuple[list[int], Batch]]) -> torch.Tensor:
    """For every number of A's layers and every layer of B's: the mean length of B's own states over that of the mapped
    ones (L_A + 1 x L_B + 1).
    """
    runner = tuned.classifier.runner
    mapped, own = torch.zeros(len(A.blocks) + 1), torch.zeros(len(runner.blocks) + 1)
    for _, batch in batches:
        mapped += torch.stack([batch.real(state @ tuned.K).norm(dim=1).sum() for state in A.states(batch)])
        own += torch.stack([batch.real(state).norm(dim=1).sum() for state in runner.states(batch)])
    return own[None, :] / mapped[:, None]


def _batches(tuned: _Tuned, texts: list[str], longest: int, advance: Advance) -> Iterator[tuple[list[int], Batch]]:
    """The texts by the tuned model's own tokenizer: what it was tuned on. A shares its vocabulary, and so its ids."""
    for chosen, batch in tuned.classifier.runner.batches(texts, longest, _BATCH):
        yield chosen, batch
        advance(len(chosen))


def _right(logits: torch.Tensor, truth: torch.Tensor) -> int:
    return int((logits.argmax(1) == truth).sum())


def _lasts(source: str, wanted: tuple[int, ...] | None, n_layers: int) -> list[int]:
    """How many last layers to keep. Raises BuildError for more than there are."""
    if wanted is None:
        return list(range(n_layers + 1))
    for last in wanted:
        if not 0 <= last <= n_layers:
            raise BuildError(f"{source} has {n_layers} layers; its last {last} cannot be kept")
    return sorted(set(wanted))


def _embedding(checkpoint: Checkpoint, space: str) -> tuple[torch.Tensor, str]:
    """(E without padding rows, the name of the vocabulary)."""
    E, _, _ = checkpoint.embedding(space)
    vocabulary = read_vocabulary(checkpoint.source, checkpoint.folder, len(E))
    return E[: len(vocabulary)], vocabulary.name


def _final_norm(A: Runner) -> torch.nn.Module:
    """A's final norm. Raises BuildError where it has none beside those of its layers."""
    norm = A.final_norm()
    if norm is None:
        raise BuildError(f"{A.checkpoint.source} has no norm after its last layer; take --state raw or scaled")
    return norm
