"""Addresses: the names of models, heads and parameters, as a person types them.

    tiny-a                       a model
    tiny-a/L3                    a layer
    tiny-a/L3/H5                 a head
    tiny-a/L3/ff_value/1024      a parameter of the feed-forward part
    tiny-a/L3/H5/attn_query/17   a parameter of a head
    mix/L3/E7/ff_value/1024      a parameter of an expert
    tiny-a/position/17           a parameter of no layer
    t5/decoder/L3/H5             a head of one of the stacks of an encoder-decoder: encoder, decoder or cross, the
                                 decoder's attention to the encoder
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paramdex_schemas.errors import AddressError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
STACKS = ("encoder", "decoder", "cross")
"""The stacks of an encoder-decoder; a model with one stack has no name for it."""
_GRAMMAR = re.compile(
    r"(?P<model>[^/]+)"
    rf"(?:/(?P<stack>{'|'.join(STACKS)}))?"
    r"(?:/L(?P<layer>[0-9]{1,9}))?"
    r"(?:/H(?P<head>[0-9]{1,9})|/E(?P<expert>[0-9]{1,9}))?"
    r"(?:/(?P<kind>[a-z_]+)(?:/(?P<idx>[0-9]{1,9}))?)?"
)
FORMS = (
    "MODEL, MODEL/L3/H5, MODEL/L3/ff_value/1024, MODEL/L3/H5/attn_query/17, MODEL/L3/E7/ff_value/1024, "
    "MODEL/position/17 or MODEL/encoder/L3/H5"
)
"""Every form of an address that has something to show."""


@dataclass(frozen=True)
class Address:
    """The parts of an address; a part that is not given is None."""

    model: str
    layer: int | None = None
    head: int | None = None
    kind: str | None = None
    idx: int | None = None
    stack: str | None = None
    expert: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        >>> str(Address.parse("tiny-a/L03/H5/attn_query/17"))
        'tiny-a/L3/H5/attn_query/17'

        Raises AddressError where ``text`` has not the form of an address.
        """
        if not isinstance(text, str):
            raise AddressError(f"an address is text, not {text!r}; write {FORMS}")
        match = _GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise AddressError(f"{text!r} is not an address; write {FORMS}")
        parts = match.groupdict()
        numbers = {
            name: None if parts[name] is None else int(parts[name]) for name in ("layer", "head", "idx", "expert")
        }
        address = cls(parts["model"], kind=parts["kind"], stack=parts["stack"], **numbers)
        if address.layer is None and (address.head is not None or address.expert is not None):
            raise AddressError(f"{text!r} names no layer; write {FORMS}")
        if address.kind is not None and address.idx is None:
            raise AddressError(f"{text!r} names no number within {address.kind}; write {text.strip()}/0, say")
        return address

    def __str__(self) -> str:
        parts = [self.model]
        if self.stack is not None:
            parts.append(self.stack)
        for letter, number in (("L", self.layer), ("H", self.head), ("E", self.expert)):
            if number is not None:
                parts.append(f"{letter}{number}")
        if self.kind is not None:
            parts += [self.kind, str(self.idx)]
        return "/".join(parts)

    @property
    def is_head(self) -> bool:
        return self.head is not None and self.kind is None

    @property
    def is_parameter(self) -> bool:
        return self.kind is not None
