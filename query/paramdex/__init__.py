"""paramdex: an index of what the weights of language models say.

    import paramdex
    atlas = paramdex.open("demo.atlas")
    atlas.show("tiny-a/L3/ff_value/17")

Needs neither torch nor a model: an atlas is a folder with a DuckDB database and FAISS indexes.
"""

from importlib.metadata import version

from paramdex.atlas import Atlas, open  # noqa: A004  # `paramdex.open` reads as `gzip.open` does
from paramdex.result import Result
from paramdex.store.filters import TokenFilter
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

__version__ = version("paramdex")

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
