"""What a build may be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from paramdex_builder.work import memory
from paramdex_builder.work.arguments import check_choices, check_reading, source_text
from paramdex_schemas import BuildError
from paramdex_schemas.arguments import given_path, yes_or_no
from paramdex_schemas.checks import whole_number
from paramdex_schemas.errors import quoted


@dataclass(frozen=True)
class Options:
    """What a build keeps and where it computes."""

    top_k: int = 50
    """strongest tokens kept for each parameter, on each side"""
    pair_k: int = 200
    """strongest token pairs kept for each head and matrix, on each side"""
    neighbor_k: int = 5
    """nearest parameters kept for each parameter, in each other model of its vocabulary, or of nearly the same"""
    base: str | PathLike[str] | None = None
    """the model that every source was tuned from, to keep what moved in place of the models themselves"""
    fold_norm: bool = False
    """fold norms into the vectors beside them, and the final norm into the embedding: gains, and LayerNorm's means"""
    space: str = "output"
    """output or input: the embedding whose rows the scores belong to; where a model ties the two they are one"""
    reading: str = "auto"
    """how what reads in a layer is read: by what the layer is expected to see of each token (expected), by the state
    that enters layer 0 or leaves it for the token (effective), or by the embedding (embedding); auto is expected for
    causal models that can be run, and for others that can be where there is a text, else embedding"""
    relate: str = "auto"
    """the models of the atlas that each new one is related to, so that neighbors and alignments are kept: all, none,
    names with commas between them, or auto, as many as take less than a minute"""
    replace: bool = False
    """replace a model of the same name that was built from other weights or with other options"""
    text: str | PathLike[str] | None = None
    """a file of text to find out what layers see; without one a causal model writes it itself"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one"""
    directions_k: int = 8
    """singular directions kept for each head and matrix; 0 keeps none"""
    memory: str | None = None
    """the most memory that the build may take, such as 8G; without it, half of what is free"""

    def check(self) -> Options:
        """These options, numbers and base as they are stored. Raises BuildError for what cannot be met."""
        whole: dict[str, Any] = {
            name: whole_number(name, getattr(self, name), least, most, BuildError)
            for name, least, most in (
                ("top_k", 1, 1000),
                ("pair_k", 1, 10_000),
                ("neighbor_k", 1, 1000),
                ("directions_k", 0, 1000),
            )
        }
        check_choices(self)
        check_reading(self.reading)
        if not isinstance(self.relate, str) or not self.relate.strip():
            raise BuildError(f"relate is auto, all, none or names of models, not {quoted(self.relate)}")
        base = None if self.base is None else source_text(self.base)
        text = None if self.text is None else given_path(self.text, "the text", BuildError)
        if text is not None and self.reading not in ("auto", "expected"):
            raise BuildError(f"a text is for the reading expected; {self.reading} is fitted on none: leave it out")
        if self.memory is not None:
            memory.size_of(self.memory)
        return replace(
            self,
            base=base,
            text=text,
            replace=yes_or_no("replace", self.replace),
            **whole,
        )
