"""How a typed word finds vocabulary items: bare, with a leading space, ``Ġ``, ``▁`` or ``##``, in any case."""

from __future__ import annotations

import pytest

from paramdex import Atlas, TokenError, TokenFilter
from paramdex.store.words import items as items_of
from paramdex.store.words import resolve


def items(atlas: Atlas, model: str, word: str) -> set[str]:
    """The tokens of a model's vocabulary that ``word`` finds."""
    vocabulary = atlas.models[model].vocabulary
    (found,) = resolve(atlas.database, [vocabulary], [word])
    assert found.words == [word] * len(found.ids)
    tokens = atlas.sql(
        "SELECT token FROM tokens WHERE vocabulary = ? AND list_contains(?, token_id)", [vocabulary, found.ids]
    )
    return {row["token"] for row in tokens}


@pytest.mark.parametrize(
    ("word", "gpt2", "llama", "bert"),
    [
        ("canada", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("Canada", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("CANADA", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        (" Canada", {"ĠCanada"}, {"▁Canada"}, {"canada"}),
        (" canada", {"Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("ĠCanada", {"ĠCanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("Ġcanada", {"Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("ĠCANADA", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
        ("▁Canada", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada"}, {"canada"}),
        ("##canada", {"Canada", "ĠCanada", "Ġcanada"}, {"▁Canada", "canada"}, {"canada"}),
    ],
)
def test_forms_of_a_word(atlas: Atlas, word: str, gpt2: set[str], llama: set[str], bert: set[str]) -> None:
    assert items(atlas, "gpt2-a", word) == gpt2
    assert items(atlas, "llama-gqa", word) == llama
    assert items(atlas, "bert", word) == bert


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("##ing", {"##ing"}),
        ("ing", {"##ing"}),
        ("ING", {"##ing"}),
        ("##2", {"##2"}),
        ("s", {"s"}),
        ("S", {"s"}),
        ("##s", {"##s"}),
        ("É", {"é"}),
        ("東", {"東"}),
        ("[mask]", {"[MASK]"}),
    ],
)
def test_continuations_and_others(atlas: Atlas, word: str, tokens: set[str]) -> None:
    """``##s`` and ``s`` are two items, and each is found as it is typed, in any case."""
    assert items(atlas, "bert", word) == tokens


def test_the_space_itself(atlas: Atlas) -> None:
    assert items(atlas, "gpt2-a", " ") == {"Ġ"}
    assert items(atlas, "llama-gqa", "▁") == {"▁"}


def test_several_words_in_several_vocabularies(atlas: Atlas) -> None:
    vocabularies = [atlas.models[model].vocabulary for model in ("gpt2-a", "bert")]
    found = resolve(atlas.database, vocabularies, ["canada", "bread-butter", "canada"])
    assert [(item.vocabulary, item.words, item.missing) for item in found] == [
        (vocabularies[0], ["canada"] * 3, ["bread-butter"]),
        (vocabularies[1], ["canada", "bread-butter"], []),
    ]
    assert [item.vocabulary for item in resolve(atlas.database, vocabularies, ["bread-butter"])] == vocabularies[1:]


@pytest.mark.parametrize(
    ("word", "first"), [("canadaa", "canada"), ("Otawa", "ottawa"), (" violn", "violin"), ("Ġbuter", "butter")]
)
def test_unknown_word_names_the_nearest(atlas: Atlas, word: str, first: str) -> None:
    with pytest.raises(TokenError) as caught:
        atlas.find(word)
    message = str(caught.value)
    assert message.startswith(f"no vocabulary here has {word!r}; the nearest words are {first}")
    for near in message.partition("the nearest words are ")[2].split(", "):
        assert atlas.find(near, k=1).columns[0] == "address"  # each of them is a word that can be typed


def test_nearest_words_are_those_of_the_chosen_model(atlas: Atlas) -> None:
    with pytest.raises(TokenError, match="has 'bread-buter'; the nearest words are bread-butter"):
        atlas.search(["bread-buter"], model="bert")
    with pytest.raises(TokenError) as caught:
        atlas.search(["bread-butter"], model="gpt2-a")
    assert "the nearest words are bread, brea, " in str(caught.value)


@pytest.mark.parametrize("words", ["", [], [""]])
def test_no_word_at_all(atlas: Atlas, words: str | list[str]) -> None:
    for verb in (atlas.find, atlas.search):
        with pytest.raises(TokenError, match="give at least one word"):
            verb(words)


def test_text_that_is_no_unicode_is_refused(atlas: Atlas) -> None:
    """Bytes that are no UTF-8 reach Python's arguments as lone surrogates."""
    for ask in (
        atlas.find,
        atlas.search,
        lambda word: atlas.heads([(word, "canada")]),
        lambda word: atlas.show("bert/L0/ff_key/1", filter=TokenFilter(words=[word])),
    ):
        with pytest.raises(TokenError, match="is not valid UTF-8 text"):
            ask("caf\udce9")


def test_a_continuation_is_found_whatever_other_vocabularies_have(atlas: Atlas) -> None:
    """``2`` is an item of GPT-2's here, and in BERT's only part of a word."""
    vocabularies = [atlas.models[name].vocabulary for name in ("gpt2-a", "llama-gqa", "bert")]
    words = ["ing", "ed", "s", "2", "canada"]
    together = items_of(atlas.database, vocabularies, words)
    for vocabulary in vocabularies:
        alone = items_of(atlas.database, [vocabulary], words)
        assert alone == {of: ids for of, ids in together.items() if of[0] == vocabulary}
    assert all(together[vocabulary, "2"] for vocabulary in (vocabularies[0], vocabularies[2]))
    assert items(atlas, "bert", "2") == {"##2"}
