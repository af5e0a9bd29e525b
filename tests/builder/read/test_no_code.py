"""Whatever lies in a folder, none of it is run and nobody is asked whether it may be."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fuzz_readers
import models
from paramdex.verbs.user_vectors import user_vectors
from paramdex.web.load.processes import Process
from paramdex_builder.measure.classifier import Classifier
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.read.families import by_model_type
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import CheckpointError, ParamdexError, QueryError

AUTOS = [
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer",
    "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor",
]  # fmt: skip
CONFIGS = [
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
]
MODULES = ["evil", "custom_generate/generate", "sitecustomize", "torch", "duckdb", "numpy", "paramdex", "transformers"]
ALL = [*by_model_type(), "evil", "clip", "whisper"]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that there is once code of a folder's has run, or somebody was asked."""
    file = tmp_path / "ran"

    def asked(*_: object) -> str:
        file.write_text("asked")
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    return file


def poisoned(folder: Path, ran: Path, **config: Any) -> Path:
    """A folder whose files all name code that lies beside them."""
    said = {
        "auto_map": dict.fromkeys(AUTOS, "evil.Evil"),
        "trust_remote_code": True,
        "_attn_implementation": "evil/kernel",
        "custom_generate": "evil/evil",
        "custom_pipelines": {"x": {"impl": "evil.Evil", "pt": ["AutoModel"]}},
        "chat_template": "{{ cycler.__init__.__globals__.os.system('touch " + str(ran) + "') }}",
    }
    for name in CONFIGS:
        file = folder / name
        if file.is_file() or not name.startswith("adapter"):
            own = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(own | said | (config if name == "config.json" else {})))
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').write('ran')\nclass Evil: pass\n")
    return folder


def tried(*reads: Callable[[], Any]) -> list[bool]:
    """Which of these end in an answer; the others raise an error of paramdex's."""

    def one(read: Callable[[], Any]) -> bool:
        try:
            read()
        except ParamdexError:
            return False
        return True

    return [one(read) for read in reads]


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("whole", [True, False], ids=["with tokenizer.json", "without"])
def test_models(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, whole: bool) -> None:
    folder = tmp_path / "model"
    fuzz_readers.tiny(folder)
    poisoned(folder, ran, model_type=model_type)
    if not whole:
        (folder / "tokenizer.json").unlink()
    monkeypatch.chdir(folder)
    answered = tried(
        lambda: Checkpoint.open(str(folder)).check_layers(),
        lambda: read_vocabulary(str(folder), folder, fuzz_readers.ROWS),
        lambda: Runner.open(Checkpoint.open(str(folder))),
        lambda: Classifier.open(str(folder)),
        lambda: Displacement.open(str(folder), str(folder)),
    )
    if model_type == "gpt2":  # what it is: its code is left alone, and the rest is read
        assert answered == [True, whole, whole, False, True]
    assert not ran.exists()


def test_adapters(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"
    fuzz_readers.as_adapter(folder)
    for each in (folder, folder / "base"):
        poisoned(each, ran)
    monkeypatch.chdir(folder)
    assert tried(lambda: Displacement.open(str(folder), str(folder / "base")).check_layers()) == [True]
    tried(lambda: Classifier.open(str(folder), str(folder / "base")))
    assert not ran.exists()


class Calls:
    """Of which a pickle calls a function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "called"),
    [
        (eval, "eval"),
        (os.system, "posix.system"),
        (subprocess.call, "commands.call"),
        (getattr, "getattr"),
        (functools.partial, "functools.partial"),
        (torch.load, "torch.serialization.load"),
        (open, "io.open"),
    ],
)
def test_pickles(tmp_path: Path, ran: Path, function: Any, called: str, zipped: bool) -> None:
    folder = tmp_path / "model"
    fuzz_readers.in_pickle(folder)
    file = folder / "pytorch_model.bin"
    state = dict(torch.load(file, weights_only=True))
    torch.save(state | {"x": Calls(function, f"touch {ran}")}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(folder))
    assert str(caught.value) == (
        f"{folder}: pytorch_model.bin is damaged or holds more than tensors: it calls {called}, and no code of a "
        "model's is run; convert it to safetensors"
    )
    assert not ran.exists()


def test_pickles_of_what_is_usual_beside_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fuzz_readers.in_pickle(folder)
    file = folder / "pytorch_model.bin"
    state = dict(torch.load(file, weights_only=True))
    usual = {"size": torch.Size([2]), "order": OrderedDict(a=1), "set": {1}, "dtype": torch.float16, "step": 3}
    torch.save(state | usual, file)
    checkpoint = Checkpoint.open(str(folder))
    assert torch.equal(checkpoint.embedding()[0], state["transformer.wte.weight"])


@pytest.mark.parametrize("what", ["a pickle", "an array of objects"])
def test_pickles_in_place_of_an_array(tmp_path: Path, ran: Path, what: str) -> None:
    file = tmp_path / "x.npy"
    if what == "a pickle":
        file.write_bytes(pickle.dumps(Calls(os.system, f"touch {ran}")))
    else:
        np.save(file, np.array([Calls(os.system, f"touch {ran}")], dtype=object), allow_pickle=True)
    with pytest.raises(QueryError) as caught:
        user_vectors(file, 4, "m")
    assert str(caught.value).startswith(f"{file} cannot be read: ")
    assert "unsafe" not in str(caught.value)
    assert not ran.exists()


def test_the_processes_of_a_server_take_no_module_of_the_current_folder(
    small_atlas: Path, tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.save_word_model(tmp_path / "model")
    poisoned(folder, ran)
    atlas = small_atlas.resolve()
    monkeypatch.chdir(folder)
    Process("paramdex.web.sql.worker", str(atlas), "256").end()
    assert not ran.exists()


def test_the_state_of_a_poisoned_model_is_the_plain_ones(tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "model"
    fuzz_readers.tiny(folder)
    before = Checkpoint.open(str(folder))
    runner = Runner.open(before)
    batch = runner.batch([[1, 2, 3]])
    plain = [state.clone() for state in runner.states(batch)]
    poisoned(folder, ran)
    again = Runner.open(Checkpoint.open(str(folder)))
    assert all(torch.equal(*pair) for pair in zip(plain, again.states(batch), strict=True))
    wte = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(Checkpoint.open(str(folder)).embedding()[0], wte)
    assert not ran.exists()
