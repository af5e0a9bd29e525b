"""paramdex: an index of what the weights of language models say.

    import paramdex
    atlas = paramdex.open("demo.atlas")
    atlas.show("tiny-a/L3/ff_value/17")

Needs neither torch nor a model: an atlas is a folder with a DuckDB database and FAISS indexes.

Each name below is imported from its module when it is first used. So the program ``paramdex``, which imports this
package before anything of its own runs, hears Ctrl-C from its first moment, and shows its help without DuckDB.
"""

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all else here
if TYPE_CHECKING:
    from paramdex.atlas import Atlas, open  # noqa: A004  # `paramdex.open` reads as `gzip.open` does
    from paramdex.result import Result
    from paramdex.store.token_filter import TokenFilter
    from paramdex_schemas import (
        AddressError,
        AtlasError,
        BuildError,
        CheckpointError,
        FamilyError,
        ParamdexError,
        QueryError,
        TokenError,
    )

    __version__: str

__all__ = [
    "AddressError",
    "Atlas",
    "AtlasError",
    "BuildError",
    "CheckpointError",
    "FamilyError",
    "ParamdexError",
    "QueryError",
    "Result",
    "TokenError",
    "TokenFilter",
    "open",
]

if not TYPE_CHECKING:  # type checkers read the imports above, and know of no other names
    _PLACES = {
        "Atlas": "paramdex.atlas",
        "open": "paramdex.atlas",
        "Result": "paramdex.result",
        "TokenFilter": "paramdex.store.token_filter",
    }
    """Where a name of ``__all__`` comes from, unless from ``paramdex_schemas``."""
    _MODULES = ("atlas", "result")
    """Modules that ``import paramdex`` alone makes known."""

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in __all__:
            found = getattr(import_module(_PLACES.get(name, "paramdex_schemas")), name)
        elif name in _MODULES:
            found = import_module(f"paramdex.{name}")
        elif name == "__version__":
            from importlib.metadata import version

            found = version("paramdex")
        else:
            raise AttributeError(f"module 'paramdex' has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES, "__version__"})
