"""Addresses: the names of models, heads and parameters, as a person types them.

    tiny-a                      a model
    tiny-a/L3                   a layer
    tiny-a/L3/H5                a head
    tiny-a/L3/ff_value/1024     a parameter of the feed-forward part
    tiny-a/L3/H5/attn_query/17  a parameter of a head
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paramdex_schemas.errors import AddressError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_GRAMMAR = re.compile(
    r"(?P<model>[^/]+)"
    r"(?:/L(?P<layer>[0-9]{1,9}))?"
    r"(?:/H(?P<head>[0-9]{1,9}))?"
    r"(?:/(?P<kind>[a-z_]+)(?:/(?P<idx>[0-9]{1,9}))?)?"
)
FORMS = "MODEL, MODEL/L3/H5, MODEL/L3/ff_value/1024 or MODEL/L3/H5/attn_query/17"


@dataclass(frozen=True)
class Address:
    """The parts of an address; a part that is not given is None."""

    model: str
    layer: int | None = None
    head: int | None = None
    kind: str | None = None
    idx: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        >>> Address.parse("tiny-a/L3/H5/attn_query/17")
        Address(model='tiny-a', layer=3, head=5, kind='attn_query', idx=17)

        Raises AddressError where ``text`` has not the form of an address.
        """
        match = _GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise AddressError(f"{text!r} is not an address; write {FORMS}")
        parts = match.groupdict()
        numbers = {name: None if parts[name] is None else int(parts[name]) for name in ("layer", "head", "idx")}
        address = cls(parts["model"], numbers["layer"], numbers["head"], parts["kind"], numbers["idx"])
        if address.layer is None and (address.head is not None or address.kind is not None):
            raise AddressError(f"{text!r} names no layer; write {FORMS}")
        if address.kind is not None and address.idx is None:
            raise AddressError(f"{text!r} names no number within {address.kind}; write {text.strip()}/0, say")
        return address

    def __str__(self) -> str:
        parts = [self.model]
        if self.layer is not None:
            parts.append(f"L{self.layer}")
        if self.head is not None:
            parts.append(f"H{self.head}")
        if self.kind is not None:
            parts += [self.kind, str(self.idx)]
        return "/".join(parts)

    @property
    def is_head(self) -> bool:
        return self.head is not None and self.kind is None

    @property
    def is_parameter(self) -> bool:
        return self.kind is not None
