"""Checkpoints: the files of a model, read one tensor at a time and checked before any work is done on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.read import counts
from paramdex_builder.read.embeddings import Embeddings
from paramdex_builder.read.family import Family, Stack, by_model_type, choose_norm
from paramdex_builder.read.inference import counted_stacks, infer_family
from paramdex_builder.read.norms import folded
from paramdex_builder.read.source import locate, read_config, tokenizer_files, typed_config, untyped_config
from paramdex_builder.read.tensor_spec import TensorSpec
from paramdex_builder.read.tensors import Stamp, TensorFiles, stamps
from paramdex_schemas import KINDS, CheckpointError, FamilyError, Layout, Run, atlas_files
from paramdex_schemas.errors import escaped
from paramdex_schemas.foreign import reading
from paramdex_schemas.layout import Place

_WRITTEN = {"ff_bias": "ff_value", "attn_bias": "attn_output"}
"""Biases that are added to the stream -> the kind beside whose weights they stand."""
_CARRIED = {
    "attn_query_bias": ("attn_query", "attn_key"),
    "attn_key_bias": ("attn_key", "attn_query"),
    "attn_value_bias": ("attn_value", "attn_output"),
}
"""Biases within a head -> whose bias, and through whose vectors it is carried to the stream: the sum of b_j w_j."""


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Around what judges a config without knowing whose it is: its FamilyError gets the model's source."""
    try:
        yield
    except FamilyError as error:
        if str(error).startswith(escaped(source)):
            raise
        raise FamilyError(f"{source}: {error}") from error


def _check_merged(source: str, files: TensorFiles) -> None:
    """Raises CheckpointError where the weights are those of a model with an adapter of PEFT's around it."""
    adapted = next((name for name in files.names() if ".base_layer." in name), None)
    if adapted is not None:
        raise CheckpointError(
            f"{source}: {adapted} is the weight of a layer with an adapter beside it; save the model once more, with "
            "model.merge_and_unload().save_pretrained(folder)"
        )


@dataclass
class Checkpoint:
    """An opened model: its config, family, layout and tensors. Use as a context manager.

    ``inferred`` says that no family lists the model's type, and that its tensors fit this family's layout;
    ``fold_norm`` that vectors are given with the norms beside them folded in (see ``norms``).
    """

    source: str
    folder: Path
    revision: str | None
    config: Any
    family: Family
    inferred: bool
    fold_norm: bool
    files: TensorFiles
    precision: torch.dtype = torch.float32
    """What vectors are given in; weights are stored in float32 at most, but not sums of them."""
    layout: Layout = field(init=False)
    embeddings: Embeddings = field(init=False)
    _prefix: str = ""
    _stacks: dict[str | None, Stack] = field(default_factory=dict)
    _sizes: dict[str | None, dict[str, int]] = field(default_factory=dict)
    _specs: dict[tuple[str, Place, str | None], TensorSpec] = field(default_factory=dict)
    _stamps: list[Stamp] = field(default_factory=list)

    @classmethod
    def open(cls, source: str, *, fold_norm: bool = False, precision: torch.dtype = torch.float32) -> Checkpoint:
        """Open a model folder or a hub name.

        Raises CheckpointError or FamilyError where it cannot be read as a model of a known family.
        """
        import transformers  # noqa: F401  # that it is not installed is no fault of the file's

        origin = locate(source)
        folder, revision = origin.folder, origin.revision
        data = read_config(origin)
        if data.get("quantization_config") is not None:
            raise CheckpointError(f"{source} is quantized; paramdex reads float32, float16 and bfloat16 weights")
        with _naming(source), reading(f"{source}: config.json", CheckpointError):  # whose entries may be anything
            counts.check_unrolled(data)
            config: Any = untyped_config(data)
            family = by_model_type().get(data["model_type"])
            inferred = family is None
            if family is not None:
                family.check_config(config)  # before the weights are fetched
            origin.fetch(tokenizer_files(origin))
            files = TensorFiles.open(origin)
            _check_merged(source, files)
            if family is None:
                family = infer_family(data["model_type"], config, files)
            else:
                counted_stacks(source, family, config, files)  # before transformers makes a list of as many
                config = typed_config(source, folder)
            if isinstance(data.get("tie_word_embeddings"), bool):
                config.tie_word_embeddings = data["tie_word_embeddings"]  # transformers 5 says true of every T5
            family.check_config(config)
            return cls(source, folder, revision, config, family, inferred, fold_norm, files, precision)

    def __post_init__(self) -> None:
        self._stamps = stamps(self.files.paths)
        if self.fold_norm and (self.inferred or self.family.final_norm is None):
            why = (
                "no family file lists its type" if self.inferred else "one layer's weights read what several norms give"
            )
            raise FamilyError(f"{self.source}: norms cannot be folded: {why}; build it without --fold-norm")
        self._prefix, stacks = counted_stacks(self.source, self.family, self.config, self.files)
        for stack in stacks:
            self._stacks[stack.name], self._sizes[stack.name] = stack, stack.sizes(self.config)
            for layer in range(self._sizes[stack.name]["n_layers"]):
                for source in stack.sources(layer, self.config):
                    self._specs[source.kind, (stack.name, layer), source.owner] = source.spec
                self._check_shared(stack, layer)
        for (_, place, _), spec in self._specs.items():
            self._shape(self._full_name(place, spec), spec.expected_shape(self._sizes[place[0]]))
        for sizes in self._sizes.values():
            counts.check_numbered(sizes)
        says_tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self.embeddings = Embeddings(
            self.source, self.family, self._prefix, list(self._stacks), self.files, self.d_model, says_tied
        )
        entry = self.embeddings.entry
        of_encoder = self.embeddings.find_entry("encoder") or entry
        for said, table in (("vocab_size", of_encoder), ("decoder_vocab_size", entry)):
            counts.check_vocabulary(self.config, said, table, self._shape(table, (None, None))[0])
        self.embeddings.alias()
        self.layout = Layout.number([run for kind in KINDS for run in self._runs(kind)])

    def _check_shared(self, stack: Stack, layer: int) -> None:
        """Raises FamilyError where a layer has an expert that all tokens share, of which config.json says nothing."""
        for spec in () if self._sizes[stack.name].get("d_shared") else stack.shared.values():
            name = self._full_name((stack.name, layer), spec)
            if name in self.files:
                raise FamilyError(f"{self.source}: config.json says of no shared expert, but there is a tensor {name}")

    def _runs(self, kind: str) -> Iterator[Run]:
        """The runs of one kind, in order."""
        for name, stack in self._stacks.items():
            if KINDS[kind].form == "embedding":
                if kind in stack.added:
                    tensor = self._prefix + stack.added[kind]["tensor"]
                    rows = self._shape(tensor, (None, None))[0]
                    yield Run(kind, name, None, None, 1, rows - stack.n_skipped(kind, rows, self.config), 1)
                continue
            source = _WRITTEN.get(kind) or _CARRIED.get(kind, (kind,))[0]
            without: list[str] = []
            runs: list[Run] = []
            for layer in range(self._sizes[name]["n_layers"]):
                for owner in (None, "head", "kv_head", "expert"):
                    spec = self._specs.get((source, (name, layer), owner))
                    if spec is None:
                        continue
                    bias = self._full_name((name, layer), spec.of_bias(written=True))
                    if KINDS[kind].form == "bias" and bias not in self.files:
                        if self._full_name((name, layer), spec) in self.files:  # else the weight is what is missing
                            without.append(bias)
                        continue
                    runs.append(self._run(kind, (name, layer), owner))
            if runs and without:
                raise FamilyError(f"{self.source}: there is no tensor {without[0]}, though other layers have theirs")
            yield from runs

    def _run(self, kind: str, place: Place, owner: Any) -> Run:
        """The run of one kind in one layer, of the vectors that lie beside weights of ``owner``."""
        sizes = self._sizes[place[0]]
        group = sizes["group"]
        if kind in _CARRIED:
            return Run(kind, *place, "head", sizes["n_heads"], 1, group)
        if owner in ("head", "kv_head") and kind not in _WRITTEN:
            return Run(kind, *place, owner, sizes[f"n_{owner}s"], sizes["d_head"], group)
        sparse = self._stacks[place[0]].is_sparse(place[1] or 0, self.config)
        neurons = 1 if KINDS[kind].form == "bias" or kind == "router" else None
        if owner == "expert":
            return Run(kind, *place, owner, sizes["n_experts"], neurons or sizes["d_expert"], 1)
        return Run(kind, *place, None, 1, neurons or sizes["d_shared" if sparse else "d_ff"], 1)

    @property
    def d_model(self) -> int:
        return next(iter(self._sizes.values()))["d_model"]

    def numbers(self) -> dict[str, Any]:
        """The model's numbers for the table ``models``; of an encoder-decoder those of its first stack."""
        sizes = next(iter(self._sizes.values()))
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "n_experts", "d_expert")
        return {name: sizes.get(name) for name in names} | {
            "gated": "ff_gate" in self.layout.kinds,
            "stacks": self.layout.stacks or None,
        }

    def sha256(self) -> str:
        """The SHA-256 of the weight files, in order of their names."""
        return atlas_files.sha256(*self.files.paths)

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a weight file is no longer the one that was opened."""
        if stamps(self.files.paths) != self._stamps:
            raise CheckpointError(
                f"the weights of {self.source} changed while they were read; run the same command again"
            )

    def base_sha256(self) -> str | None:
        """The SHA-256 of the weights that were subtracted: none."""
        return None

    def rotary(self) -> bool:
        """Whether the model rotates queries and keys by position, which QK leaves out."""
        return self.family.rotary(self.config)

    # ---- tensors

    def _shape(self, name: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        """The shape of a tensor, once it is as expected (None: any size). Raises FamilyError."""
        if name not in self.files:
            raise FamilyError(f"{self.source}: there is no tensor {name}, which family {self.family.name} needs")
        found = self.files.shape(name)
        if len(found) != len(expected) or any(e not in (None, f) for e, f in zip(expected, found, strict=True)):
            wanted = " x ".join("any" if size is None else str(size) for size in expected)
            raise FamilyError(
                f"{self.source}: tensor {name} is {' x '.join(map(str, found))}, expected {wanted} "
                f"for family {self.family.name} with the numbers of config.json"
            )
        return found

    def tensor(self, name: str, expected: tuple[int | None, ...], part: int | None = None) -> torch.Tensor:
        """One tensor, or of its first axis only the ``part``-th entry, checked for its shape and for finite values.

        Raises FamilyError for a missing tensor or another shape, CheckpointError for unreadable or non-finite values.
        """
        self._shape(name, expected)
        tensor = self.files.tensor(name, part)
        if tensor.dtype == torch.float64 and self.precision == torch.float32:
            tensor = tensor.float()  # before the check: what is too large for float32 is infinite from here on
        return self._finite(tensor, f"tensor {name}")

    def _finite(self, tensor: torch.Tensor, what: str) -> torch.Tensor:
        """A tensor, or what was made of several, once all its values are finite in float32. Raises CheckpointError."""
        parts = tensor.reshape(-1).split(1 << 24)  # in little memory
        bad = sum(int((~part.float().isfinite()).sum()) for part in parts)
        if bad:
            raise CheckpointError(f"{self.source}: {what} has {bad} values that are NaN or infinite")
        return tensor

    def _full_name(self, place: Place, spec: TensorSpec, expert: int = 0) -> str:
        return self._layer_name(*place) + spec.tensor.format(expert=expert)

    def _layer_name(self, stack: str | None, layer: int | None) -> str:
        """What the names of a layer's tensors begin with."""
        return self._prefix + self._stacks[stack].layer.format(layer=layer)

    def _read(self, place: Place, spec: TensorSpec, experts: range | None = None) -> torch.Tensor:
        """What a spec says of one layer, in the checkpoint's precision: of all of it, or of some experts."""
        sizes = self._sizes[place[0]]
        if experts is None:
            tensor = self.tensor(self._full_name(place, spec), spec.expected_shape(sizes))
            return spec.rows(tensor, sizes).to(self.precision)
        shape = spec.expected_shape(sizes)
        parts = []
        for expert in experts:
            name = self._full_name(place, spec, expert)
            tensor = self.tensor(name, shape, None if spec.per_expert else expert)
            parts.append(spec.rows(tensor, sizes if spec.per_expert else {**sizes, "n_experts": 1}).to(self.precision))
        return torch.cat(parts)

    def inputs_first(self) -> dict[str, bool]:
        """Name of a matrix that the family knows -> whether it is stored as input x output, as Conv1D has it."""
        found = dict.fromkeys((*self.family.output_embeddings, *self.embeddings.outputs), False)
        for (kind, place, _), spec in self._specs.items():
            for expert in range(self._sizes[place[0]]["n_experts"] if spec.per_expert else 1):
                found[self._full_name(place, spec, expert)] = spec.inputs_first(KINDS[kind].role)
        return found

    def left_out(self) -> dict[str, int]:
        """Parts of layers with matrices that the family does not know, such as ``h.*.crossattention.*`` -> how many.

        T5's relative positions and Cohere's norms of each head are none: README says that they are left out.
        """
        known = self.inputs_first()
        places = {
            self._layer_name(name, layer): self._prefix + stack.layer.format(layer="*")
            for name, stack in self._stacks.items()
            for layer in range(self._sizes[name]["n_layers"])
        }
        found: Counter[str] = Counter()
        for name in self.files.names():
            matrix = name.endswith(".weight") and len(self.files.shape(name)) == 2  # no mask, which some files hold
            if matrix and name not in known and not re.search(r"_norm\.|relative_attention_bias", name):
                place = next((place for place in places if name.startswith(place)), None)
                if place is not None:
                    found[f"{places[place]}{name.removeprefix(place).split('.')[0]}.*"] += 1
        return dict(found)

    # ---- vectors

    def rows(self, run: Run, owners: range | None = None) -> torch.Tensor:
        """The vectors of a run as rows (n x d_model): all of them, or those of some of its ``owners``."""
        if KINDS[run.kind].form == "embedding":
            return self._added(run)
        if run.kind in _CARRIED:
            return self._carried(run)
        owner: str | None = run.owner
        if run.kind in _WRITTEN:
            owner = "head" if run.kind == "attn_bias" else run.owner
            spec = self._specs[_WRITTEN[run.kind], run.place, owner].of_bias(written=True)
        else:
            spec = self._specs[run.kind, run.place, owner]
        rows = self._read(run.place, spec, (owners or range(run.n_owners)) if run.owner == "expert" else None)
        if self.fold_norm:
            rows = self.fold(rows, self.gains_name(run.kind, run.place), KINDS[run.kind].role)
        return rows.contiguous()

    def layer_rows(self, kind: str, place: Place) -> torch.Tensor:
        """All vectors of one kind in one place, as ``rows``."""
        return torch.cat([self.rows(run) for run in self.layout.of(kind) if run.place == place])

    def head_rows(self, kind: str, place: Place) -> list[torch.Tensor]:
        """The vectors of a kind that are one factor of the heads' matrices, in each of the terms that the matrices are
        sums of: one for a model, two for a displacement.
        """
        return [self.layer_rows(kind, place)]

    n_terms = 1
    """How many terms those are; as many models are read for a vector."""

    def _added(self, run: Run) -> torch.Tensor:
        """The learned positions or token types; those of another width than the stream through the family's map."""
        name = self._prefix + self._stacks[run.stack].added[run.kind]["tensor"]
        # A map into the stream comes after these are added, one out of the stream is of the embedding alone.
        table = self._in_stream(name, "inward") if self._map() == "inward" else self.tensor(name, (None, self.d_model))
        return table[-run.n_rows :].to(self.precision)

    def _carried(self, run: Run) -> torch.Tensor:
        """A head's biases carried through its other side, one vector a head (n_heads x d_model)."""
        kind, through = _CARRIED[run.kind]
        sizes = self._sizes[run.stack]
        spec = self._specs[kind, run.place, KINDS[kind].owner].of_bias(written=False)
        bias = self._read(run.place, spec).double().view(-1, sizes["d_head"])
        rows = self.layer_rows(through, run.place).double().view(-1, sizes["d_head"], sizes["d_model"])
        of_head = torch.arange(sizes["n_heads"])
        own, other = (of_head if KINDS[k].owner == "head" else of_head // sizes["group"] for k in (kind, through))
        carried = torch.einsum("hj,hjd->hd", bias[own], rows[other]).to(self.precision)
        return self._finite(carried, f"what tensor {self._full_name(run.place, spec)} comes to in the stream")

    # ---- norms

    def gains_name(self, kind: str, place: Place) -> str | None:
        """The tensor of the gains beside vectors of a kind: of the norm whose output they read, or through which what
        they write passes before it is added to the stream; None where there is no such norm.
        """
        stack = self._stacks[place[0]]
        part = "attn" if kind.startswith("attn_") else "ff"
        name = part if KINDS[kind].role == "reads" else f"{part}_after"
        return self._norm_name(choose_norm(stack.norms.get(kind, stack.norms.get(name)), self.config), place)

    def _norm_name(self, rule: Any, place: Place) -> str | None:
        """The tensor that a rule of ``norms`` means (see ``family``)."""
        stack, layer = place
        if isinstance(rule, str):
            rule = {"then": rule}
        if rule is None:
            return None
        if layer == 0 and "first" in rule:
            # A norm before a map into the stream has no gains of the stream's own.
            return self._prefix + rule["first"] if rule["first"] and self._map() != "inward" else None
        stack = rule.get("stack", stack)
        if stack not in self._stacks:
            return None
        if "model" in rule:
            return self._prefix + rule["model"]
        if "last" in rule:
            layer = self._sizes[stack]["n_layers"] - 1
        elif "previous" in rule:
            layer = (layer or 0) - 1
        return self._layer_name(stack, layer) + next(rule[key] for key in ("then", "previous", "last") if key in rule)

    def _gains(self, name: str) -> torch.Tensor:
        return self.tensor(name, (self.d_model,)).double() + self.family.norm_offset

    def fold(self, rows: torch.Tensor, name: str | None, role: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The vectors ``rows`` (n x d_model) of a ``role`` with the norm whose gains are the tensor ``name`` folded in,
        into ``out`` where that is given; as they are where there is no such norm.
        """
        if name is None:
            return rows
        return self._finite(
            folded(rows, self._gains(name), self.family.norm, role, out), f"what is multiplied with tensor {name}"
        )

    def final_gains_name(self) -> str | None:
        """The tensor of the gains of the norm at the end of the blocks (``Family.final_norm``)."""
        return self._norm_name(choose_norm(self.family.final_norm, self.config), (next(iter(self._stacks)), None))

    # ---- modules, for forward passes

    def block_names(self) -> list[str]:
        """What transformers calls the modules of the layers, first to last, below the model's own name.

        Raises FamilyError where the model is no single stack of layers of their own.
        """
        if list(self._stacks) != [None]:
            raise FamilyError(f"{self.source}: it has several stacks of layers; only models of one stack are run")
        n_layers = self._sizes[None]["n_layers"]
        names = [self._stacks[None].layer.format(layer=layer).rstrip(".") for layer in range(n_layers)]
        if len(set(names)) < n_layers or getattr(self.config, "num_hidden_layers", n_layers) != n_layers:
            raise FamilyError(f"{self.source}: its layers share their weights; only models whose layers do not are run")
        return names

    def module_name(self, kind: str, layer: int) -> str | None:
        """Below its layer, the module whose weights hold a kind's vectors; None where experts hold them."""
        for owner in (None, "head", "kv_head"):
            spec = self._specs.get((kind, (None, layer), owner))
            if spec is not None:
                return spec.tensor.removesuffix(".weight")
        return None

    # ---- checks

    def check_layers(self, advance: Callable[[int], None] | None = None) -> None:
        """Read every layer once, so that a bad tensor is found before any work is done. Raises as ``tensor``."""
        seen: set[tuple[str, int | None]] = set()
        for run in self.layout.runs:
            for spec in self._tensors(run):
                shape = spec.expected_shape(self._sizes[run.stack])
                of_experts = spec.per_expert or spec.all_experts
                for expert in range(self._sizes[run.stack]["n_experts"] if of_experts else 1):
                    name = self._full_name(run.place, spec, expert)
                    part = expert if spec.all_experts else None
                    if (name, part) not in seen:
                        seen.add((name, part))
                        self.tensor(name, shape, part)
            if KINDS[run.kind].form == "embedding":
                self._added(run)
            gains = self.gains_name(run.kind, run.place) if self.fold_norm and run.layer is not None else None
            if gains is not None:
                self._gains(gains)
            if advance is not None:
                advance(1)
        for stack, sizes in self._sizes.items():
            n_layers = sizes["n_layers"]
            beyond = [found for found in self.files.names() if found.startswith(self._layer_name(stack, n_layers))]
            if beyond:
                raise FamilyError(
                    f"{self.source}: config.json says {n_layers} layers, but there is a tensor {beyond[0]}"
                )

    def _tensors(self, run: Run) -> Iterator[TensorSpec]:
        """What a run is read from, but for vectors that its biases are carried through."""
        if KINDS[run.kind].form == "embedding":
            return
        kinds = [_WRITTEN[run.kind]] if run.kind in _WRITTEN else _CARRIED.get(run.kind, (run.kind,))[:1]
        for (kind, place, _), spec in self._specs.items():
            if kind in kinds and place == run.place:
                yield spec if KINDS[run.kind].form == "weight" else spec.of_bias(written=run.kind in _WRITTEN)

    # ---- embeddings

    def embedding(self, space: str = "output") -> tuple[torch.Tensor, str, bool]:
        """(E, which, tied): E (rows x d_model), 'output' or 'input', and whether the model ties the two.

        The one that ``space`` asks for; the input embedding where the checkpoint carries no output head; of an
        encoder-decoder the decoder's (``Embeddings.notes`` says where it is not the one to expect). One of
        another width than the residual stream is given through the map between the two. Where the only map leads
        into the stream, only the input embedding passes it, so it is the input embedding that is given; where each
        has a map of its own, they are not tied, whatever table is behind both. With
        ``fold_norm`` the final norm is folded into an embedding that reads what it gives. E is
        float32, or float16 or bfloat16 where it is stored so: half the memory, and the same numbers.

        Raises CheckpointError where it cannot be told which tensor it is.
        """
        E, which, tied = self._chosen_embedding(space)
        name = self.final_gains_name() if self.fold_norm and (tied or which == "output") else None
        dtype = E.dtype if name is None and E.dtype in (torch.float16, torch.bfloat16) else torch.float32
        E = E.to(dtype, copy=True)  # no view of a file any more
        return self.fold(E, name, "reads", out=E), which, tied

    def _chosen_embedding(self, space: str) -> tuple[torch.Tensor, str, bool]:
        name, which, tied = self.embeddings.choose(space)
        return self._in_stream(name, "inward" if which == "input" else "outward"), which, tied

    def _map(self) -> str | None:
        """As ``Embeddings.way``."""
        return self.embeddings.way()

    def _in_stream(self, name: str, way: str) -> torch.Tensor:
        """A table of vectors (rows x d_model), through the map that leads this way where there is one."""
        table = self.embeddings.in_stream(name, way, self.tensor, self.precision)
        through = self.embeddings.map_name(way)
        return table if through is None else self._finite(table, f"tensor {name} through {through}")

    def dtype(self) -> str:
        """The dtype of the embedding as stored: float32, float16 or bfloat16."""
        return self.files.dtype(self.embeddings.entry)
