"""Damaged files for every reader of files that others wrote: each is read, or refused in one line that names it.

    python tests/helpers/fuzz_readers.py [--count 4000] [--seed 0] [--only pickle,legacy] [--keep FOLDER]

damages ``count`` files for each of READERS, reads them in processes that may take MEMORY and SECONDS, and prints how
many were read, how many refused, and what ended in anything else; ``--keep`` writes those to a folder, whose files are
worth adding to ``corpus/READER/``. ``test_fuzz_readers.py`` reads the corpus and a few hundred files more.

A case is a reader and a number, of which ``damaged`` makes the same bytes each time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import lzma
import os
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import models
from paramdex.store.words import read_lines
from paramdex.verbs.heads import read_pairs
from paramdex.verbs.user_vectors import user_vectors
from paramdex_builder.measure.classifier import read_labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_schemas import ParamdexError

MEMORY = 8 << 30
"""Bytes of address space beyond what is in use that a process may take."""
SECONDS = 20
"""The longest that one file may take."""
ROWS = 22
CORPUS = Path(__file__).parent / "corpus"
_NUMBERS = [0, -1, 1, 2**31, -(2**31), 2**63, 10**400, 0.5, float("nan"), float("inf")]
_VALUES: list[Any] = [
    None, True, False, "", "x", "\ud800", "\x1b[2J\n", "../x", "/etc/passwd", [], {}, [None], [[]], {"a": {}},
    *_NUMBERS,
]  # fmt: skip


# ---- the files


@dataclass(frozen=True)
class Reader:
    """What is damaged: a ``file`` of a folder, made by ``seed``; how it is read; and by which ``changes``."""

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    changes: tuple[Callable[[bytes, random.Random], bytes], ...]


def tiny(folder: Path) -> None:
    """A GPT-2 of 22 tokens, 4 wide, of one layer: the smallest that is read."""
    models.save(folder, models.gpt2(ROWS, width=4, layers=1, heads=1, n_positions=4), models.word_tokenizer(ROWS), 3)


def in_pickle(folder: Path, *, zipped: bool = True) -> None:
    tiny(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def in_shards(folder: Path) -> None:
    tiny(folder)
    index = {"metadata": {"total_size": 9}, "weight_map": models.split(folder)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def as_adapter(folder: Path) -> None:
    tiny(folder / "base")
    generator = torch.Generator().manual_seed(1)
    module = "base_model.model.transformer.h.0.attn.c_attn"
    A, B = (torch.randn(shape, generator=generator) for shape in ((2, 4), (12, 2)))
    state = {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    save_file(state, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"h.0.attn.c_attn": 2}, "rank_pattern": {},
        "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": False, "init_lora_weights": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def read_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    for space in ("output", "input"):
        checkpoint.embedding(space)
    checkpoint.check_layers()
    checkpoint.left_out()
    for run in checkpoint.layout.runs:
        checkpoint.rows(run)


def read_adapter(folder: Path) -> None:
    displacement = Displacement.open(str(folder), str(folder / "base"))
    displacement.check_layers()
    for run in displacement.layout.runs:
        displacement.rows(run)


# ---- damage


def flip(data: bytes, draw: random.Random) -> bytes:
    """A few bits the other way round."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_early(data: bytes, draw: random.Random) -> bytes:
    """As ``flip``, near the beginning, where headers are."""
    return flip(data[:256], draw) + data[256:]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def splice(data: bytes, draw: random.Random) -> bytes:
    """A piece taken out, put in twice, put elsewhere, or overwritten."""
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + draw.choice([1, 4, 16, 400]))
    piece, place = data[start:end], draw.randrange(len(data) + 1)
    filled = draw.choice([b"\0", b"\xff", draw.randbytes(1)]) * len(piece)
    return draw.choice(
        [
            data[:start] + data[end:],
            data[:end] + data[start:],
            data[:place] + piece + data[place:],
            data[:start] + filled + data[end:],
        ]
    )


def number(data: bytes, draw: random.Random) -> bytes:
    """A number of 2, 4 or 8 bytes of another size."""
    code, size = draw.choice([("<H", 2), ("<I", 4), ("<Q", 8)])
    place = draw.randrange(max(1, len(data) - size))
    if draw.random() < 0.5:
        place = min(place, draw.randrange(64))
    top = (1 << 8 * size) - 1
    value = draw.choice([0, 1, top, top >> 1, len(data), len(data) * 2, 1 << 31, draw.randrange(1 << 16)]) & top
    return data[:place] + struct.pack(code, value) + data[place + size :]


def digits(data: bytes, draw: random.Random) -> bytes:
    """Another number in what is text."""
    places = [i for i, byte in enumerate(data[:4096]) if chr(byte).isdigit()]
    if not places:
        return flip(data, draw)
    place = draw.choice(places)
    end = place
    while end < len(data) and chr(data[end]).isdigit():
        end += 1
    return data[:place] + draw.choice([b"0", b"-1", b"3", b"2147483648", b"9" * 20, b"9" * 5000, b"null"]) + data[end:]


def opcode(data: bytes, draw: random.Random) -> bytes:
    """Another opcode of pickle, or several, in the first kilobytes, where the pickle is."""
    changed, opcodes = bytearray(data), b"".join(each.code.encode("latin1") for each in pickletools.opcodes)
    for _ in range(draw.choice([1, 1, 2, 4])):
        changed[draw.randrange(min(len(changed), 4096))] = draw.choice(opcodes)
    return bytes(changed)


def _paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _paths(value, (*at, key))


def value(data: bytes, draw: random.Random) -> bytes:
    """Other values in JSON: of another type, out of range, nested, gone, twice."""
    tree = json.loads(data)
    for _ in range(draw.choice([1, 1, 2, 3])):
        path = draw.choice([*_paths(tree)] or [()])
        if not path:
            return draw.choice([b"null", b"[]", b"{}", b"1", b'"x"'])
        node = tree
        for key in path[:-1]:
            node = node[key]
        old = node[path[-1]]
        what = draw.randrange(6)
        if what == 0:
            del node[path[-1]]
        elif what == 1 and isinstance(node, dict):
            node[draw.choice(["", "x", "\ud800", "\n", str(path[-1]) + "x"])] = node.pop(path[-1])
        elif what == 2:
            node[path[-1]] = draw.choice([[old], {"x": old}, str(old), [old, old]])
        else:
            node[path[-1]] = copy.deepcopy(draw.choice(_VALUES))  # which later changes may change
    return json.dumps(tree).encode()


def nested(data: bytes, draw: random.Random) -> bytes:
    """A value nested more deeply than can be read."""
    depth = draw.choice([100, 1000, 100_000])
    deep = draw.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth])
    places = [i + 1 for i, byte in enumerate(data) if byte == ord(":")]
    if not places:
        return deep
    place = draw.choice(places)
    return data[:place] + deep + b"," + data[place:]


def header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header, JSON after its length, has other values."""
    size = int.from_bytes(data[:8], "little")
    text = draw.choice([value, value, value, nested, digits])(data[8 : 8 + size], draw)
    length = len(text) if draw.random() < 0.9 else draw.choice([0, 1, len(text) - 1, len(data), 2**63, 10**8 + 1])
    return struct.pack("<Q", length) + text + data[8 + size :]


def tensors(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is in order and says something strange of its tensors."""
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size])
    found.pop("__metadata__", None)
    name, other = draw.choice(list(found)), draw.choice(list(found))
    start, end = found[name]["data_offsets"]
    what = draw.randrange(8)
    if what == 0:  # one on another, backwards, beyond the end
        offsets = [found[other]["data_offsets"], [end, start], [start, end + 4], [2**63, 2**64 - 1], [start, start]]
        found[name]["data_offsets"] = draw.choice(offsets)
    elif what == 1:
        found[name]["shape"] = draw.choice([[0], [], [2**32, 2**32], [2**63], [1] * 1000, [0, 2**62], [-1]])
    elif what == 2:
        types = ["F8_E4M3", "F8_E5M2", "F4", "I4", "BOOL", "U8", "I64", "C64", "F64", "F16", "BF16", "E8M0", ""]
        found[name]["dtype"] = draw.choice(types)
    elif what == 3:  # of no numbers at all, many
        end = max(each["data_offsets"][1] for each in found.values())
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        found |= {f"{draw.choice(['x', name])}.{i}": empty for i in range(draw.choice([1, 100, 5000]))}
    elif what == 4:
        found[draw.choice(["\x00", "\ud800", "", "\n\x1b[2J", "a" * 10_000, "__metadata__"])] = found.pop(name)
    elif what == 5:
        found[name], found[other] = found[other], found[name]
    text = json.dumps(found)
    if what == 6:  # a name twice
        text = f'{text[:-1]},"{name}":{json.dumps(found[other])}}}'
    if what == 7:
        text = draw.choice([" " * 8 + text, text + " " * 10_000, text + "\0" * 8, "[" + text + "]", "\ufeff" + text])
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data[8 + size :]


def members(data: bytes, draw: random.Random) -> bytes:
    """A zip file whose members are compressed, twice there, gone, empty, called otherwise, or of other bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(out, "w") as changed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        chosen, what = draw.choice(whole.infolist()), draw.randrange(8)
        for each in whole.infolist():
            raw, name = whole.read(each), each.filename
            if each is not chosen or what == 0:
                changed.writestr(name, raw, zipfile.ZIP_DEFLATED if what == 0 else zipfile.ZIP_STORED)
            elif what == 1:
                changed.writestr(name, raw, zipfile.ZIP_DEFLATED)
            elif what == 2:
                changed.writestr(name, raw)
                changed.writestr(name, draw.choice([raw, raw[::-1], b""]))
            elif what == 3:
                changed.writestr(name, draw.choice([b"", raw[: len(raw) // 2], raw * 2, b"\0" * (1 << 20)]))
            elif what == 4:
                names = [f"../{name}", "/etc/passwd", name.upper(), f"{name}/", "x" * 60_000, "\x01", f"x/{name}"]
                changed.writestr(draw.choice(names), raw)
            elif what == 5:
                changed.writestr(name, draw.choice(_BYTES)(raw, draw))
            elif what == 6:
                changed.writestr(name, b"\0" * (1 << 26), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def packed(data: bytes, draw: random.Random) -> bytes:
    """What is in a file of xz, changed and packed again, or twice, or with more behind it."""
    raw = lzma.decompress(data)
    text = draw.choice([lines, value_of_lines, flip, cut])(raw, draw)
    again = lzma.compress(text, draw.choice([lzma.FORMAT_XZ, lzma.FORMAT_ALONE]))
    return draw.choice([again, again + again, again + b"\0\0\0\0", again + b"x", lzma.compress(again), text])


def value_of_lines(data: bytes, draw: random.Random) -> bytes:
    """JSON lines of which one has other values."""
    parts = data.split(b"\n")
    i = draw.randrange(len(parts))
    return b"\n".join([*parts[:i], value(parts[i], draw), *parts[i + 1 :]])


def lines(data: bytes, draw: random.Random) -> bytes:
    """Lines of text cut, joined, doubled, or with other ends."""
    parts = data.split(b"\n")
    i = draw.randrange(len(parts))
    return draw.choice(
        [
            data.replace(b"\t", b" ", 1),
            data.replace(b"\n", draw.choice([b"\r", b"\0", b"\x0b", b"\n\n"])),
            b"\n".join(parts[:i] + parts[i + 1 :]),
            b"\xef\xbb\xbf" + data,
            data.decode().encode("utf-16"),
            b"\n".join([*parts[:i], parts[i] * 50, *parts[i:]]),
        ]
    )


# ---- the readers

_BYTES = (flip, cut, splice, number)
_JSON = (value, value, value, nested, digits, flip, cut, splice)


def _labelled(folder: Path) -> None:
    rows = [{"text": "bread and butter", "label": "pos"}, {"text": "violin", "label": 0}]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _packed(folder: Path) -> None:
    _labelled(folder)
    (folder / "reviews.jsonl.xz").write_bytes(lzma.compress((folder / "reviews.jsonl").read_bytes()))


def _slow_files(folder: Path) -> None:
    """A GPT-2 with the files of a tokenizer that transformers makes a fast one of."""
    tiny(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokens = ["<|endoftext|>", *map(chr, range(ord("a"), ord("a") + ROWS - 3)), "ef"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\ne f\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<|endoftext|>", "pad_token": "ef"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": ROWS - 1}))
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 9, "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _vocabulary(folder: Path) -> None:
    read_vocabulary(str(folder), folder, ROWS)


def _npy(folder: Path) -> None:
    np.save(folder / "x.npy", np.arange(8, dtype=np.float32).reshape(2, 4) + 1)


def _tensor(folder: Path) -> None:
    save_file({"w": torch.arange(8.0).reshape(2, 4) + 1}, folder / "x.safetensors")
    save_file({"w": torch.arange(8.0).reshape(2, 4).bfloat16() + 1}, folder / "x.safetensors")


READERS = {
    "safetensors": Reader(
        "model.safetensors", tiny, read_checkpoint, (flip_early, *_BYTES, header, header, tensors, tensors)
    ),
    "pickle": Reader("pytorch_model.bin", in_pickle, read_checkpoint, (*_BYTES, opcode, opcode, opcode, members)),
    "legacy": Reader(
        "pytorch_model.bin", lambda folder: in_pickle(folder, zipped=False), read_checkpoint,
        (*_BYTES, flip_early, opcode, opcode),
    ),
    "config": Reader("config.json", tiny, read_checkpoint, _JSON),
    "tokenizer": Reader("tokenizer.json", tiny, _vocabulary, _JSON),
    "tokenizer_config": Reader("tokenizer_config.json", tiny, _vocabulary, _JSON),
    "vocab": Reader("vocab.json", _slow_files, _vocabulary, _JSON),
    "merges": Reader("merges.txt", _slow_files, _vocabulary, (*_BYTES, lines, lines)),
    "slow_config": Reader("tokenizer_config.json", _slow_files, _vocabulary, _JSON),
    "special_tokens_map": Reader("special_tokens_map.json", _slow_files, _vocabulary, _JSON),
    "added_tokens": Reader("added_tokens.json", _slow_files, _vocabulary, _JSON),
    "index": Reader("model.safetensors.index.json", in_shards, read_checkpoint, _JSON),
    "adapter_config": Reader("adapter_config.json", as_adapter, read_adapter, _JSON),
    "adapter": Reader(
        "adapter_model.safetensors", as_adapter, read_adapter, (flip_early, cut, splice, header, tensors)
    ),
    "npy": Reader("x.npy", _npy, lambda folder: user_vectors(folder / "x.npy", 4, "m"), (flip_early, *_BYTES, digits)),
    "lens_safetensors": Reader(
        "x.safetensors", _tensor, lambda folder: user_vectors(folder / "x.safetensors", 4, "m"),
        (flip_early, *_BYTES, header, header, tensors, tensors),
    ),
    "words": Reader(
        "words.txt", lambda folder: (folder / "words.txt").write_text("wine\ncheese\nétude\n", "utf-8"),
        lambda folder: read_lines(folder / "words.txt", "list of words"), (*_BYTES, lines, lines),
    ),
    "pairs": Reader(
        "pairs.tsv", lambda folder: (folder / "pairs.tsv").write_text("france\tparis\nüb\tx\n", "utf-8"),
        lambda folder: read_pairs(folder / "pairs.tsv"), (*_BYTES, lines, lines),
    ),
    "reviews": Reader(
        "reviews.jsonl", _labelled, lambda folder: read_labelled(folder / "reviews.jsonl"),
        (value_of_lines, *_JSON[4:], lines, nested),
    ),
    "packed": Reader(
        "reviews.jsonl.xz", _packed, lambda folder: read_labelled(folder / "reviews.jsonl.xz"),
        (*_BYTES, packed, packed, packed),
    ),
}  # fmt: skip


@cache
def whole(name: str) -> bytes:
    """The file that a reader's cases are damaged from."""
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].make(Path(folder))
        return (Path(folder) / READERS[name].file).read_bytes()


def damaged(name: str, case: int) -> bytes:
    """The file of a case."""
    draw = random.Random(f"{name} {case}")
    return draw.choice(READERS[name].changes)(whole(name), draw)


def outcome(name: str, folder: Path, data: bytes) -> str:
    """What comes of reading ``data`` in place of the reader's file in ``folder``: read, refused, or else a fault."""
    reader = READERS[name]
    (folder / reader.file).write_bytes(data)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            reader.read(folder)
    except ParamdexError as error:
        line = str(error)
        if not line.isprintable():
            return f"FAULT: not one line: {line!r}"
        return "refused" if folder.name in line else f"FAULT: names no file: {line}"
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return f"FAULT: {type(error).__name__}: {str(error)[:200]}"
    return "read"


# ---- the long run


def _worker(name: str, cases: range, pipe: int) -> None:
    """Writes a line "CASE" before and "CASE OUTCOME" after each case; the process may die in between."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with os.fdopen(pipe, "w", buffering=1) as out, tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        folder.mkdir()
        READERS[name].make(folder)
        for case in cases:
            print(case, file=out)
            signal.alarm(SECONDS)  # no handler: it ends the process, whatever it is doing
            found = outcome(name, folder, damaged(name, case))
            signal.alarm(0)
            print(case, found.replace("\n", " "), file=out)


def run(name: str, first: int, count: int) -> Iterator[tuple[int, str]]:
    """(case, outcome) of ``count`` cases, in as many processes as it takes."""
    whole(name)
    start, end = first, first + count
    while start < end:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _worker(name, range(start, end), write)
            os._exit(0)
        os.close(write)
        begun = None
        with os.fdopen(read) as lines_:
            for line in lines_:
                case, _, found = line.rstrip("\n").partition(" ")
                begun = int(case)
                if found:
                    yield begun, found
                    start, begun = begun + 1, None
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0 or begun is not None:
            yield start, f"FAULT: the process ended with {status}"
            start += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(READERS))
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    for name in given.only.split(","):
        began, found = time.monotonic(), Counter[str]()
        for case, what in run(name, given.seed * 1_000_000, given.count):
            found[what.partition(":")[0]] += 1
            if what.startswith("FAULT"):
                faults += 1
                print(f"  {name} {case}: {what}", flush=True)
                if given.keep is not None:
                    (given.keep / name).mkdir(parents=True, exist_ok=True)
                    (given.keep / name / str(case)).write_bytes(damaged(name, case))
        counts = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
        print(f"{name}: {given.count} files in {time.monotonic() - began:.0f} s: {counts}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
