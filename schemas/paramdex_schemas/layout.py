"""How the parameters of a model are numbered.

A model's parameters take consecutive ``param_id``s, ordered by kind, then stack, layer, owner (a head or an expert) and
index. So a kind is one contiguous block, row i of its vector index is ``first_param_id + i``, and a layer is a
contiguous range of it. What a layer has may differ from layer to layer (dense and mixture-of-experts layers, the two
stacks of an encoder-decoder), so a layout is a list of runs, which the atlas keeps as a table.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NoReturn

from paramdex_schemas.addresses import STACKS, Address
from paramdex_schemas.checks import suggest
from paramdex_schemas.errors import AddressError, quoted
from paramdex_schemas.kinds import KINDS

OF_STATES = ("entering", "reading")
"""The spaces whose rows are states of the running model: those that enter layer 0 for each token alone, by which its
readers are read, and those that leave it, by which all later ones are.
"""
SPACES = ("output", "input", *OF_STATES)
"""What rows of scores may belong to: the output embedding, the input embedding, or one of ``OF_STATES``."""
Place = tuple[str | None, int | None]
"""A stack (None if the model has only one) and a layer (None for vectors that belong to no layer)."""


def place_name(place: Place) -> str:
    """A place as it stands in an address.

    >>> place_name((None, 3)), place_name(("decoder", 0))
    ('L3', 'decoder/L0')
    """
    stack, layer = place
    return "/".join(part for part in (stack, None if layer is None else f"L{layer}") if part is not None)


@dataclass(frozen=True)
class Run:
    """Consecutive rows: all vectors of one kind in one place whose owners are of one sort.

    ``owner`` says what the rows belong to within the place: a head, a key/value head, an expert, or None. There are
    ``n_owners`` of them with ``size`` rows each. ``group`` is the number of query heads that share a key/value head.
    ``first`` is the row of the first vector within the model, ``space`` what its scores belong to (see ``SPACES``).
    """

    kind: str
    stack: str | None
    layer: int | None
    owner: Literal["head", "kv_head", "expert"] | None
    n_owners: int
    size: int
    group: int
    first: int = 0
    space: str = "output"

    @property
    def place(self) -> Place:
        return self.stack, self.layer

    @property
    def n_rows(self) -> int:
        return self.n_owners * self.size

    def rows(self, owners: range | None = None) -> Iterator[tuple[int | None, int | None, int | None, int]]:
        """(head, kv_head, expert, idx) of every row, in order; with ``owners`` only of their rows.

        The head of a vector of a key/value head is the first query head that uses it.
        """
        for n in range(self.n_owners) if owners is None else owners:
            if self.owner == "head":
                start: tuple[int | None, int | None, int | None] = (n, n // self.group, None)
            elif self.owner == "kv_head":
                start = (n * self.group, n, None)
            else:
                start = (None, None, n if self.owner == "expert" else None)
            yield from ((*start, i) for i in range(self.size))


@dataclass(frozen=True)
class KindBlock:
    """The contiguous run of one kind: ``n_rows`` parameters from the model's ``first``-th on."""

    kind: str
    first: int
    n_rows: int


@dataclass(frozen=True)
class Part:
    """Consecutive rows [start, end) of a kind's block that are scored in one space; the first of them is row ``offset``
    of the kind's vectors in that space.
    """

    space: str
    start: int
    end: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """The numbering of one model's parameters and heads."""

    runs: tuple[Run, ...]

    @classmethod
    def number(cls, runs: list[Run]) -> Layout:
        """The layout of ``runs``, which must be in the order of the numbering; their ``first`` is filled in."""
        first, numbered = 0, []
        for run in runs:
            numbered.append(replace(run, first=first))
            first += run.n_rows
        return cls(tuple(numbered))

    @cached_property
    def _by_kind(self) -> dict[str, list[Run]]:
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.kind, []).append(run)
        return found

    @cached_property
    def kinds(self) -> list[str]:
        return list(self._by_kind)

    @cached_property
    def stacks(self) -> list[str]:
        """The names of the model's stacks; empty if it has only one."""
        return [stack for stack in STACKS if any(run.stack == stack for run in self.runs)]

    @cached_property
    def blocks(self) -> dict[str, KindBlock]:
        return {
            kind: KindBlock(kind, runs[0].first, sum(r.n_rows for r in runs)) for kind, runs in self._by_kind.items()
        }

    @cached_property
    def n_parameters(self) -> int:
        return sum(run.n_rows for run in self.runs)

    @cached_property
    def _parts(self) -> dict[str, list[Part]]:
        found: dict[str, list[Part]] = {}
        for kind, runs in self._by_kind.items():
            parts = found.setdefault(kind, [])
            sizes: dict[str, int] = {}
            for run in runs:
                start, offset = run.first - self.blocks[kind].first, sizes.get(run.space, 0)
                if parts and parts[-1].space == run.space:
                    last = parts.pop()
                    start, offset = last.start, last.offset
                end = run.first - self.blocks[kind].first + run.n_rows
                parts.append(Part(run.space, start, end, offset))
                sizes[run.space] = offset + end - start
        return found

    def parts(self, kind: str) -> list[Part]:
        """The rows of a kind by the space that scores them, in order.

        >>> spaces = ("entering", "reading", "reading")
        >>> runs = [Run("ff_key", None, layer, None, 1, 4, 1, space=space) for layer, space in enumerate(spaces)]
        >>> [(part.space, part.start, part.end, part.offset) for part in Layout.number(runs).parts("ff_key")]
        [('entering', 0, 4, 0), ('reading', 4, 12, 0)]
        """
        return self._parts.get(kind, [])

    def space(self, kind: str, place: Place) -> str:
        """The space that scores the vectors of a kind in a place, which has some."""
        return next(run.space for run in self.of(kind) if run.place == place)

    @cached_property
    def spaces(self) -> list[str]:
        """The spaces that score any of the vectors, in the order of ``SPACES``."""
        found = {run.space for run in self.runs}
        return [space for space in SPACES if space in found]

    def of(self, kind: str) -> list[Run]:
        return self._by_kind.get(kind, []) if isinstance(kind, str) else []

    def places(self, kind: str, layer: int | None = None) -> dict[Place, tuple[int, int]]:
        """The places that have parameters of a kind, with the rows of the kind's block that each has (start, end); with
        a ``layer`` only those of that number, one in each stack.
        """
        found: dict[Place, tuple[int, int]] = {}
        for run in self.of(kind):
            start = run.first - self.blocks[kind].first
            if layer in (None, run.layer):
                found[run.place] = (found.get(run.place, (start, 0))[0], start + run.n_rows)
        return found

    @cached_property
    def _heads(self) -> dict[Place, tuple[int, Run]]:
        """Place -> the number of its first head and its run of attn_query."""
        found, first = {}, 0
        for run in self.of("attn_query"):
            found[run.place] = (first, run)
            first += run.n_owners
        return found

    @property
    def attention_places(self) -> list[Place]:
        """The places that have heads, in the order in which heads are numbered."""
        return list(self._heads)

    @property
    def n_heads(self) -> int:
        """The number of heads of the whole model."""
        return sum(run.n_owners for _, run in self._heads.values())

    def n_layers(self, stack: str | None = None) -> int:
        """The number of layers of a stack; without one, of the largest stack."""
        return self._layers.get(stack, 0) if stack is None or isinstance(stack, str) else 0

    @cached_property
    def _layers(self) -> dict[str | None, int]:
        found: dict[str | None, int] = {}
        for run in self.runs:
            if run.layer is not None:
                found |= {stack: max(found.get(stack, 0), run.layer + 1) for stack in (None, run.stack)}
        return found

    def heads(self, place: Place) -> Run:
        """The run of attn_query in a place; its owners are the heads."""
        return self._heads[place][1]

    def head_row(self, address: Address) -> int:
        """The row of a head within its model.

        Raises AddressError where the model has no such stack, layer or head.
        """
        address = Address.parse(address)
        self._check_layer(address)
        place = (address.stack, address.layer)
        if place not in self._heads:
            raise AddressError(f"{address}: {address.model}/{place_name(place)} has no heads")
        first, run = self._heads[place]
        return first + _owner(address, run)

    def row(self, address: Address) -> int:
        """The row of a parameter within its model; any head of a group finds its shared key and value vectors.

        Raises AddressError where the model has no such kind, stack, layer, head, expert or index.
        """
        address = Address.parse(address)
        if address.kind is None or address.idx is None:
            raise AddressError(f"{address} is not the address of a parameter")
        if address.kind not in self.kinds:
            raise AddressError(
                f"{address.model} has no parameters of kind {quoted(address.kind)}; {suggest(address.kind, self.kinds)}"
            )
        run = self._run(address)
        owner = _owner(address, run)
        if address.idx >= run.size:
            of = replace(address, kind=None, idx=None)
            raise AddressError(
                f"{address}: {address.kind} of {of} goes from 0 to {run.size - 1}"
                if run.size > 1
                else f"{address}: {of} has one {address.kind}; write {replace(address, idx=0)}"
            )
        return run.first + owner * run.size + address.idx

    def address(self, model: str, row: int) -> Address:
        """The address of the ``row``-th parameter of ``model``. A shared vector has its first head's.

        >>> str(Layout.number([Run("attn_key", None, 0, "kv_head", 2, 8, 3)]).address("m", 9))
        'm/L0/H3/attn_key/1'
        """
        run = self.runs[bisect_right(self._firsts, row) - 1]
        owner, idx = divmod(row - run.first, run.size)
        head = {"head": owner, "kv_head": owner * run.group}.get(run.owner or "")
        return Address(model, run.layer, head, run.kind, idx, run.stack, owner if run.owner == "expert" else None)

    @cached_property
    def _firsts(self) -> list[int]:
        return [run.first for run in self.runs]

    def check(self, address: Address) -> None:
        """Raises AddressError if the model has nothing of this name."""
        address = Address.parse(address)
        if address.is_parameter:
            self.row(address)
        elif address.is_head:
            self.head_row(address)
        elif address.layer is not None:
            self._check_layer(address)
            if address.expert is not None:
                place = (address.stack, address.layer)
                run = next((run for run in self.runs if run.owner == "expert" and run.place == place), None)
                if run is None:
                    raise AddressError(f"{address}: {address.model}/{place_name(place)} has no experts")
                _owner(address, run)
        elif address.stack is not None:
            self._check_stack(address)

    def example(self, within: Address) -> Address:
        """The address of a parameter inside ``within``, as an example in a message: of a neuron if there are neurons.

        Raises AddressError where the model has nothing of this name.
        """
        within = Address.parse(within)
        self.check(within)
        runs = [
            run
            for run in self.runs
            if run.layer is not None
            and within.stack in (None, run.stack)
            and within.layer in (None, run.layer)
            and (within.expert is None or run.owner == "expert")
        ]
        return _like(within, next(run for kind in ("ff_value", *KINDS) for run in runs if run.kind == kind))

    @cached_property
    def _by_place(self) -> dict[tuple[str, Place, bool, bool], Run]:
        """(kind, place, whether it belongs to a head, whether it belongs to an expert) -> run."""
        return {(r.kind, r.place, r.owner in ("head", "kv_head"), r.owner == "expert"): r for r in self.runs}

    def _run(self, address: Address) -> Run:
        """The run that a parameter's address lies in. Raises AddressError if there is none."""
        place = address.stack, address.layer
        run = self._by_place.get((str(address.kind), place, address.head is not None, address.expert is not None))
        if run is None:
            self._refuse(address)
        return run

    def _refuse(self, address: Address) -> NoReturn:
        """Raises AddressError and says why a parameter's address lies in no run."""
        kind, at = KINDS[str(address.kind)], replace(address, head=None, expert=None, kind=None, idx=None)
        self._check_stack(address)
        run = _nearest_run(address, self.of(kind.name))
        say = f"write {_like(address, run)}, say"
        if kind.owner == "model" and address.layer is not None:
            raise AddressError(f"{address}: {kind.name} belongs to no layer; {say}")
        if kind.owner != "model" and address.layer is None:
            raise AddressError(f"{address}: {kind.name} belongs to a layer; {say}")
        if address.layer is not None:
            self._check_layer(address)
        if run.place != (address.stack, address.layer):
            raise AddressError(f"{address}: {at} has no {kind.name}; {say}")
        of_head = run.owner in ("head", "kv_head")
        if of_head != (address.head is not None):
            raise AddressError(f"{address}: {kind.name} belongs to {'a' if of_head else 'no'} head; {say}")
        an = "an" if run.owner == "expert" else "no"
        raise AddressError(f"{address}: {kind.name} of {at} belongs to {an} expert; {say}")

    def _check_stack(self, address: Address) -> None:
        """Raises AddressError if an address names a stack that the model does not have, or leaves out the stack."""
        if address.stack in self.stacks or (address.stack is None and not self.stacks):
            return
        if not self.stacks:
            raise AddressError(f"{address}: {address.model} has one stack; write it without /{address.stack}")
        run = _nearest_run(address, self.of(address.kind) if address.kind else list(self.runs))
        example = _like(address, run) if address.kind else replace(address, stack=run.stack)
        stacks = f"{'stacks' if len(self.stacks) > 1 else 'stack'} {', '.join(self.stacks)}"
        raise AddressError(f"{address}: {address.model} has the {stacks}; write {example}, say")

    def _check_layer(self, address: Address) -> None:
        """Raises AddressError where the model has no such stack or layer."""
        self._check_stack(address)
        n_layers = self.n_layers(address.stack)
        if address.layer is None or address.layer >= n_layers:
            where = Address(address.model, stack=address.stack)
            raise AddressError(f"{address}: {where} has layers L0 to L{n_layers - 1}")


def _owner(address: Address, run: Run) -> int:
    """The number of the head, key/value head or expert within its run. Raises AddressError where there is none."""
    if run.owner is None:
        return 0
    if run.owner == "expert":
        number, n = address.expert, run.n_owners
        has = f"{Address(address.model, address.layer, stack=address.stack)} has experts E0 to E{n - 1}"
    else:
        number, n = address.head, run.n_owners * (run.group if run.owner == "kv_head" else 1)
        has = f"{Address(address.model, stack=address.stack)} has heads H0 to H{n - 1} in each layer"
    if number is None or number >= n:
        raise AddressError(f"{address}: {has}")
    return number // run.group if run.owner == "kv_head" else number


def _nearest_run(address: Address, runs: list[Run]) -> Run:
    """The first of several runs that agrees best with an address: in stack, then layer, then owner."""

    def agreement(run: Run) -> tuple[bool, bool, bool]:
        of_experts = run.owner == "expert"
        return run.stack == address.stack, run.layer == address.layer, of_experts == (address.expert is not None)

    return max(runs, key=agreement)


def _like(address: Address, run: Run) -> Address:
    """The address of a row of ``run`` that is as near to ``address`` as possible."""

    def within(number: int | None, n: int) -> int:
        return number if number is not None and number < n else 0

    head = within(address.head, run.n_owners * (run.group if run.owner == "kv_head" else 1))
    return Address(
        address.model,
        run.layer,
        head if run.owner in ("head", "kv_head") else None,
        run.kind,
        within(address.idx, run.size),
        run.stack,
        within(address.expert, run.n_owners) if run.owner == "expert" else None,
    )
