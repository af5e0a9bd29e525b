"""Checkpoints: the files of a model, read one tensor at a time and checked before any work is done on them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from paramdex_builder.family import Family, by_model_type, find_prefix, infer_family
from paramdex_builder.tensors import TensorFiles
from paramdex_schemas import CheckpointError, FamilyError, ModelShape, atlas_files

_WANTED_FILES = [
    "config.json", "*.safetensors", "*.index.json", "pytorch_model*.bin", "tokenizer*", "vocab*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "*.model",
]  # fmt: skip
_DTYPES = {"float64", "float32", "float16", "bfloat16"}


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


def read_config(source: str, folder: Path) -> dict[str, Any]:
    """config.json, with a model_type. Raises CheckpointError."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{source} is no model: it has no config.json")
    try:
        data = json.loads(file.read_text("utf-8"))
        model_type = data.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: config.json is not a JSON object ({error})") from error
    if not isinstance(model_type, str):
        raise CheckpointError(f"{source}: config.json names no model_type")
    return data


def _typed_config(source: str, folder: Path) -> Any:
    """The transformers config, with the defaults of its model type. Raises CheckpointError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds of errors here
        raise CheckpointError(f"{source}: transformers cannot read config.json ({error})") from error


@dataclass
class Checkpoint:
    """An opened model: its config, family, shape and tensors. Use as a context manager.

    ``inferred`` says that no family lists the model's type, and that its tensors fit this family's layout.
    """

    source: str
    folder: Path
    revision: str | None
    config: Any
    family: Family
    inferred: bool
    shape: ModelShape
    files: TensorFiles
    _prefix: str = ""

    @classmethod
    def open(cls, source: str) -> Checkpoint:
        """Open a model folder or a hub name.

        Raises CheckpointError or FamilyError where it cannot be read as a model of a known family.
        """
        folder, revision = locate(source)
        data = read_config(source, folder)
        known = by_model_type()
        config = _typed_config(source, folder) if data["model_type"] in known else SimpleNamespace(**data)
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError(f"{source} is quantized; paramdex reads float32, float16 and bfloat16 weights")
        files = TensorFiles.open(source, folder)
        try:
            if data["model_type"] in known:
                family = known[data["model_type"]]
                return cls._opened(source, folder, revision, config, family, files, inferred=False)
            family = infer_family(data["model_type"], config, files)
            return cls._opened(source, folder, revision, config, family, files, inferred=True)
        except BaseException:
            files.close()
            raise

    @classmethod
    def _opened(
        cls, source: str, folder: Path, revision: str | None, config: Any, family: Family, files: TensorFiles, *,
        inferred: bool,
    ) -> Checkpoint:  # fmt: skip
        prefix = find_prefix(family, files)
        if prefix is None:
            raise FamilyError(
                f"{source}: there is no tensor {family.prefixes[0]}{family.input_embedding}; "
                f"its config says {config.model_type}, its weights do not"
            )
        return cls(source, folder, revision, config, family, inferred, family.shape(config), files, prefix)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def sha256(self) -> str:
        """The SHA-256 of the weight files, in order of their names."""
        return atlas_files.sha256(*self.files.paths)

    def tensor(self, name: str, expected: tuple[int | None, ...]) -> torch.Tensor:
        """One tensor, checked against its ``expected`` shape (None: any size) and for finite values.

        Raises FamilyError for a missing tensor or another shape, CheckpointError for unreadable or non-finite values.
        """
        if name not in self.files:
            raise FamilyError(f"{self.source}: there is no tensor {name}, which family {self.family.name} needs")
        found = self.files.shape(name)
        if len(found) != len(expected) or any(e not in (None, f) for e, f in zip(expected, found, strict=True)):
            wanted = " x ".join("V" if size is None else str(size) for size in expected)
            raise FamilyError(
                f"{self.source}: tensor {name} is {' x '.join(map(str, found))}, expected {wanted} "
                f"for family {self.family.name} with the numbers of config.json"
            )
        if self.files.dtype(name) not in _DTYPES:
            raise CheckpointError(
                f"{self.source}: tensor {name} is {self.files.dtype(name)}; "
                "paramdex reads float32, float16 and bfloat16"
            )
        tensor = self.files.tensor(name)
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
        extra = [name for name in self.files.names() if name.startswith(beyond)]
        if extra:
            raise FamilyError(
                f"{self.source}: config.json says {self.shape.n_layers} layers, but there is a tensor {extra[0]}"
            )

    def embedding(self, space: str = "output") -> tuple[torch.Tensor, str, bool]:
        """(E, which, tied): E (rows x d_model), 'output' or 'input', and whether the model ties the two.

        The one that ``space`` asks for; the input embedding where the checkpoint carries no output head. One of
        another width than the residual stream is given through the map between the two: E P, float32. Where that map
        leads into the stream, only the input embedding passes it, so it is the input embedding that is given.
        """
        input_name = self._prefix + self.family.input_embedding
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        if space == "input" or self._factor() == "inward":
            return self._embedding(input_name), "input", tied
        for name in self.family.output_embeddings:
            if name in self.files:
                output = self._embedding(name)
                if not tied or not torch.equal(output, self._embedding(input_name)):
                    return output, "output", False
        return self._embedding(input_name), ("output" if tied else "input"), tied

    def _factor(self) -> str | None:
        """Whether the checkpoint's map between an embedding of another width and the stream leads in or out."""
        tensor, axes = self.family.factor or ("", "")
        if self._prefix + tensor not in self.files:
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
        return self.files.dtype(name)
