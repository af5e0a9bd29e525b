"""What a build may be told, and how what a caller gives is checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from paramdex_builder import memory
from paramdex_schemas import BuildError
from paramdex_schemas.errors import check_text, whole_number

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Options:
    """What a build keeps and where it computes."""

    top_k: int = 50
    """strongest tokens kept for each parameter, on each side"""
    pair_k: int = 200
    """strongest token pairs kept for each head and matrix, on each side"""
    neighbor_k: int = 5
    """nearest parameters kept for each parameter, in each other model of its vocabulary, or of nearly the same"""
    base: str | Path | None = None
    """the model that every source was tuned from, to keep what moved in place of the models themselves"""
    fold_norm: bool = False
    """fold norms into the vectors beside them, and the final norm into the embedding: gains, and LayerNorm's means"""
    space: str = "output"
    """output or input: the embedding whose rows the scores belong to; where a model ties the two they are one"""
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
                ("top_k", 1, 1000), ("pair_k", 1, 10_000), ("neighbor_k", 1, 1000), ("directions_k", 0, 1000)
            )
        }  # fmt: skip
        check_choices(self)
        if self.memory is not None:
            memory.parse(self.memory)
        return replace(self, base=None if self.base is None else _source_text(self.base), **whole)


def given(options: Any, kind: type[Kind]) -> Kind:
    """The options that a function was given, or the defaults where it got None. Raises BuildError for anything else."""
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise BuildError(f"options must be {kind.__name__}(...), not {options!r}")
    return options


def check_choices(options: Any) -> None:
    """Raises BuildError for options that have no such ``space`` or ``fold_norm``."""
    if options.space not in ("output", "input"):
        raise BuildError(f"space is output or input, not {options.space!r}")
    if type(options.fold_norm) is not bool:
        raise BuildError(f"fold_norm is True or False, not {options.fold_norm!r}")


def source_texts(sources: Any) -> list[str]:
    """One source or several, each as text: a folder or a name on the hub. Raises BuildError for what is none."""
    several = [sources] if isinstance(sources, (str, Path)) else sources
    if not isinstance(several, Iterable):
        raise BuildError(f"a source is text or a path, not {several!r}")
    return [_source_text(each) for each in several]


def _source_text(source: Any) -> str:
    text = str(source) if isinstance(source, Path) else source
    if not isinstance(text, str):
        raise BuildError(f"a source is text or a path, not {source!r}")
    if not text.strip():
        raise BuildError("a source cannot be empty; give a folder or a Hugging Face name")
    check_text(text, BuildError(f"the source {text!r} is not valid UTF-8 text; give another"))
    return text
