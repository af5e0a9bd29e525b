"""Which tensors of a checkpoint are its embeddings: the table by which tokens enter the stream, and the one that scores
them.

Names say where the two may be, and their numbers whether they are one table. If the file has only one, config.json
decides: as in transformers, the other is then the same table, or there is none. A tensor that has an embedding's shape
and no known name is never passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from paramdex_builder.read.family import Family
from paramdex_builder.read.tensors import Tensors
from paramdex_schemas import CheckpointError, FamilyError

Read = Callable[[str, tuple[int | None, ...]], torch.Tensor]

OUTPUT_NAMES = (
    "lm_head.weight", "embed_out.weight", "output.weight", "output_layer.weight", "output_projection.weight",
    "proj_out.weight", "head.weight", "unembed.weight", "unembedding_projection.weight", "decoder.weight",
    "generator_lm_head.weight", "vocab_projector.weight", "lm_head.out_proj.weight", "lm_loss.weight",
    "pred_layer.proj.weight", "decoder.output_projection.weight",
)  # fmt: skip
"""What models call their output embedding where it is not what their family calls it."""
_PADDING = 0.25
"""By what share of its rows a table may be longer or shorter than another one of the same vocabulary."""


@dataclass
class Embeddings:
    """The embeddings of a checkpoint, by the names of their tensors.

    ``stacks`` are the stacks that it has, ``d`` is the width of its stream, and ``says_tied`` what its config says.
    """

    source: str
    family: Family
    prefix: str
    stacks: Sequence[str | None]
    files: Tensors
    d: int
    says_tied: bool

    def find_entry(self, stack: str | None = None) -> str | None:
        """The table by which tokens enter ``stack``: by default the decoder of an encoder-decoder, else the only stack.

        A stack's own table comes before the one that stacks share, and both before the output embedding of a model
        that says it is tied. None if the checkpoint has none of them.
        """
        stack = stack or ("decoder" if "decoder" in self.stacks else next(iter(self.stacks), None))
        names = self.family.stack_embeddings
        own = [self.prefix + names[stack]] if stack in names else []
        outputs = self._named_outputs(0, {self.d}) if self.says_tied else []
        shared, *others = self._inputs
        return next((name for name in (*own, shared, *outputs, *others) if name in self.files), None)

    @cached_property
    def entry(self) -> str:
        """The table by which tokens enter the stream; of an encoder-decoder the decoder's. Raises FamilyError."""
        found = self.find_entry()
        if found is None:
            raise FamilyError(
                f"{self.source}: there is no tensor {self._inputs[0]}, the input embedding, and no output embedding "
                "that config.json ties to it"
            )
        return found

    @property
    def of_head(self) -> bool:
        """Whether the input embedding stands under the output embedding's name alone, as a tied model's may."""
        return self.entry not in self._inputs

    def alias(self) -> None:
        """Let an input embedding that has only the output's name be found under its own name too."""
        if self.of_head:
            self.files.alias(self._inputs[0], self.entry)

    @cached_property
    def output(self) -> str | None:
        """The table that scores tokens: the input embedding, or what stands for it, where that is tied to it; None
        where there is none.

        Raises CheckpointError where two tensors could be it, and where config.json says tied beside a tensor of an
        embedding's shape that is something else.
        """
        output = self._one(self.outputs)
        if output not in (None, self.entry):
            return output
        if self._unread is not None:
            if self.says_tied:
                raise CheckpointError(f"{self._about(self._unread)}, or take it out of the file if it is not")
            return None
        if not self.says_tied and not self._unnamed:
            return None
        # transformers ties the head of an encoder-decoder to the table that its stacks share
        return self._inputs[0] if len(self.stacks) > 1 and self._inputs[0] in self.files else self.entry

    @cached_property
    def tied(self) -> bool:
        """Whether the input and the output embedding are one table, by their numbers. Raises as ``output``."""
        return self.output is not None and self._equal(self.output, self.entry)

    @cached_property
    def encoder(self) -> str | None:
        """The table by which tokens enter the encoder, where that is another than the decoder's."""
        if not {"encoder", "decoder"} <= {*self.stacks}:
            return None
        found = self.find_entry("encoder")
        return None if found is None or self._equal(found, self.entry) else found

    def way(self) -> str | None:
        """Which way the checkpoint's map between an embedding of another width and the stream leads: outward where
        there is one through which the output embedding is read.
        """
        return next((way for way in ("outward", "inward") if self.map_name(way) is not None), None)

    def map_name(self, way: str) -> str | None:
        """The tensor of the map that leads this way, None where there is none."""
        name = self.prefix + self.family.maps.get(way, "")
        return name if name in self.files else None

    def choose(self, space: str) -> tuple[str, str, bool]:
        """(name, 'output' or 'input', tied): the table that scores, which of the two it is, and whether they are tied.

        An output embedding that is read from a head's narrower state, and not from the stream, scores no vector of
        the stream. Raises CheckpointError where a tensor of unknown name may be the output embedding.
        """
        tied = self.tied and self.way() != "outward"
        if space == "input":
            return self.entry, "input", tied
        if self._unread is not None and self.output is None:
            raise CheckpointError(f"{self._about(self._unread)}; or score by {self.entry} with --space input")
        if self.output is None or (self.way() == "inward" and self.files.shape(self.output)[-1] != self.d):
            return self.entry, "input", tied
        return self.output, "output", tied

    def notes(self, space: str) -> Iterator[str]:
        """What a person should know where the embedding that scores may not be the expected one."""
        name, which, tied = self.choose(space)
        if which != space and not tied:
            # Models for retrieval are saved without the head that their architecture has, and encoders never had one.
            # transformers would put random numbers in its place; the only table that they have is better than that.
            why = "it has none" if self.output is None else f"{self.output} does not read the stream"
            yield f"its input embedding {name} stands in for an output embedding: {why}, and the two are not tied"
        if self.encoder not in (None, name):
            yield (
                f"its encoder has its own input embedding, {self.encoder}; "
                f"all scores, including the encoder's, use {name}"
            )

    def in_stream(self, name: str, way: str, read: Read, precision: torch.dtype) -> torch.Tensor:
        """A table of vectors (rows x d), through the map that leads this way where there is one; ``read`` gives a
        tensor by its name and expected shape.
        """
        map_name = self.map_name(way)
        if map_name is None:
            return read(name, (None, self.d))
        E = read(name, (None, None))
        e = E.shape[1]
        P = read(map_name, (self.d, e) if way == "inward" else (e, self.d)).double()
        P = P.T if way == "inward" else P
        return torch.cat([(chunk.double() @ P).to(precision) for chunk in torch.split(E, 8192)])

    # ---- names and shapes

    @cached_property
    def outputs(self) -> list[str]:
        """The tensors that have the name of an output embedding."""
        return self._named_outputs(self._rows, self._widths)

    @property
    def _inputs(self) -> list[str]:
        """The names of input embeddings; first that of the one that stacks share."""
        return [self.prefix + name for name in self.family.input_embeddings]

    @property
    def _rows(self) -> int:
        return self.files.shape(self.entry)[0]

    @property
    def _widths(self) -> set[int]:
        return {self.d, self.files.shape(self.entry)[-1]}

    def _named_outputs(self, rows: int, widths: set[int]) -> list[str]:
        """The tensors called as the family calls its output embedding; if none is, those that have a usual name, one of
        these widths and at least about so many rows.
        """
        exact = [name for name in self.family.output_embeddings if name in self.files]
        if exact:
            return exact
        usual = [*self.family.output_embeddings, *OUTPUT_NAMES]
        found = [
            name
            for name in self._outside_layers()
            if f".{name}".endswith(tuple(f".{each}" for each in usual))
            and name not in self._inputs
            and _is_table(self.files.shape(name), widths, (1 - _PADDING) * rows)
        ]
        near = [name for name in found if name.removeprefix(self.prefix) in usual or name in usual]
        # A tied model may have the head of another part, one that predicts several tokens ahead, say.
        return near if near or self.says_tied else found

    def _one(self, names: Sequence[str]) -> str | None:
        """The output embedding among the tensors named so. Raises CheckpointError where they are not all the same."""
        for name in names[1:]:
            if not self._equal(names[0], name):
                raise CheckpointError(
                    f"{self.source}: tensors {names[0]} and {name} are different, and each has the name of an output "
                    "embedding; take the one that is none out of the file"
                )
        return names[0] if names else None

    @cached_property
    def _unnamed(self) -> list[str]:
        """The tensors outside of layers that have the shape of the input embedding, either way round, and are neither
        it nor anything that the family names.
        """
        known = {*self._inputs, self.entry}
        known |= {self.prefix + added["tensor"] for stack in self.family.stacks for added in stack.added.values()}
        shapes = {name: self.files.shape(name) for name in self._outside_layers() if name not in known}
        limits = (1 - _PADDING) * self._rows, (1 + _PADDING) * self._rows
        return [
            name
            for name, shape in shapes.items()
            if any(_is_table(each, self._widths, *limits) for each in (shape, shape[::-1]))
        ]

    @cached_property
    def _unread(self) -> str | None:
        """The first of those that is no copy of the input embedding."""
        return next((name for name in self._unnamed if not self._equal(name, self.entry)), None)

    def _about(self, unread: str) -> str:
        """The beginning of an error: what that tensor is, and what to do where it is the output embedding."""
        shape = " x ".join(map(str, self.files.shape(unread)))
        return (
            f"{self.source}: tensor {unread} has the shape of an output embedding ({shape}) but none of its known "
            f"names; rename it to {self.family.output_embeddings[0]} if it is one"
        )

    def _outside_layers(self) -> Iterator[str]:
        inside = tuple(self.prefix + stack.layer.partition("{")[0] for stack in self.family.stacks)
        return (name for name in self.files.names() if not name.startswith(inside))

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tensors have one shape and the same numbers, whatever they are stored in."""
        if one == other:
            return True
        if self.files.shape(one) != self.files.shape(other):
            return False
        a, b = self.files.tensor(one), self.files.tensor(other)
        return all(
            torch.equal(x.double(), y.double()) for x, y in zip(torch.split(a, 4096), torch.split(b, 4096), strict=True)
        )


def _is_table(shape: Sequence[int], widths: set[int], least: float, most: float = math.inf) -> bool:
    """Whether a tensor of this shape is a table of one of these widths and a number of rows within these limits."""
    return len(shape) == 2 and shape[1] in widths and least <= shape[0] <= most
