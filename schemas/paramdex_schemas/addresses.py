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

from paramdex_schemas.checks import check_text, whole_number
from paramdex_schemas.errors import AddressError, quoted

_MOST = 999_999_999
"""The largest number in an address."""
_LONGEST = 255
"""Characters of a name, of which file systems take no more."""
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
    """The parts of an address; a part that is not given is None. Raises AddressError for a part of another type."""

    model: str
    layer: int | None = None
    head: int | None = None
    kind: str | None = None
    idx: int | None = None
    stack: str | None = None
    expert: int | None = None

    def __post_init__(self) -> None:
        for name in ("layer", "head", "idx", "expert"):
            number = getattr(self, name)
            if number is not None and not (type(number) is int and 0 <= number <= _MOST):
                object.__setattr__(self, name, whole_number(f"{name} of an address", number, 0, _MOST, AddressError))
        for name in ("model", "kind"):
            text = getattr(self, name)
            if (type(text) is str and text.isascii() and len(text) <= _LONGEST) or (text is None and name == "kind"):
                continue
            wrong = AddressError(f"{name} of an address is a text of up to {_LONGEST} characters, not {quoted(text)}")
            text = check_text(text, wrong)
            if len(text) > _LONGEST:
                raise wrong
            object.__setattr__(self, name, text)
        if self.stack is not None and not (isinstance(self.stack, str) and self.stack in STACKS):
            raise AddressError(f"stack of an address is {', '.join(STACKS)} or None, not {quoted(self.stack)}")

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """Read an address; what is one is given back.

        >>> str(Address.parse("tiny-a/L03/H5/attn_query/17/"))
        'tiny-a/L3/H5/attn_query/17'

        Raises AddressError where ``text`` has not the form of an address.
        """
        if isinstance(text, Address):
            return text
        text = check_text(text, AddressError(f"an address is text, not {quoted(text)}; write {FORMS}"))
        typed = text.strip().removesuffix("/")
        match = _GRAMMAR.fullmatch(typed)
        if match is None:
            meant = _as_addresses_are_written(typed)
            say = f"write {FORMS}" if meant is None else f"did you mean {meant}?"
            raise AddressError(f"{quoted(text)} is not an address; {say}")
        parts = match.groupdict()
        numbers = {
            name: None if parts[name] is None else int(parts[name]) for name in ("layer", "head", "idx", "expert")
        }
        address = cls(parts["model"], kind=parts["kind"], stack=parts["stack"], **numbers)
        if address.layer is None and (address.head is not None or address.expert is not None):
            raise AddressError(f"{quoted(text)} names no layer; write {FORMS}")
        if address.kind is not None and address.idx is None:
            raise AddressError(f"{quoted(text)} names no number within {address.kind}; write {typed}/0, say")
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


def _as_addresses_are_written(text: str) -> str | None:
    """An address that differs from ``text`` in nothing but case, spaces and ``-`` for ``_``; None where there is none.

    >>> _as_addresses_are_written("tiny-a/l3/FF-value/7")
    'tiny-a/L3/ff_value/7'
    """
    model, *parts = text.replace(" ", "").split("/")
    written = [part.upper() if re.fullmatch(r"[lhe][0-9]+", part) else part for part in parts]
    written = [part if re.fullmatch(r"[LHE][0-9]+", part) else part.lower().replace("-", "_") for part in written]
    meant = "/".join([model, *written])
    match = _GRAMMAR.fullmatch(meant)
    return meant if match is not None and (match["kind"] is None) == (match["idx"] is None) else None
