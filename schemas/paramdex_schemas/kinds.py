"""The kinds of parameters a transformer has: what each does with the residual stream, and what it belongs to.

Every list of kinds, in a layout, a table or a message, is in the order of ``KINDS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Kind:
    """A kind of parameter: what it does with the residual stream and what owns one; ``form`` is what it is made of.

    The vectors of ``owner`` ``layer`` belong to a layer or to one expert of it, those of ``model`` to no layer.
    """

    name: str
    role: Literal["reads", "writes"]
    owner: Literal["layer", "head", "kv_head", "expert", "model"]
    form: Literal["weight", "bias", "embedding"]
    says: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in [
        Kind("ff_key", "reads", "layer", "weight", "what a feed-forward neuron reads"),
        Kind("ff_gate", "reads", "layer", "weight", "what a feed-forward neuron's gate reads"),
        Kind("ff_value", "writes", "layer", "weight", "what a feed-forward neuron writes"),
        Kind("attn_query", "reads", "head", "weight", "what one query dimension of a head reads"),
        Kind("attn_key", "reads", "kv_head", "weight", "what one key dimension of a head reads"),
        Kind("attn_value", "reads", "kv_head", "weight", "what one value dimension of a head reads"),
        Kind("attn_output", "writes", "head", "weight", "what one value dimension of a head writes"),
        Kind("router", "reads", "expert", "weight", "what calls an expert"),
        Kind("ff_bias", "writes", "layer", "bias", "what a feed-forward layer writes whatever it reads"),
        Kind("attn_bias", "writes", "layer", "bias", "what an attention layer writes whatever it reads"),
        Kind("attn_query_bias", "reads", "head", "bias", "what a head attends to whatever the query"),
        Kind("attn_key_bias", "reads", "head", "bias", "which queries a head's key bias answers, whatever the key"),
        Kind("attn_value_bias", "writes", "head", "bias", "what a head writes whatever it attends to"),
        Kind("position", "writes", "model", "embedding", "what a position adds"),
        Kind("token_type", "writes", "model", "embedding", "what a token type adds"),
    ]
}
"""Every kind, in the order of the numbering."""

MATRICES = {"QK": ("attn_query", "attn_key"), "VO": ("attn_value", "attn_output")}
"""A head's two matrices -> the kinds that are their left and right factor."""
