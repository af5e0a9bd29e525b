"""Reading tokenizers: none is made up, no code of a folder's runs, added tokens past the embedding are left out, and
whatever is wrong with a file is one line that names it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import models
from paramdex_builder import Options, build
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import typed_config
from paramdex_builder.read.tokenizer import load_tokenizer
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream.forward import Runner, load
from paramdex_schemas import BuildError, CheckpointError
from paramdex_schemas.progress import Progress

OTHER_FILES = {"vocab.txt": "w1 1\nw2 1\n", "bpe.codes": "#version\n"}
"""What BERTweet and PhoBERT have."""


def folder_of(tmp_path: Path, files: dict[str, Any]) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def refusal(folder: Path, rows: int = 320) -> str:
    """Of ``read_vocabulary``: one line that begins with the folder."""
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(str(folder), folder, rows)
    message = str(caught.value)
    assert message.startswith(f"{folder}")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("model_type", "files", "wanted"),
    [
        ("gpt2", OTHER_FILES, "GPT2Tokenizer reads its vocabulary from vocab.json with merges.txt or tokenizer.json"),
        ("roberta", OTHER_FILES, "RobertaTokenizer reads its vocabulary from vocab.json with merges.txt or"),
        ("qwen2", OTHER_FILES, "Qwen2Tokenizer reads its vocabulary from vocab.json with merges.txt or"),
        ("opt", OTHER_FILES, "GPT2Tokenizer reads its vocabulary from vocab.json with merges.txt or"),
        (
            "qwen2",
            {"vocab.txt": "a\nb", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
            "Qwen2Tokenizer reads its vocabulary from vocab.json with merges.txt or",  # for which transformers takes it
        ),
        ("xlm-roberta", OTHER_FILES, "reads its vocabulary from sentencepiece.bpe.model or tokenizer.json"),
        ("camembert", OTHER_FILES, "reads its vocabulary from sentencepiece.bpe.model or tokenizer.json"),
        ("bert", {"vocab.json": {"a": 0}, "merges.txt": ""}, "reads its vocabulary from vocab.txt or tokenizer.json"),
        ("gemma", {"vocab.json": {"a": 0}}, "from tokenizer.json, and the folder has only vocab.json; save_pretrained"),
        ("t5", {"vocab.txt": "a\nb"}, "reads its vocabulary from spiece.model or tokenizer.json"),
        ("llama", {"vocab.json": {"a": 0}}, "reads its vocabulary from tokenizer.model or tokenizer.json"),
        ("gpt2", {"vocab.json": {"a": 0}}, "vocab.json with merges.txt or tokenizer.json, and the folder has only v"),
    ],
)
def test_a_vocabulary_is_never_made_up(tmp_path: Path, model_type: str, files: dict[str, Any], wanted: str) -> None:
    folder = folder_of(tmp_path, {"config.json": {"model_type": model_type}, **files})
    assert wanted in refusal(folder)


def test_vocabulary_files_of_the_type_are_read(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "canada", "##s"]
    folder = folder_of(tmp_path, {"config.json": {"model_type": "bert"}, "vocab.txt": "\n".join(words)})
    assert read_vocabulary(str(folder), folder, 7).tokens == words
    (folder / "vocab.txt").unlink()
    (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "c": 1, "a": 2, "ca": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\n")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert read_vocabulary(str(folder), folder, 4).tokens == ["<|endoftext|>", "c", "a", "ca"]


def test_a_tokenizer_json_is_read_as_it_stands(tmp_path: Path) -> None:
    """Classes of transformers would take its vocabulary alone, and read WordPiece as their own byte-level BPE."""
    models.wordpiece_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    vocabulary = read_vocabulary(str(tmp_path), tmp_path, 86)
    assert vocabulary.texts[vocabulary.tokens.index("##ing")] == "ing"
    ids = load_tokenizer(str(tmp_path), tmp_path)("canada!")["input_ids"]
    assert [vocabulary.tokens[i] for i in ids] == ["canada", "!"]


def word_level(tokens: list[str], special: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    backend.add_special_tokens(tokens[:special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=tokens[0])


@pytest.mark.parametrize("n", [1, 5])
def test_special_tokens_alone_are_no_vocabulary(tmp_path: Path, n: int) -> None:
    word_level([f"<{i}>" for i in range(n)], n).save_pretrained(tmp_path)
    assert f"its tokenizer has {n} special tokens and no other" in refusal(tmp_path, n)


@pytest.mark.parametrize(
    ("n_tokens", "rows", "belong"),
    [
        (160, 320, True), (159, 320, False), (5, 60, False), (5, 320, False), (100, 50257, False),
        (33, 64, True), (28, 128, True), (20, 256, True), (20, 192, False), (20, 32, True), (65, 65, True),
    ],
)  # fmt: skip
def test_most_rows_of_the_embedding_have_a_token(tmp_path: Path, n_tokens: int, rows: int, belong: bool) -> None:
    """Half of them, or all but what rounds up to 8, 16, ..., 256 or a multiple of these."""
    word_level(["[UNK]", *(f"w{i}" for i in range(n_tokens - 1))], 1).save_pretrained(tmp_path)
    if belong:
        assert len(read_vocabulary(str(tmp_path), tmp_path, rows)) == n_tokens
    else:
        assert f"the tokenizer has only {n_tokens} tokens for the embedding's {rows} rows" in refusal(tmp_path, rows)


CODE = "import pathlib\npathlib.Path({ran!r}).write_text('x')\nfrom transformers import GPT2Tokenizer as MyTok\n"
MAPS: dict[str, Any] = {
    "slow": {"AutoTokenizer": ["tok.MyTok", None]},
    "fast": {"AutoTokenizer": [None, "tok.MyTok"]},
    "a list": ["tok.MyTok", None],
    "a text": {"AutoTokenizer": "tok.MyTok"},
}


def remote(tmp_path: Path, auto_map: Any, **config: Any) -> tuple[Path, Path]:
    """A word model whose tokenizer is code of its folder's, and the file that the code would write."""
    folder, ran = models.save_word_model(tmp_path / "remote"), tmp_path / "ran"
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map} | config))
    (folder / "tok.py").write_text(CODE.format(ran=str(ran)))
    (folder / "vocab.json").write_text('{"a": 0}')
    return folder, ran


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paramdex", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input="y\n" * 9, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("auto_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("config", [{"tokenizer_class": "MyTok"}, {"tokenizer_class": "GPT2Tokenizer"}, {}])
def test_code_of_a_folder_is_no_tokenizer(tmp_path: Path, auto_map: Any, config: dict[str, Any]) -> None:
    folder, ran = remote(tmp_path, auto_map, **config)
    (folder / "tokenizer.json").unlink()
    message = refusal(folder, 60)
    assert "its tokenizer is code of its own (tok.MyTok), which is never run, and there is no tokenizer.json" in message
    assert not ran.exists()


def test_no_prompt_whatever_a_person_types(tmp_path: Path) -> None:
    """In the program, with a person who says yes to everything: one line, exit 2, and nothing has run."""
    folder, ran = remote(tmp_path, MAPS["slow"], tokenizer_class="MyTok")
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "tok.MyTok", "AutoModel": "tok.MyTok", "AutoModelForCausalLM": "tok.MyTok"}
    (folder / "config.json").write_text(json.dumps(config))
    for command in (["build", folder, "-o", "x.atlas"], ["evaluate", folder, "--text", folder / "tok.py"]):
        done = program(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: {folder}: its tokenizer is code of its own")
        assert done.stderr.count("\n") == 1
    assert not ran.exists()


@pytest.mark.parametrize("auto_map", MAPS.values(), ids=MAPS)
def test_a_tokenizer_json_beside_code_is_read(tmp_path: Path, auto_map: Any) -> None:
    folder, ran = remote(tmp_path, auto_map, tokenizer_class="MyTok", unk_token="[UNK]")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "tok.MyTok", "AutoModel": "tok.MyTok", "AutoModelForCausalLM": "tok.MyTok"}
    (folder / "config.json").write_text(json.dumps(config))
    plain = models.save_word_model(tmp_path / "plain")
    vocabulary = read_vocabulary(str(folder), folder, 60)
    assert vocabulary.tokens == read_vocabulary(str(plain), plain, 60).tokens
    assert typed_config(str(folder), folder).n_layer == 2
    runner = Runner.open(Checkpoint.open(str(folder)))
    assert runner.tokens(["canada"], 8) == [[vocabulary.tokens.index("canada")]]
    assert not ran.exists()


def test_classes_that_transformers_does_not_have(tmp_path: Path) -> None:
    files = {"config.json": {"model_type": "gpt2"}, "vocab.json": {"a": 0}, "merges.txt": ""}
    folder = folder_of(tmp_path, {**files, "tokenizer_config.json": {"tokenizer_class": "NobodysTokenizer"}})
    assert "transformers has no tokenizer NobodysTokenizer, and there is no tokenizer.json" in refusal(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": ["GPT2Tokenizer"]}')
    assert "transformers has no tokenizer ['GPT2Tokenizer']" in refusal(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_names_no_code_for_attention(tmp_path: Path, key: str) -> None:
    """transformers would fetch the named kernel from the hub and run it."""
    folder = models.save_word_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "someone/kernel"}))
    assert load(Checkpoint.open(str(folder))).config._attn_implementation == "sdpa"


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def with_added(tmp_path: Path, rows: int, added: list[Any]) -> Path:
    """A word model of 60 tokens and ``rows`` rows, whose tokenizer has some more tokens."""
    tokenizer = models.word_tokenizer(60)
    tokenizer.add_tokens(added)
    return models.save(tmp_path / "model", models.gpt2(rows), tokenizer, 1)


@pytest.mark.parametrize(
    ("rows", "added", "left"),
    [
        (60, ["<image_soft_token>"], ["<image_soft_token>"]),
        (60, [AddedToken("<pad>", special=True)], ["<pad>"]),
        (61, ["<a>", AddedToken("<b>", special=True), "[c]"], ["<b>", "[c]"]),
        (63, ["<a>", "<b>", "<c>"], []),
    ],
)
def test_added_tokens_past_the_embedding_are_left_out(
    tmp_path: Path, rows: int, added: list[Any], left: list[str]
) -> None:
    folder, said = with_added(tmp_path, rows, added), Said()
    vocabulary = read_vocabulary(str(folder), folder, rows)
    assert (len(vocabulary), vocabulary.past_rows) == (min(rows, 60 + len(added)), left)
    assert vocabulary.tokens == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(range(len(vocabulary)))
    build([str(folder)], tmp_path / "x.atlas", Options(5, 5, 1, device="cpu"), said)
    names = ", ".join(map(repr, left))
    line = f"model: left out {len(left)} added tokens, because the embedding has no rows for them: {names}"
    assert [each for each in said.lines if "no rows" in each] == [line][: len(left)]


def test_left_out_tokens_make_no_other_vocabulary(tmp_path: Path) -> None:
    """A base and its tune, which has a token for padding and no row for it, meet as models of one vocabulary."""
    base = models.save_word_model(tmp_path / "base")
    tuned = with_added(tmp_path, 60, ["<pad>"])
    assert read_vocabulary("tuned", tuned, 60).name == read_vocabulary("base", base, 60).name


@pytest.mark.parametrize(("rows", "last"), [(59, 59), (40, 59)])
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, rows: int, last: int) -> None:
    models.word_tokenizer(60).save_pretrained(tmp_path)
    wanted = f"the tokenizer has ids up to {last} but the embedding only {rows} rows; they do not belong together"
    assert wanted in refusal(tmp_path, rows)


def test_texts_and_padding_without_rows(tmp_path: Path) -> None:
    """Padding is masked, so that any row does; a text with a token that has none is refused."""
    folder = with_added(tmp_path, 60, ["<image>"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, pad_token="<pad>")
    assert tokenizer.pad_token_id == 61
    tokenizer.save_pretrained(folder)
    runner = Runner.open(Checkpoint.open(str(folder)))
    assert runner.pad_id == tokenizer.eos_token_id == 1
    states = runner.states(runner.batch(runner.tokens(["canada", "canada ottawa"], 8)))
    assert torch.isfinite(states[-1]).all()
    with pytest.raises(BuildError, match=f"{folder}: a text has '<image>', a token that the embedding has no row for"):
        runner.tokens(["canada", "canada <image> ottawa"], 8)


def json_change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(values)


PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
BROKEN: dict[str, tuple[str, Any, str]] = {
    "no model": ("tokenizer.json", json_change(model=None), "(tokenizer.json) cannot be read: it has no model"),
    "model of no kind": ("tokenizer.json", json_change(model={"type": "X"}), "(tokenizer.json, tokenizer_config.json"),
    "panic": ("tokenizer.json", json_change(normalizer=PANICS), "Cannot parse precompiled_charsmap"),
    "added null": ("tokenizer.json", json_change(added_tokens=None), "(tokenizer.json, tokenizer_config.json) cannot"),
    "no decoder of that kind": ("tokenizer.json", json_change(decoder={"type": "X"}), "(tokenizer.json, tokenizer_c"),
    "no JSON": ("tokenizer.json", "{", "(tokenizer.json) cannot be read: Expecting property name"),
    "empty": ("tokenizer.json", "", "(tokenizer.json) cannot be read: Expecting value"),
    "a list": ("tokenizer.json", "[]", "(tokenizer.json) cannot be read: it holds"),
    "deep": ("tokenizer.json", "[" * 100_000, "(tokenizer.json) cannot be read: it is ne"),
    "bytes": ("tokenizer.json", b"\xff\xfe{}", "(tokenizer.json) cannot be read: 'utf-8' codec can't decode"),
    "config null": ("tokenizer_config.json", "null", "(tokenizer_config.json) cannot be read: it holds"),
    "config deep": ("tokenizer_config.json", '{"a":' * 100_000, "(tokenizer_config.json) cannot be read: it is ne"),
    "unk of no text": ("tokenizer_config.json", json_change(unk_token=5), "unk_token has to be either str or"),
    "added list": ("tokenizer_config.json", json_change(added_tokens_decoder=[1]), "(tokenizer.json, tokenizer_config"),
    "other init": ("tokenizer_config.json", json_change(self="x"), "(tokenizer.json, tokenizer_config.json) cannot"),
    "special list": ("special_tokens_map.json", "[]", "(special_tokens_map.json) cannot be read: it holds"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_one_line(tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing else is printed, not by a library in Rust that panics either."""
    name, change, reason = BROKEN[what]
    models.metaspace_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / name
    if callable(change):
        data = json.loads(file.read_text())
        change(data)
        change = json.dumps(data)
    file.write_bytes(change if isinstance(change, bytes) else change.encode())
    capfd.readouterr()
    message = refusal(tmp_path, 484)
    assert message.startswith(f"{tmp_path}: its tokenizer (")
    assert reason in message
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


@pytest.mark.parametrize(
    ("model_type", "files", "reason"),
    [
        ("gpt2", {"vocab.json": "{", "merges.txt": ""}, "(merges.txt, vocab.json) cannot"),
        ("gpt2", {"vocab.json": '{"a":' * 100_000, "merges.txt": ""}, "(merges.txt, vocab.json) cannot"),
        ("gpt2", {"vocab.json": {"a": 0}, "merges.txt": "#version\na b\n"}, "(merges.txt, vocab.json) cannot"),
        ("gpt2", {"vocab.json": {"a": -1}, "merges.txt": ""}, "(merges.txt, vocab.json) cannot"),
        ("llama", {"tokenizer.model": "no proto"}, "(tokenizer.model) cannot"),
        ("xlm-roberta", {"sentencepiece.bpe.model": ""}, "(sentencepiece.bpe.model) cannot"),
        ("bert", {"vocab.txt": "[UNK]\na", "added_tokens.json": "[1]"}, "(added_tokens.json) cannot be read: it"),
    ],
)
def test_broken_vocabulary_files_are_one_line(
    tmp_path: Path, model_type: str, files: dict[str, Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, {"config.json": {"model_type": model_type}, **files})
    assert refusal(folder, 2).startswith(f"{folder}: its tokenizer {reason}")
    assert capfd.readouterr() == ("", "")


def test_warnings_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """tokenizers prints some on standard output, where answers go."""
    models.word_tokenizer(60).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"0": {"content": "[UNK]", "special": True, "unheard_of": 1}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    os.write(1, b"before ")
    assert len(read_vocabulary(str(tmp_path), tmp_path, 60)) == 60
    os.write(1, b"after")
    assert capfd.readouterr() == ("before after", "")


ODD: list[Any] = [None, True, 0, -1, 2**31, 2**40, 1.5, "", "x", "▁", "ByteLevel", [], {}, [None], {"a": None}, [[]]]


def places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """(container, key) of the parts of a JSON value, of long containers the first 40."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items)[:40]:
        yield node, key
        if depth < 5:
            yield from places(value, depth + 1)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A JSON file with a part of it replaced or left out; or with other bytes, or cut short."""
    if draw.random() < 0.7:
        whole = json.loads(data)
        container, key = draw.choice(list(places(whole)))
        if isinstance(container, dict) and draw.random() < 0.2:
            del container[key]
        else:
            container[key] = draw.choice(ODD)
        return json.dumps(whole).encode()
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 20])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.3 else changed)


@pytest.mark.parametrize("make", [models.metaspace_tokenizer, models.byte_level_tokenizer, models.wordpiece_tokenizer])
def test_damaged_files_are_read_or_refused(make: Callable[[], PreTrainedTokenizerFast], tmp_path: Path) -> None:
    draw, refusals = random.Random(7), []
    make().save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    rows = len(make())
    for _ in range(60):
        name = draw.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
        (tmp_path / name).write_bytes(damaged(files[name], draw))
        try:
            vocabulary = read_vocabulary("source", tmp_path, rows)
            assert len(vocabulary.table()) == len(vocabulary.words()) == len(vocabulary)
        except CheckpointError as error:
            refusals.append(str(error))
        (tmp_path / name).write_bytes(files[name])
    assert 20 < len(refusals) < 60
    for message in refusals:
        assert message.startswith("source: ")
        assert "\n" not in message


@pytest.mark.parametrize("part", ["unk_token", "bos_token", "pad_token"])
def test_special_tokens_of_no_text_are_none(tmp_path: Path, part: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    models.metaspace_tokenizer().save_pretrained(plain)
    shutil.copytree(plain, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {part: ""}))
    first, second = (read_vocabulary(folder.name, folder, 484) for folder in (plain, other))
    assert (first.tokens, first.special, first.texts) == (second.tokens, second.special, second.texts)


def test_ids_far_past_the_embedding_take_no_memory(tmp_path: Path) -> None:
    models.word_tokenizer(60).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["vocab"]["far"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert "the tokenizer has ids up to 4294967295 but the embedding only 60 rows" in refusal(tmp_path, 60)
