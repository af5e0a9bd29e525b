"""What ``evaluate`` measures, and on how much."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from paramdex_builder.work.arguments import check_choices, source_text
from paramdex_schemas import BuildError
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import whole_number
from paramdex_schemas.errors import quoted

MEASURES = ("states", "pairs", "reads", "hits", "coherence", "hubs", "writes", "keep_k")


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, and on how much."""

    measures: tuple[str, ...] | None = None
    """some of MEASURES; None for all"""

    space: str = "output"
    """output or input: the embedding whose rows the scores belong to"""
    fold_norm: bool = False
    """fold norms into the vectors beside them, and the final norm into the embedding: gains, and LayerNorm's means"""
    k: int = 50
    """strongest tokens of a state and of a parameter that are compared"""
    pair_k: int = 100
    """strongest tokens of each vector of a pair that are compared"""
    active: int = 5
    """most active parameters at a token"""
    samples: int = 1000
    """tokens looked at, at most"""
    parameters: int = 128
    """parameters of each kind and layer whose strongest tokens are looked at, and pairs, at most"""
    heads: int = 32
    """heads of the model whose strongest pairs of tokens are looked at, at most; 0 leaves that out"""
    texts: int = 144
    """texts of 128 tokens that a causal model writes itself, to fit what its layers read; 0 leaves that out"""
    other_model: str | None = None
    """another model, in whose embedding the words of a list are compared; without it that is left out"""
    draws: int = 40
    """draws per baseline; with d draws the smallest p-value is 1 / (d + 1)"""
    seed: int = 0
    """seed of all that is drawn at random"""

    def check(self) -> EvaluateOptions:
        """These options, numbers as Python's own. Raises BuildError for what cannot be met."""
        check_choices(self)
        least = {"k": 1, "pair_k": 1, "active": 1, "samples": 2, "parameters": 2, "heads": 0, "texts": 0, "draws": 1}
        whole: dict[str, Any] = {
            name: whole_number(name, getattr(self, name), number, None, BuildError) for name, number in least.items()
        }
        wrong = BuildError(f"measures are some of {', '.join(MEASURES)}, or None for all, not {quoted(self.measures)}")
        measures = None if self.measures is None else given_items(self.measures, wrong)
        if measures is not None and (not measures or any(each not in MEASURES for each in measures)):
            raise wrong
        if measures is not None and "coherence" in measures and self.other_model is None:
            raise BuildError("coherence needs another model, to compare words in its embedding: give other_model")
        other = None if self.other_model is None else source_text(self.other_model)
        seed = whole_number("seed", self.seed, 0, 2**63 - 1, BuildError)
        chosen = None if measures is None else tuple(measures)
        return replace(self, measures=chosen, seed=seed, other_model=other, **whole)

    def wants(self, *measures: str) -> bool:
        """Whether any of some measures is asked for."""
        return self.measures is None or any(each in self.measures for each in measures)
