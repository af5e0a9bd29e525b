"""Messages about a folder, or a model on the hub, without the files that are needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from paramdex_builder.read.hub import Origin

_SAVE = "save it with model.save_pretrained(folder)"
_SOURCE = "give the model that it was made from"
_GGUF = f"llama.cpp's format; {_SOURCE}"
_OTHERS = {
    r".*\.gguf": _GGUF,
    r"consolidated.*\.(pth|safetensors)": "its maker's own format; fetch the model as transformers has it",
    r"(pytorch_)?model\.(?!safetensors|bin)[^./]+\.(safetensors|bin)": "a variant; to read it, rename it to {plain}",
    r"tf_model.*\.h5|.*\.ckpt(-\d+)?\.index": f"TensorFlow's format; load it with from_tf=True and {_SAVE}",
    r"flax_model.*\.msgpack": f"Flax's format; load it with from_flax=True and {_SAVE}",
    r".*\.onnx(_data)?|openvino_.*|.*\.(tflite|mlmodel|ot|engine)": f"another program's format; {_SOURCE}",
    r"adapter_model\.(safetensors|bin)": "an adapter; give it with its adapter_config.json, and its base with --base",
    r"(?!(pytorch_)?model[.-]).*\.(safetensors|bin|pt|pth|ckpt)": f"no name of transformers'; load it and {_SAVE}",
}
"""Names of files that hold weights and are not read -> what they are, and what to do."""


def without_weights(origin: Origin, names: Sequence[str]) -> str:
    """The end of a message on a model without weights of one of these names: what is there, and what to do."""
    if origin.unlisted is not None:
        return f"it is not in the hub's cache, and the hub cannot be asked ({origin.unlisted})"
    return _no_file(origin, *names) or _others(origin.names) or f"{_SAVE}, which writes one ({_listed(origin.names)})"


def without_config(origin: Origin) -> str:
    """The end of a message on a folder without a config.json: what is there, and what to do."""
    names = origin.names
    below = [name.partition("/")[0] for name in names if re.fullmatch(r"[^/]+/config\.json", name)]
    if below and origin.repo is None:
        return f"give a folder in it that has one: {_some(below)}"
    return _no_file(origin, "config.json") or _others(names) or _listed(names)


def in_place_of_a_folder(path: Path) -> str:
    """The message on a file that is given as a model."""
    if path.suffix == ".gguf":
        return f"{path} is a file of {_GGUF}"
    whole = f", {path.parent}" if (path.parent / "config.json").is_file() else ""
    return f"{path} is a file; give the folder that holds config.json and the weights{whole}"


def _no_file(origin: Origin, *names: str) -> str | None:
    """Describes whatever has one of these names and is not a file."""
    for name in names:
        path = origin.folder / name
        if path.is_symlink() and not path.exists():
            return f"{name} in it is a link that leads nowhere; copy it again with what it links to"
        if path.exists() and not path.is_file():
            return f"{name} in it is {'a folder' if path.is_dir() else 'no file'}; fetch it again"
    return None


def _others(names: Sequence[str]) -> str | None:
    """Describes the first weight file that is present but cannot be read."""
    for pattern, what in _OTHERS.items():
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            plain = re.sub(r"model\.[^./]+\.", "model.", re.sub(r"-\d+-of-\d+", "", found[0]))
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"it holds {found[0]}{more}, {what.format(plain=plain)}"
    return None


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "the folder is empty"
    return f"it holds {_some(names)}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
