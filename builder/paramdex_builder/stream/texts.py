"""Texts that a model is run on to find what its layers read: what it writes itself, or windows of a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import BuildError
from paramdex_schemas.progress import Progress

LENGTH = 128
"""The tokens of a text."""
FITTED, HELD_OUT = 144, 12
"""Texts that a build fits maps on (18,432 tokens), and those that it measures them on. Gates of SmolLM2-135M read with
a mean correlation of 0.629 from 96 texts, 0.634 from 144, 0.637 from 192 and 0.640 from 384 (as for ``maps.RIDGE``). A
reading from 144 takes a quarter longer to make than one from 96.
"""
_STRETCH, _MOST = 1 << 14, 64
"""Of a file with more than this many stretches of so many characters, that many stretches are read."""


@dataclass(frozen=True)
class Texts:
    """Texts of one length (``ids``, n x length). Of each, the first ``before`` tokens and the last ``after`` are read,
    but not counted: special tokens that stand around any text; and in any case the first, which causal models make
    something else of than of any token with others before it.
    """

    ids: torch.Tensor
    before: int
    after: int
    called: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, some: slice) -> Texts:
        return replace(self, ids=self.ids[some])

    @property
    def n_tokens(self) -> int:
        """How many tokens are counted."""
        return self.counted(self.ids).numel()

    def counted(self, values: torch.Tensor) -> torch.Tensor:
        """Of values for every token (n x length, or n x length x d), those of the tokens that are counted."""
        return values[:, self.before : self.ids.shape[1] - self.after]


def own(runner: Runner, author: Any, n_tokens: int, n: int, seed: int, progress: Progress) -> Texts:
    """``n`` texts that a model writes itself; ``author`` is the runner's model with its head. Ids below ``n_tokens``
    may be drawn.
    """
    begin = runner.tokenizer.bos_token_id
    first = begin if begin is not None and begin < n_tokens else None
    ids = own_text.write(author, first, n_tokens, n, min(LENGTH, runner.longest), seed, progress)
    return Texts(ids, 1, 0, "its own")


def windows(runner: Runner, words: str, called: str, n: int, seed: int) -> Texts:
    """``n`` windows of a text, drawn at random from all of it, each with the special tokens around it that the
    tokenizer puts there.

    Raises BuildError where it has fewer, CheckpointError where the tokenizer cannot read it.
    """
    length = min(LENGTH, runner.longest)
    before, after = max(1, len(runner.around[0])), len(runner.around[1])
    if length < before + after + 2:  # of one token alone, nothing is left when the mean of its text is taken away
        raise BuildError(f"{runner.checkpoint.source} reads {length} tokens at a time, too few to learn from a text")
    generator = torch.Generator().manual_seed(seed)
    options = {"max_length": length, "return_overflowing_tokens": True, "verbose": False}
    found = runner.encode(_stretches(words, generator), **options)
    whole = [each for each in found if len(each) == length]
    if len(whole) < n:
        there = sum(max(0, len(each) - before - after) for each in found)
        wanted = n * (length - before - after)
        raise BuildError(
            f"the text {called} is too short: it has about {there:,} tokens of {runner.checkpoint.source}, and "
            f"{wanted:,} are needed; give a longer one"
        )
    chosen = torch.randperm(len(whole), generator=generator)[:n].tolist()
    return Texts(torch.tensor([whole[i] for i in chosen]), before, after, called)


def _stretches(words: str, generator: torch.Generator) -> list[str]:
    """The text; of a long one, parts from all over it."""
    n = -(-len(words) // _STRETCH)
    if n <= _MOST:
        return [words]
    chosen = sorted(torch.randperm(n, generator=generator)[:_MOST].tolist())
    return [words[i * _STRETCH : (i + 1) * _STRETCH] for i in chosen]
