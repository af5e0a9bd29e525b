"""What an atlas is: its words, its layout, its tables and the meaning of its numbers.

Shared by the builder, which writes atlases, and the query package, which reads them. Needs neither torch nor faiss.
"""

from paramdex_schemas.addresses import Address
from paramdex_schemas.atlas_files import FORMAT_VERSION
from paramdex_schemas.errors import (
    AddressError,
    AtlasError,
    BuildError,
    CheckpointError,
    FamilyError,
    ParamdexError,
    QueryError,
    TokenError,
)
from paramdex_schemas.kinds import KINDS, MATRICES, Kind
from paramdex_schemas.layout import Layout, Run

__all__ = [
    "FORMAT_VERSION",
    "KINDS",
    "MATRICES",
    "Address",
    "AddressError",
    "AtlasError",
    "BuildError",
    "CheckpointError",
    "FamilyError",
    "Kind",
    "Layout",
    "ParamdexError",
    "QueryError",
    "Run",
    "TokenError",
]
