"""What a build may be told, and how what a caller gives is checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, TypeVar

from paramdex_builder.work import memory
from paramdex_schemas import BuildError
from paramdex_schemas.arguments import given_items, path_text, yes_or_no
from paramdex_schemas.checks import whole_number
from paramdex_schemas.errors import quoted

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
    base: str | PathLike[str] | None = None
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
                ("top_k", 1, 1000),
                ("pair_k", 1, 10_000),
                ("neighbor_k", 1, 1000),
                ("directions_k", 0, 1000),
            )
        }
        check_choices(self)
        if self.memory is not None:
            memory.parse(self.memory)
        return replace(self, base=None if self.base is None else source_text(self.base), **whole)


def given(value: Any, kind: type[Kind]) -> Kind:
    """The options, or progress, that a function was given; the default where it got None.

    Raises BuildError for anything else.
    """
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise BuildError(f"expected {kind.__name__}(...) or None, not {quoted(value)}")
    return value


def check_choices(options: Any) -> None:
    """Raises BuildError for options that have no such ``space`` or ``fold_norm``."""
    check_space_name(options.space)
    yes_or_no("fold_norm", options.fold_norm, BuildError)


def check_space_name(space: Any) -> None:
    """Raises BuildError for a ``space`` that there is not."""
    if not isinstance(space, str) or space not in ("output", "input"):
        raise BuildError(f"space is output or input, not {quoted(space)}")


def source_texts(sources: Any) -> list[str]:
    """One source or several, each as text: a folder or a name on the hub. Raises BuildError for what is none."""
    if isinstance(sources, (str, PathLike)):
        return [source_text(sources)]
    wrong = BuildError(f"sources are texts or paths, not {quoted(sources)}")
    return [source_text(each) for each in given_items(sources, wrong)]


def source_text(source: Any) -> str:
    """As ``source_texts``, of one."""
    if isinstance(source, str) and not source.strip():
        raise BuildError("a source cannot be empty; give a folder or a Hugging Face name")
    return path_text(source, "a source", BuildError)
