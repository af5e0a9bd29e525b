"""The program ``paramdex``: a command for every verb, its formats, and one clear line for every bad input."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import models
import paramdex
from paramdex import Atlas
from paramdex.cli import cli, main
from paramdex_builder import Options, build

ADDRESS = "gpt2-a/L0/ff_value/3"
VERBS = {
    "info": ([], lambda atlas: atlas.info()),
    "show": ([ADDRESS, "-k", "3"], lambda atlas: atlas.show(ADDRESS, 3)),
    "show position": (["bert/position/3"], lambda atlas: atlas.show("bert/position/3")),
    "show bias": (["bert/L1/H2/attn_key_bias/0"], lambda atlas: atlas.show("bert/L1/H2/attn_key_bias/0")),
    "show head": (["bert/L1/H0", "--same-word"], lambda atlas: atlas.show("bert/L1/H0", distinct=False)),
    "show model": (["bert"], lambda atlas: atlas.show("bert")),
    "find": (["canada", " Paris", "-k", "4"], lambda atlas: atlas.find(["canada", " Paris"], 4)),
    "find in": (
        ["canada", "--in", "gpt2-b", "--kind", "VO", "--layer", "1"],
        lambda atlas: atlas.find("canada", model="gpt2-b", kind="VO", layer=1),
    ),
    "find positions": (["canada", "--kind", "position"], lambda atlas: atlas.find("canada", kind="position")),
    "search": (["canada ottawa", "paris"], lambda atlas: atlas.search(["canada ottawa", "paris"])),
    "search in": (
        ["canada", "--in", "bert", "--kind", "ff_key", "--layer", "0", "--side", "both", "-k", "2"],
        lambda atlas: atlas.search("canada", 2, model="bert", kind="ff_key", layer=0, side="both"),
    ),
    "search positions": (["canada", "--kind", "position"], lambda atlas: atlas.search("canada", kind="position")),
    "similar": ([ADDRESS], lambda atlas: atlas.similar(ADDRESS)),
    "similar in": (
        [ADDRESS, "--in", "all", "--kind", "ff_key", "--layer", "1", "--side", "bottom"],
        lambda atlas: atlas.similar(ADDRESS, model="all", kind="ff_key", layer=1, side="bottom"),
    ),
    "similar positions": (
        [ADDRESS, "--kind", "position", "--in", "bert"],
        lambda atlas: atlas.similar(ADDRESS, kind="position", model="bert"),
    ),
    "similar heads": (
        ["bert/L1/H0", "--in", "gpt2-a", "--kind", "QK"],
        lambda atlas: atlas.similar("bert/L1/H0", model="gpt2-a", kind="QK"),
    ),
    "directions": (["bert/L1/H0", "--matrix", "QK"], lambda atlas: atlas.directions("bert/L1/H0", 4, matrix="QK")),
    "match": (
        ["gpt2-b", "bert", "--kind", "ff_key", "--layer-a", "1", "-k", "3", "--side", "both"],
        lambda atlas: atlas.match("gpt2-b", "bert", "ff_key", 3, layer_a=1, side="both"),
    ),
    "align summary": (["gpt2-b", "gpt2-a", "--summary"], lambda atlas: atlas.align("gpt2-b", "gpt2-a").summary),
    "align": (["gpt2-b", "gpt2-a"], lambda atlas: atlas.align("gpt2-b", "gpt2-a")),
    "align kind": (["bert", "gpt2-a", "--kind", "ff_key"], lambda atlas: atlas.align("bert", "gpt2-a", "ff_key")),
    "sql": (["SELECT * FROM heads ORDER BY head_id"], lambda atlas: atlas.sql("SELECT * FROM heads ORDER BY head_id")),
    "check": ([], lambda atlas: atlas.check()),
}
"""Arguments after the atlas, and the method call that they mean."""


class Ran:
    """What one run of the program in this process printed, and how it ended."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["paramdex", *map(str, arguments)])
        capsys.readouterr()
        self.code = 0
        try:
            main()
        except SystemExit as end:
            self.code = end.code or 0
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: Ran(capsys, monkeypatch, *arguments)


def program(*arguments: str | Path) -> subprocess.CompletedProcess:
    """The real program, in a process of its own."""
    command = [sys.executable, "-m", "paramdex", *map(str, arguments)]
    environment = {**os.environ}  # without what readline has put beside it: COLUMNS, of no terminal
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_verb_has_a_command_of_its_name_and_the_reverse() -> None:
    methods = {name for name in vars(Atlas) if not name.startswith("_")}  # what it shares with every Store is no verb
    verbs = methods - {"search_hits", "similar_hits"}
    assert verbs == {
        "info", "check", "sql", "show", "find", "search", "similar", "lens", "directions", "heads", "align", "match",
        "diff",
    }  # fmt: skip
    of_models, of_atlases = {"build", "evaluate", "stitch"}, {"relate", "remove", "rename", "merge", "export"}
    assert set(cli.commands) - of_models - of_atlases - {"demo", "serve"} == verbs
    of_files = {"diff", "lens", "heads"}  # of a displacement, a vector, pairs: test_displacement, test_lens, test_heads
    assert {name.split()[0] for name in VERBS} == verbs - of_files


def test_duckdb_draws_no_bar_into_what_another_program_reads(small_atlas: Path) -> None:
    done = program("sql", small_atlas, "SELECT current_setting('enable_progress_bar') AS bar", "--format", "json")
    assert json.loads(done.stdout) == [{"bar": False}]


@pytest.mark.parametrize("verb", VERBS)
def test_formats_carry_the_methods_answer(run, small_atlas: Path, verb: str) -> None:
    arguments, method = VERBS[verb]
    with paramdex.open(small_atlas) as atlas:
        result = method(atlas)
    for output, text in (("json", result.to_json()), ("csv", result.to_csv()), ("table", str(result))):
        ran = run(verb.split(maxsplit=1)[0], small_atlas, *arguments, "--format", output)
        assert (ran.code, ran.err, ran.out) == (0, "", text + "\n")
        if output == "json":
            assert json.loads(ran.out) == json.loads(text) != []
        if output == "csv":
            rows = list(csv.DictReader(io.StringIO(ran.out)))
            assert len(rows) == len(result)
            assert list(rows[0]) == result.columns
    by_default = run(verb.split(maxsplit=1)[0], small_atlas, *arguments)
    assert by_default.out == str(result) + "\n"


@pytest.mark.parametrize("verb", ["info", "show", "search", "sql"])
def test_the_real_program_says_the_same(small_atlas: Path, verb: str) -> None:
    arguments, method = VERBS[verb]
    with paramdex.open(small_atlas) as atlas:
        expected = method(atlas).to_json()
    done = program(verb, small_atlas, *arguments, "--format", "json")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", expected + "\n")


BAD = {
    "address": (["show", "A", "gpt2-a/L0/x/y/z"], "'gpt2-a/L0/x/y/z' is not an address; write MODEL, MODEL/L3/H5, "),
    "no layer in it": (["show", "A", "gpt2-a/H1"], "'gpt2-a/H1' names no layer"),
    "a layer": (["show", "A", "gpt2-a/L1"], "gpt2-a/L1 is a layer; show takes a parameter or a head"),
    "model": (["show", "A", "gpt2-x/L0/H0"], "A has no model 'gpt2-x'; did you mean gpt2-b or gpt2-a"),
    "kind in it": (
        ["show", "A", "gpt2-a/L0/ff_valu/0"],
        "gpt2-a has no parameters of kind 'ff_valu'; did you mean ff_value?",
    ),
    "layer in it": (["show", "A", "gpt2-a/L2/H0"], "gpt2-a/L2/H0: gpt2-a has layers L0 to L1"),
    "head in it": (["show", "A", "gpt2-a/L0/H2"], "gpt2-a/L0/H2: gpt2-a has heads H0 to H1 in each layer"),
    "number in it": (
        ["show", "A", "gpt2-a/L0/ff_key/96"],
        "gpt2-a/L0/ff_key/96: ff_key of gpt2-a/L0 goes from 0 to 95",
    ),
    "position in it": (["show", "A", "bert/position/32"], "bert/position/32: position of bert goes from 0 to 31"),
    "layer of a position": (
        ["show", "A", "bert/L0/position/3"],
        "bert/L0/position/3: position belongs to no layer; write bert/position/3, say",
    ),
    "an expert": (["show", "A", "bert/L0/E0"], "bert/L0/E0: bert/L0 has no experts"),
    "a stack": (["show", "A", "bert/encoder"], "bert/encoder: bert has one stack; write it without /encoder"),
    "find, token": (["find", "A", "zebra"], "no vocabulary here has 'zebra'; the nearest words are "),
    "find, bytes": (["find", "A", "caf\udce9"], r"'caf\udce9' is not valid UTF-8 text"),
    "find, model": (["find", "A", "canada", "--in", "x"], "A has no model 'x'; there are gpt2-a, gpt2-b, gpt2-wide, "),
    "find, kind": (["find", "A", "canada", "--kind", "ff"], "there is no kind 'ff'; "),
    "find, layer": (["find", "A", "canada", "--layer", "3"], "there is no layer 3; gpt2-wide has layers L0 to L2"),
    "find, layer of positions": (
        ["find", "A", "canada", "--kind", "position", "--layer", "1"],
        "position belongs to no layer; ask without layer 1",
    ),
    "search, token": (["search", "A", "canada zebra"], "no vocabulary here has 'zebra'; the nearest words are "),
    "search, model": (["search", "A", "canada", "--in", "gpt2"], "A has no model 'gpt2'; did you mean gpt2-"),
    "search, kind": (["search", "A", "canada", "--kind", "VO"], "there is no kind 'VO'; there are ff_key, ff_gate, "),
    "search, layer": (
        ["search", "A", "canada", "--layer", "2", "--in", "bert"],
        "there is no layer 2; bert has layers L0",
    ),
    "search, nothing": (["search", "A", ""], "give at least one word"),
    "similar, layer's": (
        ["similar", "A", "bert/L1"],
        "similar takes the address of a parameter or a head, bert/L1/ff_value/0, say, ",
    ),
    "similar, matrix": (["similar", "A", "bert/L1/H0", "--kind", "OV"], "a head has no matrix 'OV'; "),
    "match, one": (["match", "A", "bert", "bert"], "match takes two different models, not bert twice"),
    "similar, model": (["similar", "A", ADDRESS, "--in", "x"], "A has no model 'x'; "),
    "similar, kind": (
        ["similar", "A", ADDRESS, "--kind", "x"],
        "gpt2-a has no parameters of kind 'x'; there are ff_key, ",
    ),
    "similar, layer": (["similar", "A", ADDRESS, "--layer", "2"], "there is no layer 2; gpt2-a has layers L0 to L1"),
    "align, model": (["align", "A", "gpt2-a", "x"], "A has no model 'x'; "),
    "align, one": (["align", "A", "bert", "bert"], "align takes two different models, not bert twice"),
    "align, kind": (["align", "A", "gpt2-a", "bert", "--kind", "x"], "there is no kind 'x'; "),
    "align, biases": (
        ["align", "A", "gpt2-a", "bert", "--kind", "ff_bias"],
        "align compares the weights of layers, and ff_bias is not a weight; ",
    ),
    "align, plot": (
        ["align", "A", "gpt2-a", "bert", "--plot", "x.txt"],
        "x.txt has no ending that names a picture format; ",
    ),
    "sql, write": (
        ["sql", "A", "DELETE FROM models"],
        "an atlas is read-only: DELETE is not allowed, only SELECT and ",
    ),
    "sql, two": (["sql", "A", "SELECT 1; SELECT 2"], "give one SQL statement, not 2"),
    "sql, file": (
        ["sql", "A", "SELECT * FROM read_text('/etc/passwd')"],
        "SQL reads the atlas's own tables and nothing else",
    ),
    "no folder": (["info", "nowhere.atlas"], "nowhere.atlas is not an atlas: there is no such folder; make one with: "),
    "no atlas": (
        ["show", "E", "x"],
        "E is not an atlas: it holds no atlas.json; make one with: paramdex build MODEL -o E",
    ),
    "a file": (["info", "F"], "F is not an atlas: it is a file; give the folder that holds atlas.json"),
}
"""A in the arguments and messages stands for the atlas, E for an empty folder, F for a file."""


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("output", ["table", "json"])
def test_bad_input_is_one_line_and_exit_code_2(
    run, small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"A": str(small_atlas), "E": str(tmp_path / "empty"), "F": str(tmp_path / "file")}
    Path(places["E"]).mkdir()
    Path(places["F"]).write_text("")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[case]
    ran = run(*(places.get(argument, argument) for argument in arguments), "--format", output)
    (line,) = ran.err.splitlines()
    expected = re.sub(r"(?<!\S)[AEF](?=\s|$)", lambda letter: places[letter[0]], message)
    assert line.startswith(f"error: {expected}")
    assert (ran.code, ran.out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_sql_is_one_message_with_the_place(run, small_atlas: Path) -> None:
    ran = run("sql", small_atlas, "SELECT *\nFROM FROM heads")
    first, place, mark = ran.err.splitlines()
    assert first == 'error: Parser Error: syntax error at or near "FROM"'
    assert place == "LINE 2: FROM FROM heads"
    assert mark.strip("^ ") == ""
    assert mark.index("^") == place.rindex("FROM")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "A", "gpt2-a/L9/H0"],
        ["find", "A", "zebra"],
        ["sql", "A", "DROP VIEW models"],
        ["info", "nowhere.atlas"],
        ["build", "nowhere", "-o", "x.atlas"],
    ],
)
def test_the_real_program_fails_without_a_traceback(
    small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = program(*(str(small_atlas) if argument == "A" else argument for argument in arguments))
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fold", [True, False])
def test_fold_norm_reaches_the_atlas(run, word_model: Path, tmp_path: Path, fold: bool) -> None:
    """The row of the model says so, its vectors are those of the option, and without it the build is another."""
    atlas, few = tmp_path / "x.atlas", ["--top-k", "3", "--pair-k", "3", "--neighbor-k", "1", "--device", "cpu"]
    ran = run("build", word_model, "-o", atlas, *few, *(["--fold-norm"] if fold else []))
    assert (ran.code, ran.out) == (0, "")
    (row,) = json.loads(run("sql", atlas, "SELECT fold_norm FROM models", "--format", "json").out)
    assert row == {"fold_norm": fold}
    (row,) = json.loads(run("info", atlas, "--format", "json").out)
    assert row["fold_norm"] is fold
    options = Options(top_k=3, pair_k=3, neighbor_k=1, fold_norm=fold, device="cpu")
    same, norms = paramdex.open(build([str(word_model)], tmp_path / "y.atlas", options)), "SELECT norm FROM parameters"
    assert json.loads(run("sql", atlas, norms, "--format", "json").out) == same.sql(norms).to_rows()
    ran = run("build", word_model, "-o", atlas, *few, *([] if fold else ["--fold-norm"]))
    assert ran.code == 2
    assert "already has a model word-model, built from other weights or with other options" in ran.err


def test_fold_norm_is_refused_where_one_layer_stands_for_several(run, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "albert", 0, models.MAKERS["AlbertForMaskedLM"])
    ran = run("build", folder, "-o", tmp_path / "x.atlas", "--fold-norm")
    reason = "one layer's weights read what several norms give; build it without --fold-norm"
    assert ran.err == f"error: {folder}: norms cannot be folded: {reason}\n"
    assert (ran.code, ran.out) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["albert"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "A"], "Missing argument 'TOKENS...'"),
        (["show", "A"], "Missing argument 'ADDRESS'"),
        (["info"], "Missing argument 'ATLAS'"),
        (["info", "A", "--format", "xml"], "'xml' is not one of 'table', 'json', 'csv'"),
        (["find", "A", "canada", "-k", "0"], "0 is not in the range 1<=x<=10000"),
        (["find", "A", "canada", "-k", "many"], "'many' is not a valid whole number"),
        (["search", "A", "canada", "--side", "left"], "'left' is not one of 'top', 'bottom', 'both'"),
        (["search", "A", "canada", "--layer", "-1"], "-1 is not in the range x>=0"),
        (["nonsense", "A"], "No such command 'nonsense'"),
        (["info", "A", "--nonsense"], "No such option"),
    ],
)
def test_bad_usage_says_how_to_get_help(run, small_atlas: Path, arguments: list[str], message: str) -> None:
    ran = run(*(str(small_atlas) if argument == "A" else argument for argument in arguments))
    usage, hint, *_, error = ran.err.splitlines()
    assert usage.startswith("Usage: ")
    assert hint.startswith("Try 'paramdex")
    assert error.startswith("Error: ")
    assert message in error
    assert (ran.code, ran.out) == (2, "")


def test_plot_is_written_and_named(run, small_atlas: Path, tmp_path: Path) -> None:
    path = tmp_path / "heat.png"
    ran = run("align", small_atlas, "gpt2-a", "gpt2-b", "--kind", "ff_key", "--plot", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"picture: {path}"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    ran = run("align", small_atlas, "gpt2-a", "gpt2-b", "--kind", "ff_key", "--plot", path, "--format", "json")
    assert (ran.code, ran.err, len(json.loads(ran.out))) == (0, f"picture: {path}\n", 4)


def examples(command: click.Command) -> list[list[str]]:
    """The arguments of every line of a command's help that starts with ``paramdex``."""
    lines = [line.strip() for line in inspect.cleandoc(command.help or "").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("paramdex ")]


@pytest.mark.parametrize("name", cli.commands)
def test_help_has_examples_that_parse(run, name: str) -> None:
    command = cli.commands[name]
    ran = run(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: paramdex {name} ")
    assert len(examples(command)) >= 1
    for first, *rest in examples(command):
        assert first == name
        assert f"paramdex {name}" in ran.out
        with command.make_context(name, list(rest)) as context:
            assert context.params
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_and_version(run) -> None:
    for flag in ("-h", "--help"):
        ran = run(flag)
        assert (ran.code, ran.err) == (0, "")
        assert [line.split()[0] for line in ran.out.partition("Commands:\n")[2].splitlines()] == list(cli.commands)
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"paramdex, version {paramdex.__version__}\n")
    assert run().code == 2


@pytest.mark.waits
def test_reader_that_goes_away_is_no_error(small_atlas: Path) -> None:
    """``paramdex X | head -1``: the reading end is closed long before all is written."""
    read, write = os.pipe()
    query = "SELECT i, repeat('x', 100) AS x FROM range(20000) AS t(i)"
    process = subprocess.Popen(
        [sys.executable, "-m", "paramdex", "sql", str(small_atlas), query, "--format", "csv"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.readline() == b"i,x\n"
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert process.returncode in (0, 1)


@pytest.mark.parametrize("output", ["table", "json"])
def test_all_is_written_before_the_process_ends(small_atlas: Path, run, output: str) -> None:
    """The program ends without Python's own end, which would write what is left."""
    query = "SELECT i, repeat('x', 100) AS x FROM range(3000) AS t(i)"
    ran = program("sql", small_atlas, query, "--format", output)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == run("sql", small_atlas, query, "--format", output).out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written(small_atlas: Path) -> None:
    command = [sys.executable, "-m", "paramdex", "show", str(small_atlas), ADDRESS]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "error: the output cannot be written: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_output_is_no_error(small_atlas: Path, closed: str) -> None:
    command = shlex.join([sys.executable, "-m", "paramdex", "show", str(small_atlas), ADDRESS])
    ran = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_slips_of_a_hand_that_are_understood(run, small_atlas: Path) -> None:
    meant = run("find", small_atlas, "canada", "--in", "bert", "--layer", "1", "-k", "2").out
    assert meant.startswith("address")
    assert run("find", small_atlas, "canada", "--model", "bert", "--layer", "L1", "--k", "2").out == meant
    assert run("show", small_atlas, f"{ADDRESS}/").out == run("show", small_atlas, ADDRESS).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "A", "gpt2-a/l0/h1"], "'gpt2-a/l0/h1' is not an address; did you mean gpt2-a/L0/H1?"),
        (["show", "A", "gpt2-a/L0/FF-key/3"], "did you mean gpt2-a/L0/ff_key/3?"),
        (["find", "A", "food,bread"], "no vocabulary here has 'food,bread'; write food bread for several words"),
        (["find", "A", "x" * 100_000], f"no vocabulary here has '{'x' * 80}'...; the nearest words are "),
        (["build", "org/name=./folder", "-o", "x.atlas"], "write org-name=./folder (and there is no folder "),
    ],
)
def test_slips_of_a_hand_that_are_named(run, small_atlas: Path, arguments: list[str], message: str) -> None:
    ran = run(*(str(small_atlas) if each == "A" else each for each in arguments))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
