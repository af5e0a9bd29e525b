"""Which parameters a checkpoint has: its layout, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator

from paramdex_builder.read.family import Owner
from paramdex_builder.read.names import CARRIED, WRITTEN, Names
from paramdex_builder.read.tensors import Tensors
from paramdex_schemas import KINDS, FamilyError, Layout, Run
from paramdex_schemas.layout import Place

_OWNERS: tuple[Owner | None, ...] = (None, "head", "kv_head", "expert")


def read_layout(names: Names, files: Tensors) -> Layout:
    """The layout of a checkpoint. Raises FamilyError where a layer lacks a bias that others have."""
    return Layout.number([run for kind in KINDS for run in _runs(kind, names, files)])


def _runs(kind: str, names: Names, files: Tensors) -> Iterator[Run]:
    """The runs of one kind, in order."""
    for name in names.stacks:
        yield from (_added if KINDS[kind].form == "embedding" else _of_layers)(kind, name, names, files)


def _added(kind: str, stack: str | None, names: Names, files: Tensors) -> Iterator[Run]:
    """The run of the learned positions or token types of a stack, where it has them."""
    if kind in names.stacks[stack].added:
        rows = files.shape(names.added(stack, kind))[0]
        yield Run(kind, stack, None, None, 1, rows - names.stacks[stack].n_skipped(kind, rows, names.config), 1)


def _of_layers(kind: str, stack: str | None, names: Names, files: Tensors) -> Iterator[Run]:
    """The runs of one kind in the layers of a stack."""
    source = WRITTEN.get(kind) or CARRIED.get(kind, (kind,))[0]
    without: list[str] = []
    runs: list[Run] = []
    for layer in range(names.sizes[stack]["n_layers"]):
        place = (stack, layer)
        for owner in _OWNERS:
            spec = names.specs.get((source, place, owner))
            if spec is None:
                continue
            bias = names.tensor(place, spec.of_bias(written=True))
            if KINDS[kind].form == "bias" and bias not in files:
                if names.tensor(place, spec) in files:  # else the weight is missing
                    without.append(bias)
                continue
            runs.append(_run(kind, place, owner, names))
    if runs and without:
        raise FamilyError(f"{names.source}: there is no tensor {without[0]}, though other layers have theirs")
    yield from runs


def _run(kind: str, place: Place, owner: Owner | None, names: Names) -> Run:
    """The run of one kind in one layer, of the vectors that lie beside weights of ``owner``."""
    sizes = names.sizes[place[0]]
    group = sizes["group"]
    if kind in CARRIED:
        return Run(kind, *place, "head", sizes["n_heads"], 1, group)
    if owner in ("head", "kv_head") and kind not in WRITTEN:
        return Run(kind, *place, owner, sizes[f"n_{owner}s"], sizes["d_head"], group)
    sparse = names.stacks[place[0]].is_sparse(place[1] or 0, names.config)
    neurons = 1 if KINDS[kind].form == "bias" or kind == "router" else None
    if owner == "expert":
        return Run(kind, *place, owner, sizes["n_experts"], neurons or sizes["d_expert"], 1)
    return Run(kind, *place, None, 1, neurons or sizes["d_shared" if sparse else "d_ff"], 1)
