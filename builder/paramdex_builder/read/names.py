"""What the tensors of a checkpoint are called, by its family's file; and the sizes of their axes, by its config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paramdex_builder.read.family import Stack
from paramdex_builder.read.tensor_spec import TensorSpec
from paramdex_builder.read.tensors import Tensors
from paramdex_schemas import KINDS, FamilyError, Run
from paramdex_schemas.layout import Place

WRITTEN = {"ff_bias": "ff_value", "attn_bias": "attn_output"}
"""Biases that are added to the stream -> the kind beside whose weights they stand."""
CARRIED = {
    "attn_query_bias": ("attn_query", "attn_key"),
    "attn_key_bias": ("attn_key", "attn_query"),
    "attn_value_bias": ("attn_value", "attn_output"),
}
"""Biases within a head -> whose bias, and through whose vectors it is carried to the stream: the sum of b_j w_j."""
_BESIDE_VECTORS = re.compile(r"_norm\.|relative_attention_bias")
"""T5's relative positions and Cohere's norms of each head: README says that they are left out."""


@dataclass(frozen=True)
class Names:
    """The tensors of the layers of one checkpoint.

    ``prefix`` stands before all names of the family; stacks and their sizes are by the name of the stack.
    """

    source: str
    prefix: str
    config: Any
    stacks: dict[str | None, Stack]
    sizes: dict[str | None, dict[str, int]]
    specs: dict[tuple[str, Place, str | None], TensorSpec]
    """(kind, place, owner) -> where its vectors lie within their layer"""

    @classmethod
    def read(cls, source: str, prefix: str, stacks: Sequence[Stack], config: Any) -> Names:
        """The names of a checkpoint that has these stacks. Raises FamilyError where its numbers do not fit together."""
        sizes = {stack.name: stack.sizes(config) for stack in stacks}
        specs: dict[tuple[str, Place, str | None], TensorSpec] = {}
        for stack in stacks:
            for layer in range(sizes[stack.name]["n_layers"]):
                for found in stack.sources(layer, config):
                    specs[found.kind, (stack.name, layer), found.owner] = found.spec
        return cls(source, prefix, config, {stack.name: stack for stack in stacks}, sizes, specs)

    @property
    def first_sizes(self) -> dict[str, int]:
        """The sizes of the first stack, which stand for the model's."""
        return next(iter(self.sizes.values()))

    def places(self) -> Iterator[Place]:
        """Every layer, stack by stack."""
        for name, sizes in self.sizes.items():
            yield from ((name, layer) for layer in range(sizes["n_layers"]))

    # ---- tensors

    def of_layer(self, stack: str | None, layer: int | str | None) -> str:
        """What the names of a layer's tensors begin with."""
        return self.prefix + self.stacks[stack].layer.format(layer=layer)

    def tensor(self, place: Place, spec: TensorSpec, expert: int = 0) -> str:
        """The tensor that a spec means in one layer, of an expert where each has its own."""
        return self.of_layer(*place) + spec.tensor.format(expert=expert)

    def added(self, stack: str | None, kind: str) -> str:
        """The tensor of the learned positions or token types of a stack."""
        return f"{self.prefix}{self.stacks[stack].added[kind]['tensor']}"

    def of_run(self, run: Run) -> Iterator[TensorSpec]:
        """The tensors that a run is read from, without those that carry its biases."""
        if KINDS[run.kind].form == "embedding":
            return
        kinds = [WRITTEN[run.kind]] if run.kind in WRITTEN else CARRIED.get(run.kind, (run.kind,))[:1]
        for (kind, place, _), spec in self.specs.items():
            if kind in kinds and place == run.place:
                yield spec if KINDS[run.kind].form == "weight" else spec.of_bias(written=run.kind in WRITTEN)

    def inputs_first(self) -> dict[str, bool]:
        """Name of a matrix in a layer -> whether it is stored as input x output, as Conv1D has it."""
        return {
            self.tensor(place, spec, expert): spec.inputs_first(KINDS[kind].role)
            for (kind, place, _), spec in self.specs.items()
            for expert in range(self.sizes[place[0]]["n_experts"] if spec.per_expert else 1)
        }

    def unknown_parts(self, files: Tensors, known: Collection[str]) -> dict[str, int]:
        """Parts of layers with matrices that are not ``known``, such as ``h.*.crossattention.*`` -> how many."""
        places = {self.of_layer(*place): self.of_layer(place[0], "*") for place in self.places()}
        found: Counter[str] = Counter()
        for name in files.names():
            matrix = name.endswith(".weight") and len(files.shape(name)) == 2  # not a mask, which some files hold
            if matrix and name not in known and not _BESIDE_VECTORS.search(name):
                place = next((place for place in places if name.startswith(place)), None)
                if place is not None:
                    found[f"{places[place]}{name.removeprefix(place).split('.')[0]}.*"] += 1
        return dict(found)

    # ---- modules, for forward passes

    def blocks(self) -> list[str]:
        """What transformers calls the modules of the layers, first to last, below the model's own name.

        Raises FamilyError where the model is not a single stack of layers of their own.
        """
        if list(self.stacks) != [None]:
            raise FamilyError(f"{self.source}: it has several stacks of layers; only models of one stack are run")
        n_layers = self.sizes[None]["n_layers"]
        names = [self.stacks[None].layer.format(layer=layer).rstrip(".") for layer in range(n_layers)]
        if len(set(names)) < n_layers or getattr(self.config, "num_hidden_layers", n_layers) != n_layers:
            raise FamilyError(f"{self.source}: its layers share their weights; only models whose layers do not are run")
        return names

    def module(self, kind: str, layer: int) -> str | None:
        """Below its layer, the module whose weights hold a kind's vectors; None where each expert has some."""
        for owner in (None, "head", "kv_head", "expert"):
            spec = self.specs.get((kind, (None, layer), owner))
            if spec is not None and not spec.per_expert:
                return spec.tensor.removesuffix(".weight")
        return None
