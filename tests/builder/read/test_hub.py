"""Models on the hub, of which only what is read is fetched, and their revisions; asked of an imitation of the hub."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from conftest import SMALL_OPTIONS
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file

import models
import paramdex
from hub import Hub, commit_of, send
from paramdex_builder import build
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.hub import Origin, own_name
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.read.weight_files import choose
from paramdex_schemas import CheckpointError


class Client:
    """huggingface_hub with a cache of the test's own, which takes an imitation for the hub."""

    def __init__(self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.patch = hub, monkeypatch
        self.patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        self.patch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        self.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.offline(is_so=False)

    def offline(self, *, is_so: bool) -> None:
        self.patch.setattr(constants, "HF_HUB_OFFLINE", is_so)

    def opened(self, source: str) -> tuple[str | None, float]:
        """The commit and the sum of the embedding of a model, of which all that a build reads is read."""
        checkpoint = Checkpoint.open(source)
        E = checkpoint.embedding()[0]
        read_vocabulary(source, checkpoint.folder, len(E))
        checkpoint.check_layers()
        return checkpoint.revision, float(E.double().sum())

    def refused(self, source: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            self.opened(source)
        return str(caught.value)


def sum_of(folder: Path) -> float:
    return float(load_file(folder / "model.safetensors")["transformer.wte.weight"].double().sum())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPT-2 in shards and twice more, as many repositories have it; another step of it; and one that is quantized."""
    root = tmp_path_factory.mktemp("repositories")
    twice, step, quantized = (models.save_word_model(root / f"{seed}", seed) for seed in (1, 2, 3))
    state = load_file(twice / "model.safetensors")
    torch.save(state, twice / "pytorch_model.bin")
    save_file(state, twice / "consolidated.safetensors")
    (twice / "original").mkdir()
    save_file(state, twice / "original" / "model.safetensors")
    (twice / "original" / "tokenizer.model").write_text("x")
    for name in ("tf_model.h5", "README.md", "model.onnx", "modeling_mine.py"):
        (twice / name).write_text("x")
    sharded = Path(shutil.copytree(twice, root / "sharded"))
    (sharded / "model.safetensors").unlink()
    names = sorted(state)
    where = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: state[name] for name in names if where[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    pickled = Path(shutil.copytree(twice, root / "pickled"))
    (pickled / "model.safetensors").unlink()
    outside = Path(shutil.copytree(quantized, root / "outside"))
    (outside / "config.json").write_text(json.dumps(config))
    (outside / "model.safetensors").rename(outside / "y.safetensors")
    (outside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    gguf = root / "gguf"
    gguf.mkdir()
    (gguf / "model-q4.gguf").write_text("GGUF")
    return {
        "whole": twice,
        "step": step,
        "quantized": quantized,
        "sharded": sharded,
        "pickled": pickled,
        "gguf": gguf,
        "outside": outside,
    }


@pytest.fixture
def client(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    others = {f"owner/{name}": {"main": folder} for name, folder in folders.items()}
    whole = {"main": folders["whole"], "step1000": folders["step"]}
    with Hub({**others, "owner/whole": whole}) as hub:
        yield Client(hub, tmp_path / "cache", monkeypatch)


TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("whole", ["model.safetensors"]),
        (
            "sharded",
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        ("pickled", ["pytorch_model.bin"]),
    ],
)
def test_just_what_is_read_is_fetched_once(
    client: Client, folders: dict[str, Path], name: str, weights: list[str]
) -> None:
    expected = (commit_of(folders[name]), pytest.approx(sum_of(folders["whole"]), rel=1e-12))
    assert client.opened(f"owner/{name}") == expected
    assert client.hub.fetched[0] == "config.json"
    assert sorted(client.hub.fetched) == sorted(["config.json", *TOKENIZER, *weights])
    client.hub.fetched.clear()
    for is_so in (True, False):
        client.offline(is_so=is_so)
        assert client.opened(f"owner/{name}") == expected
    assert client.hub.fetched == []


def test_a_hub_that_says_nothing_is_not_waited_for(client: Client) -> None:
    heard, end = [], threading.Event()

    def silent(request: BaseHTTPRequestHandler) -> bool:
        if end.is_set() or "/api/" not in request.path:
            return False
        heard.append(request.path)
        end.wait(30)
        return True

    client.patch.setattr("paramdex_builder.read.hub._SECONDS", 0.2)
    client.hub.fault = silent
    says = "there is no folder owner/whole, and a model of that name was not found in the hub's cache or on the hub: "
    started = time.monotonic()
    assert client.refused("owner/whole") == f"{says}Got: ReadTimeout: timed out"
    assert time.monotonic() - started < 20
    assert heard
    end.set()
    expected = client.opened("owner/whole")
    end.clear()
    assert client.opened("owner/whole") == expected  # from the cache


@pytest.mark.parametrize(
    ("status", "code", "where", "says"),
    [
        (403, "GatedRepo", "", "is gated: ask for access at {url}/owner/whole, and log in with: hf auth"),
        (401, "GatedRepo", "config.json", "is gated: ask for access at {url}/owner/whole, and log in"),
        (401, "", "", "in the hub's cache or on the hub: Client error '401 Unauthorized' for url"),
        (429, "", "/api/", "in the hub's cache or on the hub: Got: HfHubHTTPError: 429 Too Many Requests"),
        (500, "", "/api/", "in the hub's cache or on the hub: Got: HfHubHTTPError: Server error '500 Internal"),
        (404, "EntryNotFound", "tokenizer.json", ": tokenizer.json and 1 more cannot be fetched from the hub: "),
        (403, "GatedRepo", "model.safetensors", ": model.safetensors cannot be fetched from the hub: "),
    ],
)
def test_what_the_hub_refuses_is_said(client: Client, status: int, code: str, where: str, says: str) -> None:
    def refuse(request: BaseHTTPRequestHandler) -> bool:
        if where in request.path:
            send(request, status, {"X-Error-Code": code} if code else {})
        return where in request.path

    client.hub.fault = refuse
    said = client.refused("owner/whole")
    assert said.startswith(("owner/whole", "there is no folder owner/whole, and a model of that name was not found"))
    assert says.format(url=client.hub.url) in said
    client.hub.fault = lambda _: False
    assert client.opened("owner/whole")[0] is not None


@pytest.mark.parametrize("whole", [True, False])
def test_files_that_end_early_are_not_taken(client: Client, folders: dict[str, Path], whole: bool) -> None:
    """Whether the hub says so of the length, or closes the connection on the way."""

    def short(request: BaseHTTPRequestHandler) -> bool:
        if request.command != "GET" or not request.path.endswith("/model.safetensors"):
            return False
        body = (folders["whole"] / "model.safetensors").read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(1000 if whole else len(body)))
        request.end_headers()
        request.wfile.write(body[:1000])
        request.close_connection = True
        return True

    client.patch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    client.hub.fault = short
    assert client.refused("owner/whole").startswith("owner/whole: model.safetensors cannot be fetched from the hub: ")
    client.hub.fault = lambda _: False
    assert client.opened("owner/whole")[1] == pytest.approx(sum_of(folders["whole"]), rel=1e-12)


def test_what_is_refused_by_its_config_has_no_weights_fetched(client: Client) -> None:
    assert client.refused("owner/quantized").startswith("owner/quantized is quantized")
    says = "owner/gguf is not a model: it has no config.json; it holds model-q4.gguf, llama.cpp's format"
    assert client.refused("owner/gguf").startswith(says)
    assert client.hub.fetched == ["config.json"]


def test_an_index_that_leads_out_of_the_model_has_no_weights_fetched(client: Client, folders: dict[str, Path]) -> None:
    index = folders["outside"] / "model.safetensors.index.json"
    assert "index.json leads out of the folder, to ../x.safetensors" in client.refused("owner/outside")
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    client.patch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-2")
    assert client.refused("owner/outside") == "owner/outside: the shard x.safetensors is missing; fetch it again"
    assert not any(name.endswith(".safetensors") for name in client.hub.fetched)


def test_revisions(client: Client, folders: dict[str, Path]) -> None:
    commit = commit_of(folders["step"])
    step = (commit, pytest.approx(sum_of(folders["step"]), rel=1e-12))
    assert client.opened("owner/whole@step1000") == step
    assert client.opened(f"owner/whole@{commit}") == step
    says = "and a model of that name and revision was not found in the hub's cache or on the hub: "
    for none in ("owner/whole@step2000", "owner/none@step1000"):
        assert client.refused(none).startswith(f"there is no folder {none}, {says}")
    client.offline(is_so=True)
    assert client.opened("owner/whole@step1000") == step


def test_a_cache_that_holds_only_some_files(client: Client, folders: dict[str, Path]) -> None:
    """As transformers and others fetch them, one by one: without the list of what there is."""
    for name in ("config.json", *TOKENIZER):
        hf_hub_download("owner/whole", name)
    client.offline(is_so=True)
    says = "owner/whole has no model.safetensors; it is not in the hub's cache, and the hub cannot be asked ("
    assert client.refused("owner/whole").startswith(says)
    client.offline(is_so=False)
    hf_hub_download("owner/whole", "pytorch_model.bin")  # another than would be fetched
    client.offline(is_so=True)
    expected = (commit_of(folders["whole"]), pytest.approx(sum_of(folders["whole"]), rel=1e-12))
    assert client.opened("owner/whole") == expected


def test_a_revision_is_built_and_recorded_by_its_commit(
    client: Client, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["step"], tmp_path / "c@2")
    monkeypatch.chdir(tmp_path)
    build(["owner/whole@step1000", "main=owner/whole", "./c@2"], "x.atlas", SMALL_OPTIONS)
    found = paramdex.open("x.atlas").sql("SELECT model, source, revision FROM models ORDER BY model")
    assert found.to_rows() == [
        {"model": "c-2", "source": "./c@2", "revision": None},
        {"model": "main", "source": "owner/whole", "revision": commit_of(folders["whole"])},
        {"model": "whole-step1000", "source": "owner/whole@step1000", "revision": commit_of(folders["step"])},
    ]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("EleutherAI/pythia-70m@step1000", "pythia-70m-step1000"),
        ("gpt2@refs/pr/4", "gpt2-refs-pr-4"),
        ("owner/gpt2", "gpt2"),
        ("./runs/gpt2@best/", "gpt2-best"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert own_name(source) == name


def test_links_of_the_hubs_cache_are_followed_and_no_others(folders: dict[str, Path], tmp_path: Path) -> None:
    """A snapshot holds links to blobs, which may be links to files that several models share."""
    model = tmp_path / "models--owner--sharded"
    snapshot, blobs, shared = model / "snapshots" / ("1" * 40), model / "blobs", tmp_path / "blobs" / "ab"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    for i, file in enumerate(sorted(path for path in folders["sharded"].iterdir() if path.is_file())):
        shutil.copy(file, shared / f"{i}")
        (blobs / f"blob{i}").symlink_to(f"../../blobs/ab/{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{i}")
    assert len(choose(Origin("x", snapshot)).names) == 2
    outside = Path(shutil.copytree(snapshot, tmp_path / "copied", symlinks=True))
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):  # its links lead nowhere now
        choose(Origin("x", outside))
    outside = Path(shutil.copytree(snapshot, tmp_path / "snapshots" / "folder", symlinks=False))
    shard = outside / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to(folders["sharded"] / shard.name)
    with pytest.raises(CheckpointError, match=r"index\.json leads out of the folder, to model-00001-of"):
        choose(Origin("x", outside))
