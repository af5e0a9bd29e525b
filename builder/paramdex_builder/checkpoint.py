"""Checkpoints: the files of a model, read one tensor at a time and checked before any work is done on them."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paramdex_builder.family import Family, family_of
from paramdex_schemas import CheckpointError, FamilyError, ModelShape, atlas_files

_WANTED_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
                 "special_tokens_map.json", "added_tokens.json", "*.model"]  # fmt: skip
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def locate(source: str) -> tuple[Path, str | None]:
    """The local folder of a model and, for one from the hub, its revision.

    Raises CheckpointError where there is neither such a folder nor such a model.
    """
    path = Path(source)
    if path.is_dir():
        return path, None
    if path.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the weights")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise CheckpointError(f"there is no folder {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=_WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"there is no folder {source}, and no model of that name in the hub's cache or on the hub ({reason})"
        ) from error
    return folder, folder.name


@dataclass
class Checkpoint:
    """An opened model: its config, family, shape and tensors. Use as a context manager."""

    source: str
    folder: Path
    revision: str | None
    config: Any
    family: Family
    shape: ModelShape
    files: list[Path]
    _stack: ExitStack = field(default_factory=ExitStack)
    _where: dict[str, Any] = field(default_factory=dict)
    _prefix: str = ""

    @classmethod
    def open(cls, source: str) -> Checkpoint:
        """Open a model folder or a hub name.

        Raises CheckpointError or FamilyError where it cannot be read as a model of a known family.
        """
        folder, revision = locate(source)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise CheckpointError(f"{source} is no model: it has no config.json")
        try:
            model_type = json.loads(config_file.read_text("utf-8")).get("model_type")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{source}: config.json is not a JSON object ({error})") from error
        if not isinstance(model_type, str):
            raise CheckpointError(f"{source}: config.json names no model_type")
        family = family_of(model_type)
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder)
        except Exception as error:  # transformers raises many kinds of errors here
            raise CheckpointError(f"{source}: transformers cannot read config.json ({error})") from error
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError(f"{source} is quantized; paramdex reads float32, float16 and bfloat16 weights")
        checkpoint = cls(source, folder, revision, config, family, family.shape(config), _weight_files(source, folder))
        checkpoint._open_files()
        return checkpoint

    def _open_files(self) -> None:
        for file in self.files:
            try:
                file.open("rb").close()  # safe_open takes every failure for a missing file
            except OSError as error:
                raise CheckpointError(f"{self.source}: {file.name} cannot be read ({error.strerror})") from error
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{self.source}: {file.name} is truncated or no safetensors file ({error}); fetch it again"
                ) from error
            self._where.update(dict.fromkeys(handle.keys(), handle))
        found = [p for p in self.family.prefixes if p + self.family.input_embedding in self._where]
        if not found:
            raise FamilyError(
                f"{self.source}: there is no tensor {self.family.prefixes[0]}{self.family.input_embedding}; "
                f"its config says {self.config.model_type}, its weights do not"
            )
        self._prefix = found[0]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sha256(self) -> str:
        """The SHA-256 of the weight files, in order of their names."""
        return atlas_files.sha256(*self.files)

    def tensor(self, name: str, expected: tuple[int | None, ...]) -> torch.Tensor:
        """One tensor, checked against its ``expected`` shape (None: any size) and for finite values.

        Raises FamilyError for a missing tensor or another shape, CheckpointError for unreadable or non-finite values.
        """
        if name not in self._where:
            raise FamilyError(f"{self.source}: there is no tensor {name}, which family {self.family.name} needs")
        handle = self._where[name]
        view = handle.get_slice(name)
        found = tuple(view.get_shape())
        if len(found) != len(expected) or any(e not in (None, f) for e, f in zip(expected, found, strict=True)):
            wanted = " x ".join("V" if size is None else str(size) for size in expected)
            raise FamilyError(
                f"{self.source}: tensor {name} is {' x '.join(map(str, found))}, expected {wanted} "
                f"for family {self.family.name} with the numbers of config.json"
            )
        if view.get_dtype() not in _DTYPES:
            raise CheckpointError(
                f"{self.source}: tensor {name} is {view.get_dtype()}; paramdex reads float32, float16 and bfloat16"
            )
        tensor = handle.get_tensor(name)
        if tensor.dtype == torch.float64:
            tensor = tensor.float()  # before the check: what is too large for float32 is infinite from here on
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"{self.source}: tensor {name} has {bad} values that are NaN or infinite")
        return tensor

    def rows(self, kind: str, layer: int) -> torch.Tensor:
        """The vectors of one kind and layer as rows (n x d_model), float32."""
        spec = self.family.tensors[kind]
        name = self._prefix + self.family.layer.format(layer=layer) + spec.tensor
        return spec.rows(self.tensor(name, spec.expected_shape(self.shape)), self.shape).float().contiguous()

    def check_layers(self, advance: Any = None) -> None:
        """Read every layer once, so that a bad tensor is found before any work is done. Raises as ``tensor``."""
        for layer in range(self.shape.n_layers):
            for name in {spec.tensor: spec for spec in self.family.tensors.values()}.values():
                full = self._prefix + self.family.layer.format(layer=layer) + name.tensor
                self.tensor(full, name.expected_shape(self.shape))
            if advance is not None:
                advance(1)
        beyond = self._prefix + self.family.layer.format(layer=self.shape.n_layers)
        extra = sorted(name for name in self._where if name.startswith(beyond))
        if extra:
            raise FamilyError(
                f"{self.source}: config.json says {self.shape.n_layers} layers, but there is a tensor {extra[0]}"
            )

    def embedding(self) -> tuple[torch.Tensor, str, bool]:
        """(E, which, tied): E (rows x d_model), 'output' or 'input', and whether the model ties the two.

        The output embedding, or the input embedding where the checkpoint carries no output head. An embedding of
        another width than the residual stream is given through the map between the two: E P, float32. Where that map
        leads into the stream, only the input embedding passes it, so it is the input embedding that is given.
        """
        input_name = self._prefix + self.family.input_embedding
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        if self._factor() == "inward":
            return self._embedding(input_name), "input", tied
        for name in self.family.output_embeddings:
            if name in self._where:
                output = self._embedding(name)
                if not tied or not torch.equal(output, self._embedding(input_name)):
                    return output, "output", False
        return self._embedding(input_name), ("output" if tied else "input"), tied

    def _factor(self) -> str | None:
        """Whether the checkpoint's map between an embedding of another width and the stream leads in or out."""
        tensor, axes = self.family.factor or ("", "")
        if self._prefix + tensor not in self._where:
            return None
        return "inward" if axes.split()[0] == "d_model" else "outward"

    def _embedding(self, name: str) -> torch.Tensor:
        """One embedding (rows x d_model), through the family's factor where the checkpoint has one."""
        d = self.shape.d_model
        direction = self._factor()
        if self.family.factor is None or direction is None:
            return self.tensor(name, (None, d))
        E = self.tensor(name, (None, None))
        e = E.shape[1]
        P = self.tensor(self._prefix + self.family.factor[0], (d, e) if direction == "inward" else (e, d)).double()
        return torch.cat([chunk.double() @ (P.T if direction == "inward" else P) for chunk in E.split(8192)]).float()

    def dtype(self) -> str:
        """The dtype of the embedding as stored: float32, float16 or bfloat16."""
        name = self._prefix + self.family.input_embedding
        return _DTYPES[self._where[name].get_slice(name).get_dtype()]


def _weight_files(source: str, folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sharded or not, in order of their names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source}: {index.name} is damaged; fetch it again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{source}: the shard {missing[0]} is missing; fetch it again")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    raise CheckpointError(
        f"{source} has no model.safetensors; save it with model.save_pretrained(folder), which writes one"
    )
