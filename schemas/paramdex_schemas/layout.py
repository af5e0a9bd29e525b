"""How the parameters of a model are numbered.

A model's parameters take consecutive ``param_id``s, ordered by kind, then layer, then head, then index. So a kind is
one contiguous block, row i of its vector index is ``first_param_id + i``, and a layer is a contiguous range of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from paramdex_schemas.addresses import Address
from paramdex_schemas.errors import AddressError, nearest


@dataclass(frozen=True)
class Kind:
    """A kind of parameter: what it does with the residual stream and of what a layer has one each."""

    name: str
    role: Literal["reads", "writes"]
    per: Literal["neuron", "head", "kv_head"]
    says: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in [
        Kind("ff_key", "reads", "neuron", "what a feed-forward neuron reads"),
        Kind("ff_gate", "reads", "neuron", "what a feed-forward neuron's gate reads"),
        Kind("ff_value", "writes", "neuron", "what a feed-forward neuron writes"),
        Kind("attn_query", "reads", "head", "what one query dimension of a head reads"),
        Kind("attn_key", "reads", "kv_head", "what one key dimension of a head reads"),
        Kind("attn_value", "reads", "kv_head", "what one value dimension of a head reads"),
        Kind("attn_output", "writes", "head", "what one value dimension of a head writes"),
    ]
}
"""Every kind, in the order of the numbering."""

MATRICES = ("QK", "VO")


@dataclass(frozen=True)
class Block:
    """The contiguous run of one kind: ``n_rows`` parameters, ``rows_per_layer`` in each layer."""

    kind: str
    first: int
    n_rows: int
    rows_per_layer: int


@dataclass(frozen=True)
class ModelShape:
    """The numbers that fix how a model's parameters are laid out."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    gated: bool

    @property
    def group(self) -> int:
        """How many query heads share one key/value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def kinds(self) -> list[str]:
        return [name for name in KINDS if name != "ff_gate" or self.gated]

    def rows_per_layer(self, kind: str) -> int:
        per = KINDS[kind].per
        if per == "neuron":
            return self.d_ff
        return (self.n_heads if per == "head" else self.n_kv_heads) * self.d_head

    @property
    def blocks(self) -> dict[str, Block]:
        """The block of every kind; ``first`` counts from the model's own first parameter."""
        blocks = {}
        first = 0
        for kind in self.kinds:
            rows = self.rows_per_layer(kind)
            blocks[kind] = Block(kind, first, rows * self.n_layers, rows)
            first += rows * self.n_layers
        return blocks

    @property
    def n_parameters(self) -> int:
        return sum(block.n_rows for block in self.blocks.values())

    def kv_head(self, head: int) -> int:
        """The key/value head that query head ``head`` uses."""
        return head // self.group

    def rows(self, kind: str) -> Iterator[tuple[int | None, int | None, int]]:
        """(head, kv_head, idx) of every row that a layer has of one kind, in order.

        A vector that belongs to a key/value head carries the first query head that uses it as its head.
        """
        per = KINDS[kind].per
        if per == "neuron":
            yield from ((None, None, i) for i in range(self.d_ff))
        elif per == "head":
            yield from ((h, self.kv_head(h), j) for h in range(self.n_heads) for j in range(self.d_head))
        else:
            yield from ((g * self.group, g, j) for g in range(self.n_kv_heads) for j in range(self.d_head))

    def row(self, address: Address) -> int:
        """The row of a parameter within its model; any head of a group finds its shared key and value vectors.

        Raises AddressError where the model has no such kind, layer, head or index.
        """
        if address.kind is None or address.idx is None:
            raise AddressError(f"{address} is not the address of a parameter")
        if address.kind not in self.kinds:
            raise AddressError(
                f"{address.model} has no parameters of kind {address.kind!r}; {nearest(address.kind, self.kinds)}"
            )
        layer = self.check_layer(address)
        block = self.blocks[address.kind]
        start = block.first + layer * block.rows_per_layer
        if KINDS[address.kind].per == "neuron":
            if address.head is not None:
                raise AddressError(f"{address}: {address.kind} belongs to no head; write it without /H{address.head}")
            if address.idx >= self.d_ff:
                raise AddressError(f"{address}: {address.kind} of {address.model} goes from 0 to {self.d_ff - 1}")
            return start + address.idx
        if address.head is None:
            raise AddressError(
                f"{address}: {address.kind} belongs to a head; "
                f"write {address.model}/L{layer}/H0/{address.kind}/{address.idx}, say"
            )
        head = self.check_head(address)
        if address.idx >= self.d_head:
            raise AddressError(f"{address}: {address.kind} of a head goes from 0 to {self.d_head - 1}")
        owner = head if KINDS[address.kind].per == "head" else self.kv_head(head)
        return start + owner * self.d_head + address.idx

    def head_row(self, address: Address) -> int:
        """The row of a head within its model.

        Raises AddressError where the model has no such layer or head.
        """
        return self.check_layer(address) * self.n_heads + self.check_head(address)

    def check_layer(self, address: Address) -> int:
        if address.layer is None or address.layer >= self.n_layers:
            raise AddressError(f"{address}: {address.model} has layers L0 to L{self.n_layers - 1}")
        return address.layer

    def check_head(self, address: Address) -> int:
        if address.head is None or address.head >= self.n_heads:
            raise AddressError(f"{address}: {address.model} has heads H0 to H{self.n_heads - 1} in each layer")
        return address.head
