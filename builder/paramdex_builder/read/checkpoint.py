"""Checkpoints: the files of a model, read one tensor at a time and checked before any work is done on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.read import counts
from paramdex_builder.read.embeddings import Embeddings
from paramdex_builder.read.families import by_model_type
from paramdex_builder.read.family import Family
from paramdex_builder.read.inference import counted_stacks, infer_family
from paramdex_builder.read.names import CARRIED, WRITTEN, Names
from paramdex_builder.read.norms import Norms, folded
from paramdex_builder.read.runs import read_layout
from paramdex_builder.read.source import knows, locate, read_config, tokenizer_files, typed_config, untyped_config
from paramdex_builder.read.tensor_spec import TensorSpec
from paramdex_builder.read.tensors import Stamp, TensorFiles, Tensors, stamps
from paramdex_schemas import KINDS, CheckpointError, FamilyError, Layout, Run, atlas_files
from paramdex_schemas.errors import escaped
from paramdex_schemas.foreign import reading
from paramdex_schemas.layout import Place


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Adds the model's source to FamilyErrors raised where only its config is known."""
    try:
        yield
    except FamilyError as error:
        if str(error).startswith(escaped(source)):
            raise
        raise FamilyError(f"{source}: {error}") from error


def _check_merged(source: str, files: Tensors) -> None:
    """Raises CheckpointError where the weights are those of a model with a PEFT adapter around it."""
    adapted = next((name for name in files.names() if ".base_layer." in name), None)
    if adapted is not None:
        raise CheckpointError(
            f"{source}: {adapted} is the weight of a layer with an adapter beside it; save the model once more, with "
            "model.merge_and_unload().save_pretrained(folder)"
        )


@dataclass
class Checkpoint:
    """An opened model: its config, family, layout and tensors.

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
    files: Tensors
    precision: torch.dtype = torch.float32
    """The dtype that vectors are given in. Stored weights need no more than float32; sums of them may."""
    layout: Layout = field(init=False)
    names: Names = field(init=False)
    embeddings: Embeddings = field(init=False)
    norms: Norms = field(init=False)
    _stamps: list[Stamp] = field(init=False)

    @classmethod
    def open(cls, source: str, *, fold_norm: bool = False, precision: torch.dtype = torch.float32) -> Checkpoint:
        """Open a model folder or a hub name.

        Raises CheckpointError or FamilyError where it cannot be read as a model of a known family.
        """
        import transformers  # noqa: F401  # if it is not installed, the file is not to blame

        origin = locate(source)
        folder, revision = origin.folder, origin.revision
        data = read_config(origin)
        if data.get("quantization_config") is not None:
            raise CheckpointError(f"{source} is quantized; paramdex reads float32, float16 and bfloat16 weights")
        listed = by_model_type()
        with _naming(source), reading(f"{source}: config.json", CheckpointError):  # its entries may be anything
            counts.check_unrolled(data)
            config: Any = untyped_config(data)
            family = listed.get(data["model_type"])
            inferred = family is None
            if family is not None:
                family.check_config(config)  # before the weights are fetched
            origin.fetch(tokenizer_files(origin))
            files = TensorFiles.open(origin)
            _check_merged(source, files)
            if family is None:
                family = infer_family(data["model_type"], config, files)
            else:
                counted_stacks(source, family, config, files)  # before transformers makes lists as long as it says
                if knows(data["model_type"]):  # else config.json is all there is
                    config = typed_config(source, folder)
            if isinstance(data.get("tie_word_embeddings"), bool):
                config.tie_word_embeddings = data["tie_word_embeddings"]  # transformers 5 says true for every T5
            family.check_config(config)
            return cls(source, folder, revision, config, family, inferred, fold_norm, files, precision)

    def __post_init__(self) -> None:
        self._stamps = stamps(self.files.paths)
        if self.fold_norm and (self.inferred or self.family.final_norm is None):
            why = (
                "no family file lists its type" if self.inferred else "one layer's weights read what several norms give"
            )
            raise FamilyError(f"{self.source}: norms cannot be folded: {why}; build it without --fold-norm")
        prefix, stacks = counted_stacks(self.source, self.family, self.config, self.files)
        self.names = Names.read(self.source, prefix, stacks, self.config)
        for place in self.names.places():
            self._check_shared(place)
        for (_, place, _), spec in self.names.specs.items():
            self._shape(self.names.tensor(place, spec), spec.expected_shape(self.names.sizes[place[0]]))
        for sizes in self.names.sizes.values():
            counts.check_numbered(sizes)
        says_tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self.embeddings = Embeddings(
            self.source, self.family, prefix, list(self.names.stacks), self.files, self.d_model, says_tied
        )
        entry = self.embeddings.entry
        of_encoder = self.embeddings.find_entry("encoder") or entry
        for said, table in (("vocab_size", of_encoder), ("decoder_vocab_size", entry)):
            counts.check_vocabulary(self.config, said, table, self._shape(table, (None, None))[0])
        self.embeddings.alias()
        for name, stack in self.names.stacks.items():
            for kind in stack.added:
                self._shape(self.names.added(name, kind), (None, None))
        self.norms = Norms(self.family, self.names, self.embeddings.way() == "inward")
        self.layout = read_layout(self.names, self.files)

    def _check_shared(self, place: Place) -> None:
        """Raises FamilyError where a layer has an expert that all tokens share, but config.json says nothing of it."""
        if self.names.sizes[place[0]].get("d_shared"):
            return
        for spec in self.names.stacks[place[0]].shared.values():
            name = self.names.tensor(place, spec)
            if name in self.files:
                raise FamilyError(
                    f"{self.source}: config.json says nothing of a shared expert, but there is a tensor {name}"
                )

    @property
    def d_model(self) -> int:
        return self.names.first_sizes["d_model"]

    def numbers(self) -> dict[str, Any]:
        """The model's numbers for the table ``models``; of an encoder-decoder those of its first stack."""
        sizes = self.names.first_sizes
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "n_experts", "d_expert")
        return {name: sizes.get(name) for name in names} | {
            "gated": "ff_gate" in self.layout.kinds,
            "stacks": self.layout.stacks or None,
        }

    @property
    def model_type(self) -> str:
        """What config.json calls the architecture."""
        return str(self.config.model_type)

    @property
    def n_bytes(self) -> int:
        """The size of the weight files."""
        return sum(path.stat().st_size for path in self.files.paths)

    def notes(self, space: str) -> Iterator[str]:
        """What a person should know of the embedding that scores (``Embeddings.notes``)."""
        return self.embeddings.notes(space)

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
        parts = torch.split(tensor.reshape(-1), 1 << 24)  # which takes little memory
        bad = sum(int((~part.float().isfinite()).sum()) for part in parts)
        if bad:
            raise CheckpointError(f"{self.source}: {what} has {bad} values that are NaN or infinite")
        return tensor

    def _read(self, place: Place, spec: TensorSpec, experts: range | None = None) -> torch.Tensor:
        """What a spec says of one layer, in the checkpoint's precision: of all of it, or of some experts."""
        sizes = self.names.sizes[place[0]]
        if experts is None:
            tensor = self.tensor(self.names.tensor(place, spec), spec.expected_shape(sizes))
            return spec.rows(tensor, sizes).to(self.precision)
        shape = spec.expected_shape(sizes)
        parts = []
        for expert in experts:
            name = self.names.tensor(place, spec, expert)
            tensor = self.tensor(name, shape, None if spec.per_expert else expert)
            parts.append(spec.rows(tensor, sizes if spec.per_expert else {**sizes, "n_experts": 1}).to(self.precision))
        return torch.cat(parts)

    def inputs_first(self) -> dict[str, bool]:
        """Name of a matrix that the family knows -> whether it is stored as input x output, as Conv1D has it."""
        outputs = (*self.family.output_embeddings, *self.embeddings.outputs)
        return dict.fromkeys(outputs, False) | self.names.inputs_first()

    def left_out(self) -> dict[str, int]:
        """Parts of layers with matrices that the family does not know, such as ``h.*.crossattention.*`` -> how many."""
        return self.names.unknown_parts(self.files, self.inputs_first())

    # ---- vectors

    @property
    def runs(self) -> Checkpoint:
        """The model whose layers are run: this one, with no norms folded."""
        return self.plain()

    def plain(self) -> Checkpoint:
        """The same with no norms folded."""
        return replace(self, fold_norm=False) if self.fold_norm else self

    def rows(self, run: Run, owners: range | None = None) -> torch.Tensor:
        """The vectors of a run as rows (n x d_model): all of them, or those of some of its ``owners``."""
        if KINDS[run.kind].form == "embedding":
            return self._added(run)
        if run.kind in CARRIED:
            return self._carried(run)
        owner: str | None = run.owner
        if run.kind in WRITTEN:
            owner = "head" if run.kind == "attn_bias" else run.owner
            spec = self.names.specs[WRITTEN[run.kind], run.place, owner].of_bias(written=True)
        else:
            spec = self.names.specs[run.kind, run.place, owner]
        rows = self._read(run.place, spec, (owners or range(run.n_owners)) if run.owner == "expert" else None)
        if self.fold_norm:
            rows = self.fold(rows, self.norms.beside(run.kind, run.place), KINDS[run.kind].role)
        return rows.contiguous()

    def layer_rows(self, kind: str, place: Place) -> torch.Tensor:
        """All vectors of one kind in one place, as ``rows``."""
        return torch.cat([self.rows(run) for run in self.layout.of(kind) if run.place == place])

    def head_rows(self, kind: str, place: Place) -> list[torch.Tensor]:
        """The vectors of a kind that are one factor of the heads' matrices, in each of the terms that the matrices are
        sums of: one for a model, two for a displacement.
        """
        return [self.layer_rows(kind, place)]

    @property
    def n_terms(self) -> int:
        """How many terms those are; also the number of models that are read for each vector."""
        return 1

    def _added(self, run: Run) -> torch.Tensor:
        """The learned positions or token types; those of another width than the stream through the family's map."""
        name = self.names.added(run.stack, run.kind)
        # A map into the stream comes after these are added; a map out of it is for the embedding alone.
        table = self._in_stream(name, "inward") if self.norms.inward else self.tensor(name, (None, self.d_model))
        return table[-run.n_rows :].to(self.precision)

    def _carried(self, run: Run) -> torch.Tensor:
        """A head's biases carried through its other side, one vector per head (n_heads x d_model)."""
        kind, through = CARRIED[run.kind]
        sizes = self.names.sizes[run.stack]
        spec = self.names.specs[kind, run.place, KINDS[kind].owner].of_bias(written=False)
        bias = self._read(run.place, spec).double().view(-1, sizes["d_head"])
        rows = self.layer_rows(through, run.place).double().view(-1, sizes["d_head"], sizes["d_model"])
        of_head = torch.arange(sizes["n_heads"])
        own, other = (of_head if KINDS[k].owner == "head" else of_head // sizes["group"] for k in (kind, through))
        carried = torch.einsum("hj,hjd->hd", bias[own], rows[other]).to(self.precision)
        return self._finite(carried, f"what tensor {self.names.tensor(run.place, spec)} comes to in the stream")

    # ---- norms

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

    # ---- checks

    def check_layers(self, advance: Callable[[int], None] | None = None) -> None:
        """Read every layer once, so that a bad tensor is found before any work is done. Raises as ``tensor``."""
        seen: set[tuple[str, int | None]] = set()
        for run in self.layout.runs:
            for spec in self.names.of_run(run):
                shape = spec.expected_shape(self.names.sizes[run.stack])
                of_experts = spec.per_expert or spec.all_experts
                for expert in range(self.names.sizes[run.stack]["n_experts"] if of_experts else 1):
                    name = self.names.tensor(run.place, spec, expert)
                    part = expert if spec.all_experts else None
                    if (name, part) not in seen:
                        seen.add((name, part))
                        self.tensor(name, shape, part)
            if KINDS[run.kind].form == "embedding":
                self._added(run)
            gains = self.norms.beside(run.kind, run.place) if self.fold_norm and run.layer is not None else None
            if gains is not None:
                self._gains(gains)
            if advance is not None:
                advance(1)
        for stack, sizes in self.names.sizes.items():
            n_layers = sizes["n_layers"]
            beyond = [found for found in self.files.names() if found.startswith(self.names.of_layer(stack, n_layers))]
            if beyond:
                raise FamilyError(
                    f"{self.source}: config.json says {n_layers} layers, but there is a tensor {beyond[0]}"
                )

    # ---- embeddings

    def embedding(self, space: str = "output") -> tuple[torch.Tensor, str, bool]:
        """(E, which, tied): E (rows x d_model), 'output' or 'input', and whether the model ties the two.

        E is the embedding that ``space`` asks for, or the input embedding where the checkpoint has no output head; that
        of the decoder in an encoder-decoder. (``Embeddings.notes`` says if it is not the expected one.) An
        embedding whose width differs from the stream's is returned after the map between the two. If the only map leads
        into the stream, only the input embedding passes it, and so the input embedding is given. If each embedding has
        a map of its own, they are not tied, even if one table is behind both. With ``fold_norm`` the
        final norm is folded into an embedding that reads what the norm gives. E is float32, or float16 or bfloat16
        where it is stored so: that takes half the memory for the same numbers.

        Raises CheckpointError where it cannot be told which tensor it is.
        """
        E, which, tied = self._chosen_embedding(space)
        name = self.norms.final() if self.fold_norm and (tied or which == "output") else None
        dtype = E.dtype if name is None and E.dtype in (torch.float16, torch.bfloat16) else torch.float32
        E = E.to(dtype, copy=True)  # a copy, no longer a view of a file
        return self.fold(E, name, "reads", out=E), which, tied

    def _chosen_embedding(self, space: str) -> tuple[torch.Tensor, str, bool]:
        name, which, tied = self.embeddings.choose(space)
        return self._in_stream(name, "inward" if which == "input" else "outward"), which, tied

    def _in_stream(self, name: str, way: str) -> torch.Tensor:
        """A table of vectors (rows x d_model), through the map that leads this way where there is one."""
        table = self.embeddings.in_stream(name, way, self.tensor, self.precision)
        through = self.embeddings.map_name(way)
        return table if through is None else self._finite(table, f"tensor {name} through {through}")

    def dtype(self) -> str:
        """The dtype of the embedding as stored: float32, float16 or bfloat16."""
        return self.files.dtype(self.embeddings.entry)
