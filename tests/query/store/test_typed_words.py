"""One item with white space inside is several words unless a vocabulary has it as one, wherever it is typed; and whole
numbers are words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import models
import paramdex
from paramdex import Atlas, TokenError, TokenFilter
from paramdex.cli import cli
from paramdex.store.words import separated
from paramdex_builder import Options, build
from web_helpers import server

TOKENS = ["[UNK]", "new york", "new", "york", "wine", "cheese", "7", "2020", "Ġwine", "of the"]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of one model, in whose vocabulary two items have white space inside."""
    folder = tmp_path_factory.mktemp("typed")
    tokens = [*TOKENS, *(f"word{i}" for i in range(60 - len(TOKENS)))]
    tokenizer = Tokenizer(tokenizer_models.WordLevel({each: i for i, each in enumerate(tokens)}, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    model = models.save(folder / "m", models.gpt2(60), fast, 1)
    return build(str(model), folder / "typed.atlas", Options(top_k=30, pair_k=30, device="cpu"))


@pytest.fixture(scope="module")
def opened(typed: Path) -> Iterator[Atlas]:
    with paramdex.open(typed) as atlas:
        yield atlas


@pytest.fixture(scope="module")
def client(typed: Path) -> Iterator[TestClient]:
    with server(typed) as client:
        yield client


MEANT: list[tuple[str, list[str]]] = [
    ("wine cheese", ["wine", "cheese"]),
    ("new york", ["new york"]),
    ("New York", ["New York"]),
    ("york new", ["york", "new"]),
    (" wine cheese", [" wine", "cheese"]),
    ("wine\tcheese\n", ["wine", "cheese"]),
    (" wine", [" wine"]),
    ("wine new york", ["wine", "new", "york"]),
]


@pytest.mark.parametrize(("item", "words"), MEANT)
def test_an_item_is_one_word_or_several(opened: Atlas, item: str, words: list[str]) -> None:
    vocabulary = opened.models["m"].vocabulary
    assert separated(opened.database, [vocabulary], [item]) == {item: words}


@pytest.mark.parametrize(("item", "words"), MEANT)
def test_find_and_search_read_an_item_alike(opened: Atlas, item: str, words: list[str]) -> None:
    for verb in (opened.find, opened.search):
        for given in (item, [item], (item,), pd.Series([item])):
            found = verb(given, 5)
            assert found.to_rows() == verb(words, 5).to_rows() != []
            assert list(found.notes) == []


def test_one_of_several_items_that_is_split_is_said(opened: Atlas) -> None:
    found = opened.find(["new york", "wine cheese"], 5)
    assert list(found.notes) == ["'wine cheese' is not a word here; read as wine, cheese"]
    assert found.to_rows() == opened.find(["new york", "wine", "cheese"], 5).to_rows()


def test_a_part_that_no_vocabulary_has_is_named(opened: Atlas) -> None:
    with pytest.raises(TokenError, match="no vocabulary here has 'chese'; the nearest words are cheese"):
        opened.search("wine chese")


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("wine,cheese", "; write wine cheese for several words"),
        ("wine;cheese|wine", "; write wine cheese wine for several words"),
        ("wine,", "; write wine"),
        ('"wine"', "; write wine"),
        ("“wine”", "; write wine"),
        ("wine,chese", "; the nearest words are wine"),
        ("😀", ", nor one that is like it"),
        (",;" * 500, ", nor one that is like it"),
    ],
)
def test_what_to_write_instead_is_known(opened: Atlas, given: str, instead: str) -> None:
    for verb in (opened.find, opened.search):
        with pytest.raises(TokenError) as refused:
            verb([given])
        message = str(refused.value)
        assert instead in message if "nearest" in instead else message.endswith(instead)


@pytest.mark.parametrize("verb", ["find", "search"])
@pytest.mark.parametrize(("item", "words"), MEANT[:3])
def test_the_command_line_and_the_explorer_say_the_same(
    typed: Path,
    opened: Atlas,
    client: TestClient,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    item: str,
    words: list[str],
) -> None:
    cli.main([verb, str(typed), item, "-k", "3", "--format", "json"], standalone_mode=False)
    assert capsys.readouterr().out == getattr(opened, verb)(words, 3).to_json() + "\n"
    quoted = " ".join(f'"{word}"' for word in words)
    asked = [client.get(f"/{verb}.json", params={"q": q, "k": 3}).json() for q in (f'"{item}"', quoted)]
    facts = [[each.get(name) for name in ("parameters", "heads", "rows", "notes")] for each in asked]
    assert facts[0] == facts[1]
    assert any(facts[0][:3])


NUMBERED: dict[str, Callable[[], Any]] = {
    "whole numbers": lambda: [2020, 7],
    "texts and numbers": lambda: ["2020", 7],
    "NumPy's": lambda: np.array([2020, 7], np.int16),
    "a column": lambda: pd.Series([2020, 7]),
    "a column that may miss some": lambda: pd.Series([2020, 7], dtype="Int64"),
    "a generator": lambda: (number for number in (2020, 7)),
    "Arrow's": lambda: pa.array([2020, 7]),
    "PyTorch's": lambda: torch.tensor([2020, 7]),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_whole_numbers_are_words(opened: Atlas, name: str) -> None:
    meant = opened.find(["2020", "7"], 5).to_rows()
    assert {token for row in meant if row["kind"].startswith("ff") for token in row["tokens"]} == {"2020", "7"}
    assert opened.find(NUMBERED[name](), 5).to_rows() == meant
    assert opened.search(NUMBERED[name](), 5).to_rows() == opened.search("2020 7", 5).to_rows()
    assert TokenFilter(words=NUMBERED[name]()) == TokenFilter(words=["2020", "7"])


def test_one_number_is_a_word_and_so_are_those_of_pairs(opened: Atlas) -> None:
    assert opened.find(7, 5).to_rows() == opened.find("7", 5).to_rows()  # type: ignore[arg-type]
    pairs = pd.DataFrame({"year": [2020], "digit": [7]}).to_numpy()
    assert opened.heads(pairs).to_rows() == opened.heads([("2020", "7")]).to_rows() != []


@pytest.mark.parametrize("word", [7.0, float("nan"), None, True, np.bool_(False), pd.NA, b"7", ["7"]])
def test_what_is_neither_text_nor_a_whole_number_is_no_word(opened: Atlas, word: object) -> None:
    for ask in (opened.find, opened.search, lambda words: opened.heads([(words[0], words[1])])):
        with pytest.raises(TokenError, match="is not a word; write it as text"):
            ask(["wine", word])
    with pytest.raises(TokenError, match="is not a word; write it as text"):
        TokenFilter(words=["wine", word])  # type: ignore[list-item]
