"""The process in which damaged atlases are asked; a program, not a test: see test_damage.py.

Reads {"atlas": FOLDER, "flips": [[FILE, OFFSET, BIT], ...]} on standard input. Answers every question of QUESTIONS on
the atlas as it is; then, flip by flip, changes the one bit, asks everything again in a child process and sets the bit
right. Writes {"answers": {NAME: TEXT}, "outcomes": [{NAME: OUTCOME, "exit": STATUS}, ...]}, where OUTCOME is "same",
"AtlasError: ...", "DIFFERENT: ..." or "CRASH: ...". A child for each flip, because DuckDB may end the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import paramdex

QUESTIONS: dict[str, Callable[[paramdex.Atlas], paramdex.Result]] = {
    "info": lambda atlas: atlas.info(),
    "show": lambda atlas: atlas.show("gpt2-b/L1/ff_value/5"),
    "show position": lambda atlas: atlas.show("bert/position/5"),
    "show head": lambda atlas: atlas.show("llama-gqa/L1/H3"),
    "show model": lambda atlas: atlas.show("bert"),
    "find": lambda atlas: atlas.find(["canada", "bread"]),
    "search": lambda atlas: atlas.search("canada ottawa"),
    "similar": lambda atlas: atlas.similar("gpt2-b/L1/ff_value/5"),
    "similar in all": lambda atlas: atlas.similar("gpt2-a/L1/H1/attn_key/5", model="all"),
    "align": lambda atlas: atlas.align("gpt2-a", "gpt2-wide"),
    "align vocabularies": lambda atlas: atlas.align("bert", "llama-gqa"),
    "sql": lambda atlas: atlas.sql("SELECT * FROM parameter_tokens WHERE text = ' bread' ORDER BY ALL"),
    "sql counts": lambda atlas: atlas.sql("SELECT kind, count(*), sum(norm) FROM parameters GROUP BY ALL ORDER BY ALL"),
    "check": lambda atlas: atlas.check(),
}


def ask(folder: str) -> dict[str, str]:
    """The answer to every question: JSON rows, notes and title, or the name and text of the error."""
    answers = {}
    atlas = None
    for name, question in QUESTIONS.items():
        try:
            atlas = atlas or paramdex.open(folder)
            result = question(atlas)
            answers[name] = json.dumps([result.to_json(), result.title, list(result.notes)])
        except paramdex.AtlasError as error:  # each question fails by itself
            answers[name] = f"AtlasError: {error}"
        except Exception as error:  # noqa: BLE001  # what is looked for
            answers[name] = f"CRASH: {type(error).__name__}: {error}"
    return answers


def in_child(folder: str) -> tuple[dict[str, str], int]:
    """What ``ask`` says in a process of its own, and how that process ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(ask(folder), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (json.loads(text) if status == 0 else {}), status


def outcome(answer: str, truth: str) -> str:
    if answer == truth:
        return "same"
    return answer if answer.startswith(("AtlasError", "CRASH")) else f"DIFFERENT: {answer[:300]}"


def main() -> None:
    job = json.load(sys.stdin)
    truth, status = in_child(job["atlas"])
    outcomes = []
    for name, offset, bit in job["flips"]:
        path = Path(job["atlas"]) / name
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([whole[offset] ^ (1 << bit)]))
        answers, status = in_child(job["atlas"])
        path.write_bytes(whole)
        outcomes.append({question: outcome(answers[question], truth[question]) for question in answers})
        outcomes[-1]["exit"] = status
    json.dump({"answers": truth, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
