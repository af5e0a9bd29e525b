"""Addresses read back as they are written, and a model's numbering counts every parameter once, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdex_schemas import KINDS, Address, AddressError, ModelShape

numbers = st.integers(0, 999_999_999)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)
addresses = st.one_of(
    st.builds(Address, names),
    st.builds(Address, names, numbers),
    st.builds(Address, names, numbers, numbers),
    st.builds(Address, names, numbers, st.none() | numbers, st.sampled_from(list(KINDS)), numbers),
)
shapes = st.builds(
    lambda layers, groups, group, d_head, d_ff, gated: ModelShape(
        layers, 8, groups * group, groups, d_head, d_ff, gated=gated
    ),
    *(st.integers(1, 4) for _ in range(5)),
    st.booleans(),
)


@given(addresses)
def test_what_is_written_reads_back(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Address.parse(f"  {address}\n") == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("m", Address("m")),
        ("m/L3", Address("m", 3)),
        ("m/L03/H5", Address("m", 3, 5)),
        ("m/L3/ff_value/1024", Address("m", 3, None, "ff_value", 1024)),
        ("m/L3/H5/attn_query/17", Address("m", 3, 5, "attn_query", 17)),
    ],
)
def test_forms(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert address.is_head == (text == "m/L03/H5")
    assert address.is_parameter == (address.kind is not None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not an address; write MODEL"),
        ("/L1/H2", "is not an address"),
        ("m/", "is not an address"),
        ("m/l3/H5", "is not an address"),
        ("m/L3/H5/QK", "is not an address"),
        ("m/L-1/H0", "is not an address"),
        ("m/L3/ff_value/1/2", "is not an address"),
        ("m/L٣/H0", "is not an address"),
        ("m/L" + "9" * 5000, "is not an address"),
        ("m/H3", "names no layer"),
        ("m/ff_value/3", "names no layer"),
        ("m/L3/ff_value", "names no number within ff_value; write m/L3/ff_value/0, say"),
    ],
)
def test_what_is_no_address(text: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        Address.parse(text)


def enumerated(shape: ModelShape) -> list[Address]:
    """Every parameter in the order of its number, a shared vector under the first head that uses it."""
    found = []
    for kind in KINDS:
        for layer in range(shape.n_layers):
            if kind.startswith("ff_"):
                if shape.gated or kind != "ff_gate":
                    found += [Address("m", layer, None, kind, i) for i in range(shape.d_ff)]
                continue
            shared = kind in ("attn_key", "attn_value")
            heads = range(0, shape.n_heads, shape.n_heads // shape.n_kv_heads) if shared else range(shape.n_heads)
            found += [Address("m", layer, head, kind, j) for head in heads for j in range(shape.d_head)]
    return found


@given(shapes)
def test_rows_count_every_parameter_once_and_in_order(shape: ModelShape) -> None:
    everything = enumerated(shape)
    assert [shape.row(address) for address in everything] == list(range(len(everything)))
    assert shape.n_parameters == len(everything)
    for kind, block in shape.blocks.items():
        assert [address.kind for address in everything[block.first : block.first + block.n_rows]] == [
            kind
        ] * block.n_rows


@given(shapes)
def test_rows_of_a_layer_are_in_the_order_of_the_numbering(shape: ModelShape) -> None:
    group = shape.n_heads // shape.n_kv_heads
    for kind in shape.kinds:
        places = [
            (address.head, address.idx) for address in enumerated(shape) if (address.layer, address.kind) == (0, kind)
        ]
        assert [(head, idx) for head, _, idx in shape.rows(kind)] == places
        for head, kv_head, _ in shape.rows(kind):
            assert kv_head == (None if head is None else head // group)


@given(shapes)
def test_every_head_of_a_group_finds_its_shared_vectors(shape: ModelShape) -> None:
    group = shape.n_heads // shape.n_kv_heads
    for head in range(shape.n_heads):
        first = head // group * group
        for kind in ("attn_key", "attn_value"):
            one = Address("m", shape.n_layers - 1, head, kind, shape.d_head - 1)
            other = Address("m", shape.n_layers - 1, first, kind, shape.d_head - 1)
            assert shape.row(one) == shape.row(other)


@given(shapes)
def test_heads_are_numbered_layer_by_layer(shape: ModelShape) -> None:
    heads = [Address("m", layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    assert [shape.head_row(head) for head in heads] == list(range(shape.n_layers * shape.n_heads))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m", "m is not the address of a parameter"),
        ("m/L0/H1", "m/L0/H1 is not the address of a parameter"),
        ("m/L0/ff_gate/0", "m has no parameters of kind 'ff_gate'; did you mean ff_value or ff_key?"),
        ("m/L2/ff_value/0", "m/L2/ff_value/0: m has layers L0 to L1"),
        ("m/L0/ff_value/9", "m/L0/ff_value/9: ff_value of m goes from 0 to 8"),
        ("m/L0/H1/ff_value/0", "m/L0/H1/ff_value/0: ff_value belongs to no head; write it without /H1"),
        ("m/L1/attn_key/0", "m/L1/attn_key/0: attn_key belongs to a head; write m/L1/H0/attn_key/0, say"),
        ("m/L0/H4/attn_key/0", "m/L0/H4/attn_key/0: m has heads H0 to H3 in each layer"),
        ("m/L0/H3/attn_key/5", "m/L0/H3/attn_key/5: attn_key of a head goes from 0 to 4"),
    ],
)
def test_parameters_that_a_model_does_not_have(text: str, message: str) -> None:
    shape = ModelShape(2, 8, 4, 2, 5, 9, gated=False)
    with pytest.raises(AddressError) as caught:
        shape.row(Address.parse(text))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [("m/L2/H0", "m/L2/H0: m has layers L0 to L1"), ("m/L0/H4", "m/L0/H4: m has heads H0 to H3 in each layer")],
)
def test_heads_that_a_model_does_not_have(text: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        ModelShape(2, 8, 4, 2, 5, 9, gated=False).head_row(Address.parse(text))
    assert str(caught.value) == message
