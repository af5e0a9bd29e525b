"""Two models that are related, and by which tokens.

Models of one vocabulary are compared by the scores of all its tokens. Two vocabularies may differ by few tokens, as
those of a base and of a tuned model with tokens of its own do. Such models are compared in the same way by the tokens
whose text both have, whatever their ids (``shared_tokens.sql``): with the embeddings' rows of these tokens alone, and
scores centred over them. Each model's coordinates c then become M c, normalized again (``isometry.restriction``).

Few is at most a tenth of the texts of either (``NEARLY``). Then the shared tokens have nearly all the scores, and a
similarity on them is nearly one of whole vectors. Models whose vocabularies differ more are compared only when somebody
asks, and the answer says on how many tokens. The build and ``info`` say that nothing of them is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from paramdex_builder.files.tables import tables
from paramdex_builder.files.vectors import open_rows
from paramdex_builder.relate.relations import Segment
from paramdex_schemas import Layout, atlas_files, isometry, vector_files
from paramdex_schemas.model import Model

NEARLY = 0.9
"""The share of either vocabulary's texts that two must have in common for their models to be related."""


@dataclass(frozen=True)
class Shared:
    """The tokens that two vocabularies share, by text: their ids in a's and in b's (S each), in the order of a's."""

    a: torch.Tensor
    b: torch.Tensor

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Related:
    """A model whose files are all written, in its folder."""

    uid: str
    model: Model
    folder: Path

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def layout(self) -> Layout:
        return self.model.layout

    def rows(self, kind: str, space: str | None = None) -> np.ndarray:
        """The normalized coordinates, mapped from the disk: by the model's own embedding of all vectors of a kind
        (n x r), or in another space of those that are scored there.
        """
        return open_rows(self.folder / vector_files.index_name(vector_files.stem(kind, space)))

    def segments(self, kind: str) -> list[Segment]:
        """The normalized coordinates of a kind, of each vector in the space that scores it."""
        found = []
        for part in self.layout.parts(kind):
            space = self._beside_its_own(part.space)
            start = part.start if space is None else part.offset
            rows = self.rows(kind, space)[start : start + part.end - part.start]
            found.append(Segment(rows, part.start, part.space))
        return found

    def space_file(self, space: str) -> Path:
        return self.folder / atlas_files.space(self._beside_its_own(space))

    def root(self, space: str | None = None) -> isometry.Root:
        """The root of a space; without one, of the model's own embedding."""
        with safe_open(self.space_file(space or self.model.embedding), framework="np") as file:
            return isometry.Root(file.get_tensor("root"))

    @property
    def width(self) -> int:
        """The d of the model."""
        with safe_open(self.space_file(self.model.embedding), framework="np") as file:
            _, d = file.get_slice("root").get_shape()
        return int(d)

    def _beside_its_own(self, space: str) -> str | None:
        """What names of files say of a space: nothing of the model's own embedding."""
        return None if space == self.model.embedding else space


@dataclass(frozen=True)
class Pair:
    """Two models that are compared: a, which was in the atlas first, and b. They are compared by the tokens ``shared``,
    or by all of them (None) where both have one vocabulary; ``n_tokens`` is how many that are.
    """

    a: Related
    b: Related
    n_tokens: int
    shared: Shared | None = None

    @property
    def sides(self) -> dict[str, Related]:
        return {"a": self.a, "b": self.b}

    def tokens(self, side: str) -> torch.Tensor | None:
        """The ids of the shared tokens in the vocabulary of a side, a or b; None where all count."""
        return None if self.shared is None else getattr(self.shared, side)


def pair_of(a: Related, b: Related) -> Pair | None:
    """Two models with the tokens by which they are compared; None where their vocabularies differ too much."""
    if a.model.vocabulary == b.model.vocabulary:
        return Pair(a, b, b.model.vocabulary_size)
    shared = _shared(a, b)
    return None if shared is None else Pair(a, b, len(shared), shared)


def _shared(a: Related, b: Related) -> Shared | None:
    """The tokens that two vocabularies have in common, None where they are not nearly all of both."""
    with tables({"a": a.folder / atlas_files.TABLES, "b": b.folder / atlas_files.TABLES}) as connection:
        sql = atlas_files.shared_tokens("a.store.tokens", "b.store.tokens")
        found = connection.execute(sql).fetchnumpy()
    in_a, in_b, texts_a, texts_b = (
        torch.from_numpy(np.ma.getdata(found[name]).astype(np.int64))
        for name in ("token_a", "token_b", "texts_a", "texts_b")
    )
    if len(in_a) < 2 or len(in_a) < NEARLY * max(int(texts_a[0]), int(texts_b[0])):
        return None
    return Shared(in_a, in_b)
