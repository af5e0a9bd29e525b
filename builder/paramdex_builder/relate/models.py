"""Which models of an atlas a new one is related to, and by which tokens.

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

import duckdb
import numpy as np
import torch
from safetensors import safe_open

from paramdex_builder.files.vectors import open_rows
from paramdex_builder.relate.relations import Segment
from paramdex_builder.work.progress import Progress
from paramdex_schemas import Layout, atlas_files, isometry, vector_files
from paramdex_schemas.model import Model, read_models

NEARLY = 0.9
"""The share of either vocabulary's texts that two must have in common for their models to be related."""


@dataclass(frozen=True)
class Shared:
    """The tokens that two vocabularies share, by text: their ids in the earlier model's and in the new one's (S each),
    in the order of the earlier one's.
    """

    earlier: torch.Tensor
    new: torch.Tensor

    def __len__(self) -> int:
        return len(self.earlier)


@dataclass(frozen=True)
class Related:
    """A model whose vectors are written: the new one, in its folder, or one in the atlas that the new one is related
    to.

    It is compared with the new one by the tokens ``shared``, or by all of them (None) where both have one vocabulary;
    ``n_tokens`` is how many that are.
    """

    model: Model
    folder: Path
    n_tokens: int
    shared: Shared | None = None

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


def related(
    connection: duckdb.DuckDBPyConnection, atlas: Path, folder: Path, progress: Progress
) -> tuple[Related, list[Related]]:
    """The new model and the earlier ones that it is related to. ``progress`` is told which models are compared on
    shared tokens only, or not at all. The new model is the last of the database, which has its rows of ``models``,
    ``layout`` and ``tokens``; its vectors are in ``folder``.
    """
    *earlier, new = read_models(lambda sql: connection.execute(sql).fetchall())
    own = new.vocabulary
    mine = Related(new, folder, new.vocabulary_size)
    shared = {other: _shared(connection, other, own) for other in {each.vocabulary for each in earlier} - {own}}
    others, apart = [], []
    for other in earlier:
        tokens = shared.get(other.vocabulary)
        if other.vocabulary != own and tokens is None:
            apart.append(other.name)
            continue
        if tokens is not None:
            progress.say(f"{new.name} with {other.name}: compared on the {len(tokens):,} tokens whose text both have")
        n_tokens = new.vocabulary_size if tokens is None else len(tokens)
        others.append(Related(other, atlas_files.model_folder(atlas, other.name), n_tokens, tokens))
    if apart:
        progress.say(
            f"{new.name}: no neighbors or alignments are kept with {', '.join(apart)}: "
            "their vocabularies differ too much; similar and align compare them when asked"
        )
    return mine, others


def _shared(connection: duckdb.DuckDBPyConnection, earlier: str, new: str) -> Shared | None:
    """The tokens that two vocabularies have in common, None where they are not nearly all of both."""
    found = connection.execute(atlas_files.shared_tokens(), {"a": earlier, "b": new}).fetchnumpy()
    a, b, texts_a, texts_b = (
        torch.from_numpy(np.ma.getdata(found[name]).astype(np.int64))
        for name in ("token_a", "token_b", "texts_a", "texts_b")
    )
    if len(a) < 2 or len(a) < NEARLY * max(int(texts_a[0]), int(texts_b[0])):
        return None
    return Shared(a, b)
