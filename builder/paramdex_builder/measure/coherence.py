"""Coherence: whether the words of a list mean similar things, as another model's embedding has it.

The mean cosine between any two of a list's TOKENS strongest tokens that are words, each in the vector that the other
model has of it: the mean of the rows of its pieces, less the mean of all words. A word is letters, three or more. Lists
of fewer than LEAST words say nothing and are left out. The baseline deals the tokens of all lists anew: what tokens
stand in lists, and how often, stays the same, and only their company changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paramdex_builder.measure.measures import Measured, against
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.tokenizer import load_tokenizer
from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import reading
from paramdex_schemas.progress import Progress

TOKENS, LEAST, LETTERS = 20, 4, 3


@dataclass(frozen=True)
class WordVectors:
    """For each token of a vocabulary, the other model's vector (V x c, float32, of length 1; 0 where it is no word)."""

    vectors: torch.Tensor
    is_word: torch.Tensor
    """V booleans"""

    @classmethod
    def of(cls, texts: Sequence[str], pieces: Sequence[Sequence[int]], table: torch.Tensor) -> WordVectors:
        """For the texts of a vocabulary's tokens, the ids of the pieces that each has in the other model (none: it
        has no vector), and the rows of those (``table``).
        """
        is_word = torch.tensor([is_one(text) and len(ids) > 0 for text, ids in zip(texts, pieces, strict=True)])
        vectors = torch.zeros(len(texts), table.shape[1])
        for i in is_word.nonzero().flatten().tolist():
            vectors[i] = table[list(pieces[i])].float().mean(dim=0)
        if is_word.any():
            vectors[is_word] -= vectors[is_word].mean(dim=0)
        size = vectors.norm(dim=1, keepdim=True)
        return cls(vectors / torch.where(size > 0, size, 1), is_word & (size > 0).flatten())


def is_one(text: str) -> bool:
    """Whether a token's text is a word.

    >>> [is_one(text) for text in (" bread", "ing", "to", "x86", "<s>")]
    [True, True, False, False, False]
    """
    return len(text.strip()) >= LETTERS and text.strip().isalpha()


def word_vectors(texts: Sequence[str], source: str, progress: Progress) -> WordVectors:
    """Of the texts of a vocabulary's tokens, the vectors that the model ``source`` has.

    Raises CheckpointError or FamilyError where it cannot be read, or has none of the words.
    """
    checkpoint = Checkpoint.open(source)
    table, _, _ = checkpoint.embedding("input")
    with progress.step(f"words in {source}", len(texts)) as advance:
        pieces = _pieces(texts, source, checkpoint, len(table))
        found = WordVectors.of(texts, pieces, table)
        advance(len(texts))
    if not found.is_word.any():
        raise CheckpointError(f"{source}: its tokenizer knows none of the words; give another model")
    return found


def _pieces(texts: Sequence[str], source: str, checkpoint: Checkpoint, rows: int) -> list[list[int]]:
    """The ids of every word's pieces in another model, after a space or without, whichever has fewer pieces; none for
    what is no word, and for a word with a piece that the model does not know.
    """
    tokenizer = load_tokenizer(source, checkpoint.folder)
    words = [text.strip() if is_one(text) else "" for text in texts]
    with reading(source, CheckpointError, "has a tokenizer that cannot read words"):
        bare, spaced = (
            tokenizer([lead * bool(word) + word for word in words], add_special_tokens=False)["input_ids"]
            for lead in ("", " ")
        )
    unknown = tokenizer.unk_token_id
    found = []
    for word, *ways in zip(words, bare, spaced, strict=True):
        ids = min(ways, key=len) if word else []
        found.append(ids if all(i != unknown and i < rows for i in ids) else [])
    return found


def coherence(lists: torch.Tensor, words: WordVectors, draws: int, generator: torch.Generator) -> Measured | None:
    """The mean over lists (n x k ids) of the mean cosine between two of their words, against the same tokens dealt
    anew; None where no list has LEAST words. How many have them, ``telling`` says.
    """
    if not telling(lists, words):
        return None
    places = torch.arange(lists.numel()).view(lists.shape)
    pool, is_word = words.vectors[lists.flatten()], words.is_word[lists.flatten()]

    def mean(order: torch.Tensor) -> float:
        own = torch.nn.functional.embedding_bag(order, pool, mode="sum").double()
        n = is_word[order].sum(dim=1)
        enough = n >= LEAST
        found = (own.square().sum(dim=1) - n)[enough] / (n * (n - 1))[enough]
        return float(found.mean()) if len(found) else 0.0

    def dealt() -> float:
        return mean(torch.randperm(lists.numel(), generator=generator).view(lists.shape))

    return against(mean(places), dealt, draws)


def telling(lists: torch.Tensor, words: WordVectors) -> int:
    """How many of some lists (n x k ids) have LEAST words."""
    return int((words.is_word[lists].sum(dim=1) >= LEAST).sum())
