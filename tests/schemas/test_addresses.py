"""Addresses read back as they are written, and a model's numbering counts every parameter once, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdex_schemas import KINDS, Address, AddressError, Layout, Run
from paramdex_schemas.addresses import STACKS

numbers = st.integers(0, 999_999_999)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)
stacks = st.none() | st.sampled_from(STACKS)
addresses = st.one_of(
    st.builds(Address, names, stack=stacks),
    st.builds(Address, names, numbers, stack=stacks),
    st.builds(Address, names, numbers, numbers, stack=stacks),
    st.builds(Address, names, numbers, stack=stacks, expert=numbers),
    st.builds(Address, names, st.none() | numbers, kind=st.sampled_from(list(KINDS)), idx=numbers, stack=stacks),
    st.builds(Address, names, numbers, numbers, st.sampled_from(list(KINDS)), numbers, stacks),
    st.builds(Address, names, numbers, st.none(), st.sampled_from(list(KINDS)), numbers, stacks, numbers),
)


@dataclass(frozen=True)
class Part:
    """One stack of a model, as a person would describe it.

    ``layers`` says what feed-forward part each layer has: dense; experts; shared, which is experts and a part that
    every token passes; or none, as in cross attention.
    """

    name: str | None = None
    layers: tuple[str, ...] = ("dense", "dense")
    n_kv_heads: int = 2
    group: int = 2
    d_head: int = 5
    d_ff: int = 9
    n_experts: int = 3
    d_expert: int = 4
    d_shared: int = 6
    gated: bool = False
    biases: frozenset[str] = frozenset()
    positions: int = 0
    token_types: int = 0

    def owned(self, kind: str, sort: str) -> list[tuple[int | None, int | None, int]]:
        """(head, expert, idx) of every parameter of a kind in a layer of this sort, in order."""
        form = KINDS[kind].form
        if (form == "bias" and kind not in self.biases) or (kind == "ff_gate" and not self.gated):
            return []
        heads = range(self.n_kv_heads * self.group)
        if kind in ("attn_query", "attn_output"):
            return [(head, None, j) for head in heads for j in range(self.d_head)]
        if kind in ("attn_key", "attn_value"):
            return [(head, None, j) for head in heads[:: self.group] for j in range(self.d_head)]
        if kind == "attn_bias":
            return [(None, None, 0)]
        if kind.startswith("attn_"):
            return [(head, None, 0) for head in heads]
        of_all = {"dense": self.d_ff, "shared": self.d_shared}.get(sort, 0)
        of_expert = self.d_expert if sort in ("experts", "shared") else 0
        if kind == "router":  # what every token passes has a gate of its own
            of_all, of_expert = int(sort == "shared"), min(1, of_expert)
        elif kind == "ff_bias":
            of_all, of_expert = min(1, of_all), min(1, of_expert)
        experts = [(None, expert, i) for expert in range(self.n_experts) for i in range(of_expert)]
        return [(None, None, i) for i in range(of_all)] + experts


def enumerated(parts: list[Part]) -> list[Address]:
    """Every parameter in the order of its number, a shared vector under the first head that uses it."""
    found = []
    for kind in KINDS:
        for part in parts:
            if KINDS[kind].owner == "model":
                rows = {"position": part.positions, "token_type": part.token_types}[kind]
                found += [Address("m", kind=kind, idx=i, stack=part.name) for i in range(rows)]
                continue
            for layer, sort in enumerate(part.layers):
                for head, expert, i in part.owned(kind, sort):
                    found.append(Address("m", layer, head, kind, i, part.name, expert))
    return found


def layout_of(parts: list[Part]) -> Layout:
    """The layout of a model: a run for all that a layer has of one kind under owners of one sort."""
    by_name = {part.name: part for part in parts}
    runs = []
    of_one_run = lambda address: (address.kind, address.stack, address.layer, address.expert is not None)  # noqa: E731
    for (kind, stack, layer, of_experts), found in groupby(enumerated(parts), of_one_run):
        owners = [(address.head, address.expert) for address in found]
        n_owners, group = len(set(owners)), 1
        owner = "expert" if of_experts else None
        if owners[0][0] is not None:
            owner, group = "kv_head" if kind in ("attn_key", "attn_value") else "head", by_name[stack].group
        runs.append(Run(kind, stack, layer, owner, n_owners, len(owners) // n_owners, group))
    return Layout.number(runs)


few = st.integers(1, 4)
BIASES = [kind for kind in KINDS if KINDS[kind].form == "bias"]


def parts_of(name: str | None, sorts: list[str]) -> st.SearchStrategy[Part]:
    layers = st.lists(st.sampled_from(sorts), min_size=1, max_size=4).map(tuple)
    added = st.integers(0, 3)
    sizes = [few] * 7
    return st.builds(
        Part, st.just(name), layers, *sizes, st.booleans(), st.frozensets(st.sampled_from(BIASES)), added, added
    )


def cross(part: Part) -> Part:
    """A stack of attention only, which adds no positions of its own."""
    return replace(part, name="cross", layers=("none",) * len(part.layers), positions=0, token_types=0)


models = st.one_of(
    parts_of(None, ["dense"]).map(lambda part: [part]),
    parts_of(None, ["dense", "experts", "shared"]).map(lambda part: [part]),
    parts_of("encoder", ["dense"]).map(lambda part: [part]),
    st.tuples(parts_of("encoder", ["dense"]), parts_of("decoder", ["dense", "experts"])).map(
        lambda pair: [*pair, cross(pair[1])]
    ),
)
"""Dense models; mixtures of experts, with dense layers among theirs; one stack of an encoder-decoder, and all three."""


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
        ("m/L3/E7", Address("m", 3, expert=7)),
        ("m/L3/ff_value/1024", Address("m", 3, None, "ff_value", 1024)),
        ("m/L3/H5/attn_query/17", Address("m", 3, 5, "attn_query", 17)),
        ("m/L3/E7/ff_value/4", Address("m", 3, None, "ff_value", 4, expert=7)),
        ("m/position/17", Address("m", kind="position", idx=17)),
        ("m/encoder", Address("m", stack="encoder")),
        ("m/encoder/position/17", Address("m", kind="position", idx=17, stack="encoder")),
        ("m/cross/L3/H5", Address("m", 3, 5, stack="cross")),
        ("m/decoder/L3/E7/router/0", Address("m", 3, None, "router", 0, "decoder", 7)),
        ("encoder/encoder/L1", Address("encoder", 1, stack="encoder")),
    ],
)
def test_forms(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert address.is_head == (text in ("m/L03/H5", "m/cross/L3/H5"))
    assert address.is_parameter == (address.kind is not None)


FORMS = (
    "write MODEL, MODEL/L3/H5, MODEL/L3/ff_value/1024, MODEL/L3/H5/attn_query/17, MODEL/L3/E7/ff_value/1024, "
    "MODEL/position/17 or MODEL/encoder/L3/H5"
)


def test_the_forms_that_a_message_gives_are_forms() -> None:
    for form in re.split(", | or ", FORMS.removeprefix("write ")):
        assert str(Address.parse(form)) == form


@pytest.mark.parametrize(
    "text",
    [
        "", "/L1/H2", "m//", "m/l3/QK/l3", "m/L3/H5/QK", "m/L-1/H0", "m/L3/ff_value/1/2", "m/L٣/H0", "m/L" + "9" * 50,
        "m/encodr/L3/H5", "m/L3/encoder/H5", "m/encoder/decoder/L3", "m/L3/H5/E7/ff_key/0", "m/E7/L3", "m/L3/E7/H5",
    ],
)  # fmt: skip
def test_what_has_not_the_form_of_an_address(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert str(caught.value) == f"{text!r} is not an address; {FORMS}"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("m/l3", "m/L3"),
        ("m / L3 / H5", "m/L3/H5"),
        ("M/l3/h5", "M/L3/H5"),
        ("m/L3/FF_VALUE/7", "m/L3/ff_value/7"),
        ("m/l3/e2/ff-value/7/", "m/L3/E2/ff_value/7"),
        ("m/Encoder/l0/H1/attn-query/2", "m/encoder/L0/H1/attn_query/2"),
    ],
)
def test_what_only_case_tells_from_an_address(text: str, meant: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert str(caught.value) == f"{text!r} is not an address; did you mean {meant}?"


@pytest.mark.parametrize("text", ["m/", "m/L3/", " m/L3/H5/ ", "m/L3/ff_value/7/"])
def test_a_slash_at_the_end_changes_nothing(text: str) -> None:
    assert Address.parse(text) == Address.parse(text.strip().rstrip("/"))


def test_an_address_that_is_too_long_is_cut_in_the_message() -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse("m/L" + "9" * 5000)
    assert str(caught.value) == f"'m/L{'9' * 77}'... is not an address; {FORMS}"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": 5}, "model of an address is a text of up to 255 characters, not 5"),
        ({"model": "m", "layer": -1}, "layer of an address must be from 0 to 999,999,999, not -1"),
        ({"model": "m", "layer": True}, "layer of an address must be a whole number, not True"),
        ({"model": "m", "kind": ["QK"]}, r"kind of an address is a text of up to 255 characters, not \['QK'\]"),
        ({"model": "m" * 300}, "model of an address is a text of up to 255 characters, not 'mmm"),
        ({"model": "m", "stack": "enc"}, "stack of an address is encoder, decoder, cross or None, not 'enc'"),
    ],
)
def test_an_address_made_of_wrong_parts(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(AddressError, match=message):
        Address(**parts)


def test_an_address_made_of_numbers_of_numpy() -> None:
    made = Address("m", np.int64(3), np.uint8(5))
    assert made == Address.parse("m/L3/H5")
    assert (type(made.layer), str(made)) == (int, "m/L3/H5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m/H3", f"'m/H3' names no layer; {FORMS}"),
        ("m/E3", f"'m/E3' names no layer; {FORMS}"),
        ("m/encoder/H3/attn_key/0", f"'m/encoder/H3/attn_key/0' names no layer; {FORMS}"),
        ("m/L3/ff_value", "'m/L3/ff_value' names no number within ff_value; write m/L3/ff_value/0, say"),
        ("m/position", "'m/position' names no number within position; write m/position/0, say"),
    ],
)
def test_addresses_that_lack_a_part(text: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert str(caught.value) == message


@given(models)
def test_rows_count_every_parameter_once_and_in_order(parts: list[Part]) -> None:
    layout, everything = layout_of(parts), enumerated(parts)
    assert [layout.row(address) for address in everything] == list(range(len(everything)))
    assert layout.n_parameters == len(everything)
    assert layout.kinds == [kind for kind in KINDS if any(address.kind == kind for address in everything)]
    for kind, block in layout.blocks.items():
        kinds = [address.kind for address in everything[block.first : block.first + block.n_rows]]
        assert kinds == [kind] * sum(address.kind == kind for address in everything)


@given(models)
def test_runs_give_their_rows_in_the_order_of_the_numbering(parts: list[Part]) -> None:
    """Whole and owner by owner; a vector of a head says which key/value head it has."""
    everything = iter(enumerated(parts))
    groups = {part.name: part.group for part in parts}
    for run in layout_of(parts).runs:
        rows = list(run.rows())
        assert len(rows) == run.n_rows
        assert rows == [row for owner in range(run.n_owners) for row in run.rows(range(owner, owner + 1))]
        for head, kv_head, expert, idx in rows:
            assert Address("m", run.layer, head, run.kind, idx, run.stack, expert) == next(everything)
            assert kv_head == (None if head is None else head // groups[run.stack])
    assert next(everything, None) is None


@given(models)
def test_places_cut_a_kind_into_its_layers(parts: list[Part]) -> None:
    layout, everything = layout_of(parts), enumerated(parts)
    for kind in layout.kinds:
        own = [(address.stack, address.layer) for address in everything if address.kind == kind]
        places = layout.places(kind)
        assert list(places) == list(dict.fromkeys(own))
        assert own == [place for place, (start, end) in places.items() for _ in range(start, end)]
        assert [start for start, _ in places.values()] == [0, *(end for _, end in places.values())][:-1]


@given(models)
def test_stacks_and_layers_are_counted(parts: list[Part]) -> None:
    layout = layout_of(parts)
    assert layout.stacks == [part.name for part in parts if part.name is not None]
    assert layout.n_layers() == max(len(part.layers) for part in parts)
    assert [layout.n_layers(part.name) for part in parts] == [len(part.layers) for part in parts]


@given(models)
def test_every_head_of_a_group_finds_its_shared_vectors(parts: list[Part]) -> None:
    layout = layout_of(parts)
    for part in parts:
        for head in range(part.n_kv_heads * part.group):
            first = head // part.group * part.group
            for kind in ("attn_key", "attn_value"):
                own = Address("m", len(part.layers) - 1, head, kind, part.d_head - 1, part.name)
                assert layout.row(own) == layout.row(replace(own, head=first))


@given(models)
def test_heads_are_numbered_layer_by_layer(parts: list[Part]) -> None:
    layout = layout_of(parts)
    places = [(part.name, layer) for part in parts for layer in range(len(part.layers))]
    n_heads = {part.name: part.n_kv_heads * part.group for part in parts}
    heads = [Address("m", layer, head, stack=stack) for stack, layer in places for head in range(n_heads[stack])]
    assert [layout.head_row(head) for head in heads] == list(range(layout.n_heads))
    assert layout.attention_places == places
    for place in places:
        assert layout.heads(place) == next(run for run in layout.of("attn_query") if run.place == place)


small, kinds = st.integers(0, 4), st.sampled_from(list(KINDS))
nearby = st.one_of(
    st.builds(Address, st.just("m"), st.none() | small, st.none(), kinds, small, stacks),
    st.builds(Address, st.just("m"), small, small, kinds, small, stacks),
    st.builds(Address, st.just("m"), small, st.none(), kinds, small, stacks, small),
)
"""Parameters that the models above have as often as not."""


@given(models, nearby)
def test_an_address_is_the_models_or_is_answered_with_one(parts: list[Part], address: Address) -> None:
    """What a message tells to write is there; a message that tells no address says what there is."""
    layout = layout_of(parts)
    there = {layout.row(address): address for address in enumerated(parts)}
    try:
        row = layout.row(address)
    except AddressError as error:
        message = str(error)
        assert message.startswith((f"{address}: ", "m has no parameters of kind "))
        assert address not in there.values()
        written = re.search(r"; write (\S+), say$|; write ([^ ,]+)$", message)
        if written is None:
            ends = "from 0 to N|L0 to LN|E0 to EN|H0 to HN in each layer|write it without /(encoder|decoder|cross)"
            assert re.search(f"({ends})$|; (there are|did you mean) ", re.sub(r"\d+$|(?<=to H)\d+", "N", message))
        else:
            better = Address.parse(written[1] or written[2])
            assert better.kind == address.kind
            layout.row(better)
    else:
        first = address.head
        if address.kind in ("attn_key", "attn_value"):
            (group,) = {part.group for part in parts if part.name == address.stack}
            first = address.head // group * group
        assert there[row] == replace(address, head=first)


@given(models)
def test_examples_are_of_what_they_are_asked_for(parts: list[Part]) -> None:
    layout = layout_of(parts)
    within = [Address("m"), *(Address("m", stack=part.name) for part in parts)]
    within += [Address("m", layer, stack=part.name) for part in parts for layer in range(len(part.layers))]
    within += [replace(address, kind=None, idx=None) for address in enumerated(parts) if address.expert is not None]
    for address in within:
        layout.check(address)
        example = layout.example(address)
        layout.row(example)
        for name in ("stack", "layer", "expert"):
            assert getattr(address, name) in (None, getattr(example, name))
        feed_forward = {part.name: part.layers for part in parts}[example.stack][example.layer] != "none"
        assert example.kind == ("ff_value" if feed_forward else "attn_query")


DENSE = Part(biases=frozenset(["ff_bias", "attn_query_bias"]), positions=8, token_types=1)
MIXED = Part(layers=("dense", "experts", "shared"), gated=True, biases=frozenset(["ff_bias"]))
ENCODER, DECODER = Part("encoder", positions=4), Part("decoder", ("dense", "dense", "dense"), positions=6)
GIVEN = {
    "m": [DENSE],
    "mix": [MIXED],
    "both": [ENCODER, DECODER, cross(DECODER)],
    "one": [ENCODER],
}
"""The models of the messages below."""


@pytest.mark.parametrize("text", ["m", "m/L0/H1", "both/encoder", "mix/L1/E0"])
def test_what_is_no_parameter_has_no_row(text: str) -> None:
    address = Address.parse(text)
    with pytest.raises(AddressError) as caught:
        layout_of(GIVEN[address.model]).row(address)
    assert str(caught.value) == f"{text} is not the address of a parameter"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("m/L0/ff_gate/0", "did you mean ff_value or ff_key?"),
        ("one/encoder/3", "there are ff_key, ff_value, attn_query, attn_key, attn_value, attn_output, position"),
    ],
)
def test_kinds_that_a_model_does_not_have(text: str, kinds: str) -> None:
    address = Address.parse(text)
    with pytest.raises(AddressError) as caught:
        layout_of(GIVEN[address.model]).row(address)
    assert str(caught.value) == f"{address.model} has no parameters of kind {address.kind!r}; {kinds}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m/L2/ff_value/0", "m has layers L0 to L1"),
        ("m/L0/ff_value/9", "ff_value of m/L0 goes from 0 to 8"),
        ("m/L0/H1/ff_value/9", "ff_value belongs to no head; write m/L0/ff_value/0, say"),
        ("m/L0/H1/ff_value/3", "ff_value belongs to no head; write m/L0/ff_value/3, say"),
        ("m/L1/attn_key/2", "attn_key belongs to a head; write m/L1/H0/attn_key/2, say"),
        ("m/L1/E3/attn_key/0", "attn_key belongs to a head; write m/L1/H0/attn_key/0, say"),
        ("m/L1/E0/ff_key/0", "ff_key of m/L1 belongs to no expert; write m/L1/ff_key/0, say"),
        ("m/L0/H4/attn_key/0", "m has heads H0 to H3 in each layer"),
        ("m/L0/H4/attn_query/0", "m has heads H0 to H3 in each layer"),
        ("m/L0/H3/attn_key/5", "attn_key of m/L0/H3 goes from 0 to 4"),
        ("m/L0/ff_bias/5", "m/L0 has one ff_bias; write m/L0/ff_bias/0"),
        ("m/L0/H3/attn_query_bias/5", "m/L0/H3 has one attn_query_bias; write m/L0/H3/attn_query_bias/0"),
        ("m/ff_value/3", "ff_value belongs to a layer; write m/L0/ff_value/3, say"),
        ("m/attn_query/3", "attn_query belongs to a layer; write m/L0/H0/attn_query/3, say"),
        ("m/position/8", "position of m goes from 0 to 7"),
        ("m/token_type/1", "m has one token_type; write m/token_type/0"),
        ("m/L1/position/3", "position belongs to no layer; write m/position/3, say"),
        ("m/L1/H0/position/9", "position belongs to no layer; write m/position/0, say"),
        ("m/L9/position/3", "position belongs to no layer; write m/position/3, say"),
        ("m/encoder/L0/ff_key/0", "m has one stack; write it without /encoder"),
        ("mix/L0/E1/ff_key/3", "ff_key of mix/L0 belongs to no expert; write mix/L0/ff_key/3, say"),
        ("mix/L1/ff_key/3", "ff_key of mix/L1 belongs to an expert; write mix/L1/E0/ff_key/3, say"),
        ("mix/L1/E3/ff_key/0", "mix/L1 has experts E0 to E2"),
        ("mix/L1/E2/ff_key/4", "ff_key of mix/L1/E2 goes from 0 to 3"),
        ("mix/L2/ff_key/6", "ff_key of mix/L2 goes from 0 to 5"),
        ("mix/L2/H1/ff_key/5", "ff_key belongs to no head; write mix/L2/ff_key/5, say"),
        ("mix/L1/H1/ff_key/3", "ff_key belongs to no head; write mix/L1/E0/ff_key/3, say"),
        ("mix/L2/E1/ff_bias/4", "mix/L2/E1 has one ff_bias; write mix/L2/E1/ff_bias/0"),
        ("mix/L0/E1/router/0", "mix/L0 has no router; write mix/L1/E1/router/0, say"),
        ("mix/L1/router/2", "router of mix/L1 belongs to an expert; write mix/L1/E0/router/0, say"),
        ("mix/L2/router/2", "mix/L2 has one router; write mix/L2/router/0"),
        ("mix/L1/E2/router/2", "mix/L1/E2 has one router; write mix/L1/E2/router/0"),
        ("both/L1/ff_key/3", "both has the stacks encoder, decoder, cross; write both/encoder/L1/ff_key/3, say"),
        ("both/L2/ff_key/3", "both has the stacks encoder, decoder, cross; write both/decoder/L2/ff_key/3, say"),
        ("both/position/5", "both has the stacks encoder, decoder, cross; write both/encoder/position/0, say"),
        ("both/cross/L1/ff_key/3", "both/cross/L1 has no ff_key; write both/encoder/L1/ff_key/3, say"),
        ("both/cross/position/3", "both/cross has no position; write both/encoder/position/3, say"),
        ("both/encoder/position/4", "position of both/encoder goes from 0 to 3"),
        ("both/encoder/L2/ff_key/0", "both/encoder has layers L0 to L1"),
        ("both/decoder/ff_key/0", "ff_key belongs to a layer; write both/decoder/L0/ff_key/0, say"),
        ("both/cross/L0/H4/attn_key/0", "both/cross has heads H0 to H3 in each layer"),
        ("one/decoder/L1/ff_key/3", "one has the stack encoder; write one/encoder/L1/ff_key/3, say"),
        ("one/L1/ff_key/3", "one has the stack encoder; write one/encoder/L1/ff_key/3, say"),
    ],
)
def test_parameters_that_a_model_does_not_have(text: str, message: str) -> None:
    address = Address.parse(text)
    with pytest.raises(AddressError) as caught:
        layout_of(GIVEN[address.model]).row(address)
    assert str(caught.value) == f"{text}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m/L2/H0", "m has layers L0 to L1"),
        ("m/L0/H4", "m has heads H0 to H3 in each layer"),
        ("m/decoder/L0/H0", "m has one stack; write it without /decoder"),
        ("m/L2", "m has layers L0 to L1"),
        ("m/cross", "m has one stack; write it without /cross"),
        ("m/L0/E0", "m/L0 has no experts"),
        ("mix/L0/E0", "mix/L0 has no experts"),
        ("mix/L1/E3", "mix/L1 has experts E0 to E2"),
        ("mix/L3/E0", "mix has layers L0 to L2"),
        ("both/L2/H0", "both has the stacks encoder, decoder, cross; write both/decoder/L2/H0, say"),
        ("both/L0", "both has the stacks encoder, decoder, cross; write both/encoder/L0, say"),
        ("both/encoder/L2/H0", "both/encoder has layers L0 to L1"),
        ("both/cross/L3", "both/cross has layers L0 to L2"),
        ("both/cross/L2/H4", "both/cross has heads H0 to H3 in each layer"),
        ("both/cross/L2/E0", "both/cross/L2 has no experts"),
        ("one/cross", "one has the stack encoder; write one/encoder, say"),
        ("one/L0/H0", "one has the stack encoder; write one/encoder/L0/H0, say"),
        ("m/L2/ff_value/0", "m has layers L0 to L1"),
    ],
)
def test_what_else_a_model_does_not_have(text: str, message: str) -> None:
    address = Address.parse(text)
    layout = layout_of(GIVEN[address.model])
    for check in [layout.check, *([layout.head_row] if address.is_head else [])]:
        with pytest.raises(AddressError) as caught:
            check(address)
        assert str(caught.value) == f"{text}: {message}"


@pytest.mark.parametrize(
    "text",
    [
        "m", "m/L1", "m/L1/H3", "m/position/7", "mix/L1/E2", "mix/L2/E0", "both/cross", "both/decoder/L2",
        "both/cross/L2/H3", "both/decoder/position/5", "one/encoder/L1/H0", "mix/L2/E2/router/0", "mix/L2/router/0",
        "mix/L2/ff_bias/0", "mix/L2/E1/ff_bias/0",
    ],
)  # fmt: skip
def test_what_a_model_has(text: str) -> None:
    address = Address.parse(text)
    layout_of(GIVEN[address.model]).check(address)


def test_a_layer_without_heads() -> None:
    layout = Layout.number([Run("ff_key", None, layer, None, 1, 4, 1) for layer in (0, 1)])
    with pytest.raises(AddressError) as caught:
        layout.head_row(Address("m", 1, 0))
    assert str(caught.value) == "m/L1/H0: m/L1 has no heads"
