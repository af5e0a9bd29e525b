"""How what a caller gives to build, evaluate and stitch is checked before any work is done."""

from __future__ import annotations

from os import PathLike
from typing import Any, Protocol, TypeVar

from paramdex_schemas import BuildError
from paramdex_schemas.arguments import given_items, path_text, yes_or_no
from paramdex_schemas.errors import quoted

Kind = TypeVar("Kind")


class Choices(Protocol):
    """Options that say which embedding scores, and whether norms are folded in."""

    @property
    def space(self) -> str: ...

    @property
    def fold_norm(self) -> bool: ...


def given(value: Any, kind: type[Kind]) -> Kind:
    """The options, or progress, that a function was given; the default where it got None.

    Raises BuildError for anything else.
    """
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise BuildError(f"expected {kind.__name__}(...) or None, not {quoted(value)}")
    return value


def check_choices(options: Choices) -> None:
    """Raises BuildError for options that have no such ``space`` or ``fold_norm``."""
    check_space_name(options.space)
    yes_or_no("fold_norm", options.fold_norm, BuildError)


def check_space_name(space: Any) -> None:
    """Raises BuildError for a ``space`` that there is not."""
    if not isinstance(space, str) or space not in ("output", "input"):
        raise BuildError(f"space is output or input, not {quoted(space)}")


def check_reading(reading: Any) -> None:
    """Raises BuildError for a ``reading`` that there is not."""
    known = ("auto", "expected", "effective", "embedding")
    if not isinstance(reading, str) or reading not in known:
        raise BuildError(f"reading is one of {', '.join(known)}, not {quoted(reading)}")


def source_texts(sources: Any) -> list[str]:
    """One source or several, each as text: a folder or a name on the hub. Raises BuildError for anything else."""
    if isinstance(sources, (str, PathLike)):
        return [source_text(sources)]
    wrong = BuildError(f"sources are texts or paths, not {quoted(sources)}")
    return [source_text(each) for each in given_items(sources, wrong)]


def source_text(source: Any) -> str:
    """As ``source_texts``, of one."""
    if isinstance(source, str) and not source.strip():
        raise BuildError("a source cannot be empty; give a folder or a Hugging Face name")
    return path_text(source, "a source", BuildError)
