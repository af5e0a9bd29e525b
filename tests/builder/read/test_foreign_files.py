"""Files as people have them, and damaged ones: read to the right numbers, or refused in one line that names them."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_OPTIONS
from safetensors.torch import load_file, save_file

import models
from paramdex.store.words import read_lines
from paramdex.verbs.user_vectors import user_vectors
from paramdex_builder import build
from paramdex_builder.measure.classifier import Classifier, read_labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.tokenizer import load_tokenizer
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import BuildError, CheckpointError, FamilyError, ParamdexError, QueryError
from paramdex_schemas.foreign import reading

FC = "transformer.h.0.mlp.c_fc.weight"
WTE = "transformer.wte.weight"
State = dict[str, Any]


# ---- the one mechanism


class PanicException(BaseException):  # what libraries in Rust raise
    """As pyo3 has it: no Exception."""


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (IndexError("list index out of range"), "list index out of range"),
        (struct.error("unpack requires 4 bytes"), "unpack requires 4 bytes"),
        (AssertionError(), "AssertionError"),
        (KeyError("weight_map"), "there is no 'weight_map'"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (MemoryError(), "it takes more memory than there is"),
        (OSError(13, "Permission denied", "/x"), "Permission denied"),
        (ValueError("one\ntwo"), "one"),
        (ValueError("of one field:\n  two"), "of one field: two"),
        (ValueError("\x1b[2Jgone \ud800"), r"\x1b[2Jgone \ud800"),
        (ValueError("a" * 1000), "a" * 300 + "..."),
        (PanicException("index out of bounds"), "index out of bounds"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else "",
)
def test_whatever_a_reader_raises_becomes_one_line(raised: BaseException, says: str) -> None:
    with pytest.raises(CheckpointError) as caught, reading("x.bin", CheckpointError, "is damaged", "fetch it again"):
        raise raised
    assert str(caught.value) == f"x.bin is damaged: {says}; fetch it again"
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, QueryError])
def test_what_is_raised_on_purpose_passes(raised: type[BaseException]) -> None:
    with pytest.raises(raised) as caught, reading("x.bin", CheckpointError):
        raise raised
    assert type(caught.value) is raised


def test_names_of_tensors_cannot_break_a_message() -> None:
    assert str(CheckpointError("tensor a\nb\x1b[2J\ud800")) == r"tensor a\nb\x1b[2J\ud800"


# ---- PyTorch's files


def rewritten(folder: Path, change: Callable[[State], Any]) -> None:
    """The model's weights in PyTorch's format, changed: in place, or to what ``change`` gives."""
    state: State = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    changed = change(state)
    torch.save(state if changed is None else changed, folder / "pytorch_model.bin")


def put(name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[State], None]:
    return lambda state: state.update({name: change(state[name])})


def wrapped(*starts: str, only: str = "") -> Callable[[State], State]:
    return lambda state: {f"{''.join(starts) if only in name else ''}{name}": value for name, value in state.items()}


def inside(step: str) -> Callable[[State], State]:
    """As where the layers alone are wrapped."""
    return lambda state: {name.replace("h.0.", f"h.0.{step}."): value for name, value in state.items()}


SAME: dict[str, Callable[[State], Any]] = {
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
    "a sparse matrix": put(FC, torch.Tensor.to_sparse),
    "a sparse matrix by rows": put(FC, torch.Tensor.to_sparse_csr),
    "a sparse embedding": put(WTE, torch.Tensor.to_sparse),
    "a turned matrix": put(FC, lambda value: value.T.contiguous().T),
    "a view of a larger one": put(FC, lambda value: torch.cat([value, value])[: len(value)]),
    "within a training checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
    "within another": lambda state: {"model": {name: torch.nn.Parameter(value) for name, value in state.items()}},
    "beside what is no tensor": lambda state: state.update({"_extra": None, "version": 3}),
    "of DataParallel": wrapped("module."),
    "of torch.compile": wrapped("_orig_mod."),
    "of both": wrapped("module.", "_orig_mod."),
    "of both the other way": wrapped("_orig_mod.", "module."),
    "of FSDP": wrapped("_fsdp_wrapped_module."),
    "of PEFT": wrapped("base_model.model."),
    "of layers wrapped by FSDP": inside("_fsdp_wrapped_module"),
    "of layers that are compiled": inside("_orig_mod"),
    "of the stack that is compiled": lambda state: {n.replace("mer.", "mer._orig_mod."): v for n, v in state.items()},
}


@pytest.mark.parametrize("what", SAME)
def test_state_dicts_as_people_save_them_are_read(word_model: Path, what: str) -> None:
    whole = Checkpoint.open(str(word_model))
    expected = [whole.rows(run).clone() for run in whole.layout.runs]
    E = whole.embedding()[0].clone()
    rewritten(word_model, SAME[what])
    found = Checkpoint.open(str(word_model))
    found.check_layers()
    assert torch.equal(found.embedding()[0], E)
    assert found.layout.runs == whole.layout.runs
    for run, rows in zip(found.layout.runs, expected, strict=True):
        assert torch.equal(found.rows(run), rows)
        assert not found.rows(run).requires_grad


def test_a_model_saved_as_parameters_is_built(word_model: Path, tmp_path: Path) -> None:
    rewritten(word_model, lambda state: {n: torch.nn.Parameter(v.to_sparse().to_dense()) for n, v in state.items()})
    build([str(word_model)], tmp_path / "x.atlas", SMALL_OPTIONS)


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "meta": (put(FC, lambda value: value.to("meta")), f"tensor {FC} of pytorch_model.bin cannot be read: it has no"),
    "complex": (put(FC, lambda value: value.to(torch.complex64)), f"tensor {FC} is complex64; paramdex reads float32"),
    "whole numbers": (put(FC, lambda value: value.to(torch.int8)), f"tensor {FC} is int8; paramdex reads float32"),
    "quantized": (
        put(FC, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
        f"tensor {FC} is qint8; paramdex reads float32",
    ),
    "a sparse matrix that is not finite": (
        put(FC, lambda value: (value * torch.inf).to_sparse()),
        f"tensor {FC} has 2304 values that are NaN or infinite",
    ),
    "a tensor": (lambda state: state[FC], "pytorch_model.bin is not a state dict: it holds a Tensor"),
    "a list": (lambda state: [*state.values()], "pytorch_model.bin is not a state dict: it holds a list"),
    "no tensors": (lambda _: {"lr": 0.1, "epoch": 3}, "pytorch_model.bin is not a state dict: it holds lr, epoch"),
    "two state dicts": (
        lambda state: {"model": state, "ema": state, "epoch": 3},
        "pytorch_model.bin is not a state dict: it holds model, ema; save the model's state dict alone",
    ),
    "nothing": (lambda _: [0], "pytorch_model.bin is not a state dict"),
    "wrapped in part": (wrapped("module.", only="wte"), "there is no tensor transformer.wte.weight"),
    "within another module": (
        wrapped("net."),
        "there is no tensor transformer.wte.weight, but net.transformer.wte.weight; save it with names",
    ),
    "wrapped and not": (
        lambda state: state.update({f"_orig_mod.{FC}": state[FC]}),
        f"{FC} and _orig_mod.{FC} would both be {FC}",
    ),
    "an adapter that is not merged": (
        lambda state: {
            **{n.replace(".weight", ".base_layer.weight"): v for n, v in state.items()},
            "transformer.h.0.mlp.c_fc.lora_A.default.weight": torch.ones(2, 24),
        },
        "model.merge_and_unload()",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_of_a_state_dict_is_named(word_model: Path, what: str) -> None:
    change, message = REFUSED[what]
    rewritten(word_model, change)
    with pytest.raises((CheckpointError, FamilyError)) as caught:
        Checkpoint.open(str(word_model)).check_layers()
    assert message in str(caught.value)
    assert str(word_model) in str(caught.value)


def test_a_mapped_file_that_is_cut_is_refused_and_stops_nothing(word_model: Path) -> None:
    """To read past the end of a mapped file is no error but the end of the process."""
    rewritten(word_model, State.copy)
    checkpoint = Checkpoint.open(str(word_model))
    file = word_model / "pytorch_model.bin"
    with file.open("rb+") as opened:
        opened.truncate(4096)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin changed while it was read"):
        checkpoint.check_layers()


def test_safetensors_cut_after_they_were_opened_are_refused(word_model: Path) -> None:
    checkpoint = Checkpoint.open(str(word_model))
    with (word_model / "model.safetensors").open("rb+") as opened:
        opened.truncate(20_000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or no safetensors file: .*; fetch it"):
        checkpoint.check_layers()


def test_weights_that_transformers_would_draw_at_random_are_no_model_to_run(word_model: Path) -> None:
    """What is read here, transformers does not find, and says so only where it is asked."""
    rewritten(word_model, lambda state: {"state_dict": state})
    checkpoint = Checkpoint.open(str(word_model))
    with pytest.raises(CheckpointError, match=r"transformers does not find \S+ and \d+ more in its weights"):
        Runner.open(checkpoint)


def test_a_head_that_transformers_would_draw_at_random_is_no_classifier(word_model: Path) -> None:
    file = word_model / "config.json"
    config = json.loads(file.read_text()) | {"architectures": ["GPT2ForSequenceClassification"]}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"transformers does not find score\.weight in its weights"):
        Classifier.open(str(word_model))


READS: list[tuple[str, Callable[[Path], Any]]] = [
    ("paramdex_builder.read.tensors.safe_open", lambda folder: Checkpoint.open(str(folder))),
    ("transformers.AutoConfig.from_pretrained", lambda folder: Checkpoint.open(str(folder))),
    ("transformers.AutoModel.from_pretrained", lambda folder: Runner.open(Checkpoint.open(str(folder)))),
    ("transformers.PreTrainedTokenizerFast.from_pretrained", lambda folder: load_tokenizer(str(folder), folder)),
    ("paramdex.verbs.user_vectors.safe_open", lambda folder: user_vectors(folder / "model.safetensors", 4, "m")),
]


@pytest.mark.parametrize(("reader", "read"), READS, ids=[reader for reader, _ in READS])
def test_what_is_no_exception_is_caught_at_every_reader(
    word_model: Path, monkeypatch: pytest.MonkeyPatch, reader: str, read: Callable[[Path], Any]
) -> None:
    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(reader, panic)
    with pytest.raises(ParamdexError, match=f"{word_model}.*: index out of bounds"):
        read(word_model)


# ---- JSON

DEEP = "[" * 100_000 + "]" * 100_000


def shards(folder: Path, where: Any = None) -> None:
    """The weights in two shards, and an index of ``where`` each tensor is."""
    right = models.split(folder)
    if where is not None:
        text = where if isinstance(where, str) else json.dumps({"weight_map": where(right)})
        (folder / "model.safetensors.index.json").write_text(text)


INDEXES: dict[str, tuple[Any, str]] = {
    "null": (lambda _: None, "index.json is damaged: it has no weight_map"),
    "a list": (lambda where: [*where], "index.json is damaged: it has no weight_map"),
    "empty": (lambda _: {}, "index.json is damaged: it has no weight_map"),
    "a tensor in null": (lambda where: where | {FC: None}, f"index.json is damaged: it says that {FC} is in None"),
    "a tensor in a number": (lambda where: where | {FC: 3}, f"it says that {FC} is in 3"),
    "a tensor in a list": (lambda where: where | {FC: ["x"]}, f"it says that {FC} is in ['x']"),
    "a tensor in no name": (lambda where: where | {FC: ""}, f"it says that {FC} is in ''"),
    "no JSON": ("{", "index.json is not a JSON object: Expecting"),
    "deep": (f'{{"weight_map": {DEEP}}}', "index.json is not a JSON object: it is nested too deeply"),
    "a number of 5,000 digits": (f'{{"weight_map": {"9" * 5000}}}', "index.json is not a JSON object: Exceeds the"),
    "text": ('"weight_map"', "index.json is not a JSON object: it holds a text, not an object"),
    "outside": (lambda where: where | {FC: "../x.safetensors"}, "leads out of the folder, to ../x.safetensors"),
    "outside further down": (lambda where: where | {FC: "a/../../x.safetensors"}, "leads out of the folder"),
    "an absolute path": (lambda where: where | {FC: "/etc/hostname"}, "leads out of the folder, to /etc/hostname"),
    "a null character": (lambda where: where | {FC: "x\0.bin"}, r"leads out of the folder, to x\x00.bin"),
    "a long name": (lambda where: where | {FC: "x" * 300}, "index.json is damaged: File name too long; fetch it again"),
    "half a character": (lambda where: where | {FC: "\ud800"}, r"the shard \ud800 is missing"),
}


@pytest.mark.parametrize("what", INDEXES)
def test_an_index_is_checked(word_model: Path, what: str) -> None:
    where, message = INDEXES[what]
    shards(word_model, where)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(word_model))
    assert message in str(caught.value)
    assert str(word_model) in str(caught.value)


def test_an_index_may_not_lead_through_links_either(word_model: Path, tmp_path: Path) -> None:
    shards(word_model, lambda where: where)
    shard = word_model / "model-00002-of-00002.safetensors"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shard.rename(elsewhere / shard.name)
    shard.symlink_to(elsewhere / shard.name)
    with pytest.raises(CheckpointError, match=r"leads out of the folder, to model-00002-of-00002\.safetensors"):
        Checkpoint.open(str(word_model))
    shard.unlink()
    (word_model / "below").symlink_to(elsewhere)
    index = word_model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, f"below/{shard.name}"))
    with pytest.raises(CheckpointError, match="leads out of the folder, to below/model-00002"):
        Checkpoint.open(str(word_model))
    (word_model / "below").unlink()
    shutil.copytree(elsewhere, word_model / "below")
    assert len(Checkpoint.open(str(word_model)).files.paths) == 2
    linked = tmp_path / "linked"  # the folder itself may be a link
    linked.symlink_to(word_model)
    assert len(Checkpoint.open(str(linked)).files.paths) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "config.json is not a JSON object: it is nested too deeply"),
        ("null", "config.json is not a JSON object: it holds null, not an object"),
        ("7", "config.json is not a JSON object: it holds a number, not an object"),
        ("\x00", "config.json is not a JSON object"),
        ('{"model_type": ["gpt2"]}', "config.json names no model_type"),
        ('{"model_type": "brandnew", "architectures": 5}', "config.json cannot be read: 'int' object is not iterable"),
        ('{"model_type": "gpt2", "n_embd": "wide"}', "config.json cannot be read by transformers"),
        ('{"model_type": "gpt2", "n_embd": 24, "n_head": 0}', "config.json"),
        ('{"model_type": "brandnew", "hidden_size": NaN}', "models of type 'brandnew' are not supported"),
    ],
)
def test_a_config_is_checked(word_model: Path, text: str, says: str) -> None:
    (word_model / "config.json").write_text(text)
    with pytest.raises((CheckpointError, FamilyError)) as caught:
        Checkpoint.open(str(word_model))
    assert says in str(caught.value)
    assert str(word_model) in str(caught.value)


# ---- what is there instead


def holding(*names: str) -> Callable[[Path], None]:
    """Has these files in place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_text("x")

    return change


THERE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gguf": (holding("m-q4.gguf", "m-q8.gguf"), "it holds m-q4.gguf and 1 more, llama.cpp's format; give the model"),
    "consolidated": (holding("consolidated.00.pth"), "it holds consolidated.00.pth, its maker's own format"),
    "consolidated safetensors": (holding("consolidated.safetensors"), "it holds consolidated.safetensors, its maker's"),
    "a variant": (
        holding("model.fp16.safetensors"),
        "it holds model.fp16.safetensors, a variant; to read it, rename it to model.safetensors",
    ),
    "a variant in shards": (
        holding("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
        "model.fp16-00001-of-00002.safetensors and 1 more, a variant",
    ),
    "a pickled variant": (holding("pytorch_model.fp16.bin"), "to read it, rename it to pytorch_model.bin"),
    "TensorFlow": (holding("tf_model.h5"), "it holds tf_model.h5, TensorFlow's format; load it with from_tf=True"),
    "Flax": (holding("flax_model.msgpack"), "it holds flax_model.msgpack, Flax's format"),
    "ONNX": (holding("model.onnx"), "it holds model.onnx, another program's format"),
    "an adapter's weights": (holding("adapter_model.safetensors"), "it holds adapter_model.safetensors, an adapter"),
    "another name": (holding("weights.safetensors"), "it holds weights.safetensors, no name of transformers'; load it"),
    "none": (holding(), "has no model.safetensors; save it with model.save_pretrained(folder), which writes one (it"),
    "some shards": (
        holding("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "holds 2 of 3 shards of model.safetensors, and not number 2",
    ),
    "shards of two models": (
        holding("model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"),
        "holds shards of two models",
    ),
}


@pytest.mark.parametrize("what", THERE)
def test_weights_that_are_not_read_are_named(word_model: Path, what: str) -> None:
    change, message = THERE[what]
    change(word_model)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(word_model))
    assert message in str(caught.value)


def test_shards_without_an_index_are_read_where_all_are_there(word_model: Path) -> None:
    whole = Checkpoint.open(str(word_model))
    expected = [whole.rows(run) for run in whole.layout.runs]
    shards(word_model)
    found = Checkpoint.open(str(word_model))
    for run, rows in zip(found.layout.runs, expected, strict=True):
        assert torch.equal(found.rows(run), rows)


def test_a_folder_without_a_config_is_told_by_what_it_holds(word_model: Path, tmp_path: Path) -> None:
    def says(source: Path, *messages: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(str(source))
        for message in messages:
            assert message in str(caught.value)

    runs = tmp_path / "runs"
    shutil.copytree(word_model, runs / "checkpoint-500")
    says(runs, f"{runs} is not a model: it has no config.json; give a folder in it that has one: checkpoint-500")
    shutil.copytree(word_model, runs / "checkpoint-900")
    (runs / "model_index.json").write_text("{}")
    says(runs, "give a folder in it that has one: checkpoint-500, checkpoint-900")
    empty = tmp_path / "empty"
    empty.mkdir()
    says(empty, "it has no config.json; the folder is empty")
    (empty / "m.gguf").write_text("GGUF")
    says(empty, "it has no config.json; it holds m.gguf, llama.cpp's format")
    says(empty / "m.gguf", f"{empty}/m.gguf is a file of llama.cpp's format; give the model that it was made from")
    says(word_model / "model.safetensors", "is a file; give the folder that holds", f"weights, {word_model}")
    (empty / "m.gguf").rename(empty / "params.json")
    says(empty, "it has no config.json; it holds params.json")
    (word_model / "config.json").unlink()
    says(word_model, "it has no config.json; it holds ", "model.safetensors, tokenizer.json, tokenizer_config.json")


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("mpnet", "are not supported; there are albert,"),
        ("gemma9", "are not supported; there are albert,"),
        ("llada", "are not supported; there are albert,"),
        ("gtp2", "are not supported; did you mean gpt2?"),
        ("gpt-neox", "are not supported; did you mean gpt_neox"),
        ("Lama", "are not supported; did you mean llama?"),
        ("bertt", "are not supported; did you mean bert?"),
    ],
)
def test_only_a_mistyped_type_is_told_what_was_meant(word_model: Path, model_type: str, says: str) -> None:
    file = word_model / "config.json"
    file.write_text(json.dumps({"model_type": model_type, "hidden_size": 24, "num_hidden_layers": 7}))
    with pytest.raises(FamilyError) as caught:
        Checkpoint.open(str(word_model))
    assert says in str(caught.value)


# ---- the user's own files


def numpy_file(path: Path, header: str, data: bytes = b"\0" * 32) -> Path:
    """A .npy of version 1.0 with whatever header."""
    text = header.encode("latin1") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", None),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000, 4), }", "x.npy cannot be read: "),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", "x.npy cannot be read: "),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }", "x.npy cannot be read: Object arrays"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': 4}", "x.npy cannot be read: "),
        ("{'descr': [], 'fortran_order': False, 'shape': (4,)}", "x.npy "),
        ("{'descr': '<f4'", "x.npy cannot be read: "),
        ("(" * 9000, "x.npy cannot be read: "),
        ("\x00" * 50, "x.npy cannot be read: "),
        ("{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (4,)}", "entries of type"),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4,)}", "entries of type datetime64"),
    ],
)
def test_the_header_of_an_array_is_checked(tmp_path: Path, header: str, says: str | None) -> None:
    path = numpy_file(tmp_path / "x.npy", header, np.arange(1, 9, dtype="<f4").tobytes())
    if says is None:
        assert user_vectors(path, 4, "m").rows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        return
    with pytest.raises(QueryError) as caught:
        user_vectors(path, 4, "m")
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_several_arrays_are_no_vector(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones(4))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(QueryError, match=r"x\.npy is a \.npz file, which holds several arrays"):
        user_vectors(tmp_path / "x.npy", 4, "m")
    (tmp_path / "x.npy").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(QueryError, match=r"x\.npy cannot be read: File is not a zip file"):
        user_vectors(tmp_path / "x.npy", 4, "m")


def test_a_tensor_in_eight_bits_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(QueryError, match=r"x\.safetensors"):
        user_vectors(tmp_path / "x.safetensors", 4, "m")


def test_word_lists_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffwein\nkäse\n".encode())
    assert read_lines(path, "words") == ["wein", "käse"]
    for raw in ("käse".encode("utf-16"), b"\xff\xfe\x00"):
        path.write_bytes(raw)
        with pytest.raises(QueryError, match=r"^the words .*words\.txt cannot be read: it is not UTF-8 text$"):
            read_lines(path, "words")
    with pytest.raises(QueryError, match=r"^the words .* cannot be read: Is a directory$"):
        read_lines(tmp_path, "words")
    with pytest.raises(QueryError, match=r"^the words a\\x00b cannot be read: embedded null byte$|null"):
        read_lines("a\0b", "words")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "bread", "label": ' + DEEP + "}", "line 2: not a JSON object with text and label: it is nested too"),
        ('{"text": "bread"}', "line 2: not a JSON object with text and label: there is no 'label'"),
        ("7", "line 2: not a JSON object with text and label"),
        ('{"text": "bread", "label": null}', "line 2: text must be a text that is not empty, label a name or a number"),
        ('{"text": "bread \\ud800", "label": 1}', r"line 2: 'bread \ud800' is not valid UTF-8 text"),
    ],
)
def test_labelled_texts_are_checked(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"text": "butter", "label": 0}\n' + line)
    with pytest.raises(BuildError) as caught:
        read_labelled(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_family_of_models_is_named_with_the_model_that_does_not_fit(word_model: Path) -> None:
    file = word_model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_layer": -1}))
    with pytest.raises(ParamdexError, match=str(word_model)):
        Checkpoint.open(str(word_model))
