"""Stitched classifiers are judged as transformers runs them: their classes' order, their tokenizer, a text alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

import models
from paramdex.cli import cli
from paramdex_builder import Progress, stitch
from paramdex_builder.measure.classifier import Classifier, labelled, read_labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import BuildError, CheckpointError

transformers_logging.disable_progress_bar()

TEXTS = [
    "canada ottawa toronto bread", "seven eight green yellow winter summer", "music violin", "nurse doctor food",
    "river ocean river ocean river", "butter bread", "paris france green", "winter seven music ocean", "music [END]",
    "bread", "nurse doctor food bread bread",
]  # fmt: skip


class Said(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_word_model(tmp_path_factory.mktemp("wide") / "wide", 1, models.gpt2)


def head(folder: Path, tokenizer: Any = None, cls: str = "Llama", **settings: Any) -> Path:
    """A head for sequence classification of transformers' own, which finds every class in the texts."""
    makers: dict[str, Any] = {"Bert": models.encoder, "GPT2": models.gpt2, "Llama": models.llama}
    model = makers[cls](60, cls=f"{cls}ForSequenceClassification", **settings)
    return models.save(folder, model, tokenizer or models.word_tokenizer(60), 8)


def alone(folder: Path) -> torch.Tensor:
    """transformers' own scores of the classes (n x classes), of one text at a time by its own tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in TEXTS])


def right(a: Path, folder: Path, labels: list[Any], progress: Progress | None = None) -> int:
    """How many labels the tuned model itself meets."""
    rows = stitch(str(a), [str(folder)], labelled(TEXTS, labels, "here"), progress=progress).to_pylist()
    (found,) = [row["right"] for row in rows if row["part"] == "fine-tuned"]
    return int(found)


def ending(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with [END] around every text."""
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="[END] $A [END]", special_tokens=[("[END]", 1)])
    return tokenizer


# ---- classes


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({"id2label": {0: "positive", 1: "negative"}}, ["negative", "positive"], [1, 0]),
        ({"id2label": {0: "sad", 1: "glad", 2: "angry"}}, ["glad", "sad"], [1, 0]),
        ({"id2label": {0: "1 star", 1: "10 stars"}}, ["0", "1"], [0, 1]),
        ({"id2label": {0: "2", 1: "1"}}, [1, 2], [1, 0]),
        ({"id2label": {0: "LABEL_1", 1: "LABEL_0"}}, ["LABEL_0", "LABEL_1"], [1, 0]),
        ({"id2label": {0: "positive", 1: "negative"}}, ["LABEL_0", "LABEL_1"], [0, 1]),
        ({"num_labels": 12}, [f"LABEL_{i}" for i in (2, 10)], [10, 2]),
        ({"num_labels": 12}, [str(i) for i in range(12)], list(range(12))),
        ({"num_labels": 12}, list(range(12)), list(range(12))),
        ({"num_labels": 2}, ["pos", "neg"], None),
        ({"num_labels": 2}, [1, 2], None),
    ],
)
def test_class_numbers(tmp_path: Path, settings: dict[str, Any], labels: list[Any], expected: list[int] | None) -> None:
    """By label in order: of a config's names, of plain names, of numbers; none where nothing tells."""
    classifier = Classifier.open(str(head(tmp_path / "tuned", **settings)))
    names = labelled(["bread"] * len(labels), labels, "here").names
    assert classifier.class_numbers("it", names) == expected


def test_a_config_whose_names_are_in_label2id_alone(tmp_path: Path) -> None:
    folder = head(tmp_path / "tuned", num_labels=3)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["2"] == "LABEL_2"
    config["label2id"] = {"sad": 2, "glad": 1, "angry": 0}
    (folder / "config.json").write_text(json.dumps(config))
    assert Classifier.open(str(folder)).class_numbers("it", ["angry", "glad", "sad"]) == [0, 1, 2]
    assert Classifier.open(str(folder)).class_numbers("it", ["glad", "sad"]) == [1, 2]


def test_labels_of_numbers_are_in_the_order_of_their_values() -> None:
    texts = labelled(["bread"] * 5, ["b", "10", "2", "-1", 2], "here")
    assert texts.names == ["-1", "2", "10", "b"]
    assert texts.classes.tolist() == [3, 2, 1, 0, 1]


@pytest.mark.parametrize("names", [["positive", "negative"], ["sad", "glad", "angry"]])
def test_a_head_that_is_always_right(wide: Path, tmp_path: Path, names: list[str]) -> None:
    """Labelled as it answers; by its names and by its numbers, of either kind."""
    folder = head(tmp_path / "tuned", id2label=dict(enumerate(names)))
    answers = alone(folder).argmax(1).tolist()
    assert set(answers) == set(range(len(names)))
    said = Said()
    for labels in ([names[i] for i in answers], answers, [str(i) for i in answers], [f"LABEL_{i}" for i in answers]):
        assert right(wide, folder, labels, said) == len(TEXTS)
    assert right(wide, folder, [names[i - 1] for i in answers]) == 0
    assert said.lines == []


def test_models_with_their_classes_in_other_orders(wide: Path, tmp_path: Path) -> None:
    """Each by its own; a guess is told, with the models that it is made for."""
    sources = [
        str(head(tmp_path / f"{i}", id2label=dict(enumerate(names))))
        for i, names in enumerate([["positive", "negative"], ["negative", "positive"], ["LABEL_0", "LABEL_1"]])
    ]
    texts = labelled(TEXTS, [("positive", "negative")[i] for i in alone(Path(sources[0])).argmax(1)], "here")
    said = Said()
    rows = stitch(str(wide), sources, texts, progress=said).to_pylist()
    assert [row["accuracy"] for row in rows if row["part"] == "fine-tuned"] == [1, 0, 0]
    assert said.lines == [
        "classes are taken in sorted order for 1 of 3 tuned models, because nothing names them: negative=0, positive=1"
    ]


def test_other_labels_than_the_configs(wide: Path, tmp_path: Path) -> None:
    folder = head(tmp_path / "tuned", id2label={0: "positive", 1: "negative"})
    for pair, listed in ((["good", "bad"], "bad, good"), (["Positive", "negative"], "Positive, negative")):
        with pytest.raises(BuildError, match=f"classes positive, negative, but the texts have the labels {listed}"):
            right(wide, folder, [pair[i % 2] for i in range(len(TEXTS))])
    with pytest.raises(BuildError, match="labels 0, 1, 2; label them by its names or by all the numbers from 0 to 1"):
        right(wide, folder, [0, 1, 2] * 3 + [0, 1])


def test_command_takes_the_configs_order_and_says_a_guess(wide: Path, tmp_path: Path) -> None:
    folder = head(tmp_path / "tuned", id2label={0: "positive", 1: "negative"})
    reviews = tmp_path / "reviews.jsonl"
    answers = alone(folder).argmax(1).tolist()
    for names, told in ((("positive", "negative"), False), (("LABEL_0", "LABEL_1"), False), (("a", "b"), True)):
        if told:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "id2label": None, "label2id": None}))
        rows = [{"text": text, "label": names[i]} for text, i in zip(TEXTS, answers, strict=True)]
        reviews.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert read_labelled(reviews).names == sorted(names)
        done = CliRunner().invoke(cli, ["stitch", str(wide), str(folder), "--reviews", str(reviews)])
        assert done.exit_code == 0, done.output
        assert "tuned, not stitched: 1.000" in done.stdout
        assert ("classes are taken in sorted order, because nothing names them: a=0, b=1" in done.stderr) == told


# ---- one text alone


@pytest.mark.parametrize("cls", ["Bert", "GPT2", "Llama"])
@pytest.mark.parametrize("pad", [None, 0, 1, 8])
@pytest.mark.parametrize("tokenizers_pad", [None, "word30"])
def test_scores_are_of_a_text_alone(tmp_path: Path, cls: str, pad: int | None, tokenizers_pad: str | None) -> None:
    """Whatever pads: also where texts end with the token that the head or the tokenizer counts as padding."""
    tokenizer = models.word_tokenizer(60)
    tokenizer.pad_token = tokenizers_pad
    classifier = Classifier.open(str(head(tmp_path / "tuned", tokenizer, cls, pad_token_id=pad)))
    expected = alone(tmp_path / "tuned")
    done: list[int] = []
    for numbers, batch in classifier.runner.batches(TEXTS, 32, 2):
        assert len(numbers) <= 2
        torch.testing.assert_close(classifier.logits(batch), expected[numbers], atol=1e-5, rtol=1e-5)
        done += numbers
    assert sorted(done) == list(range(len(TEXTS)))


@pytest.mark.parametrize("pad", [None, 0, 8])
def test_the_pretrained_models_padding_does_not_matter(wide: Path, tmp_path: Path, pad: int | None) -> None:
    folder = head(tmp_path / "tuned", pad_token_id=pad, num_labels=3)
    answers = alone(folder).argmax(1).tolist()
    assert set(answers) == {0, 1, 2}
    assert right(wide, folder, answers) == len(TEXTS)


def test_a_text_without_tokens(tmp_path: Path) -> None:
    tokenizer = models.word_tokenizer(60)
    tokenizer._tokenizer.normalizer = Replace("bread", "")
    classifier = Classifier.open(str(head(tmp_path / "tuned", tokenizer=tokenizer)))
    with pytest.raises(BuildError, match=re.escape("its tokenizer finds no tokens in a text; leave it out: 'bread'")):
        list(classifier.runner.batches(["butter", "bread"], 32, 2))


# ---- the tokenizer


def test_texts_are_tokenized_as_for_the_tuned_model(wide: Path, tmp_path: Path) -> None:
    folder = head(tmp_path / "tuned", ending(models.word_tokenizer(60)), num_labels=2)
    plain = head(tmp_path / "plain", num_labels=2)
    answers = alone(folder).argmax(1)
    assert not torch.equal(answers, alone(plain).argmax(1))
    said = Said()
    assert right(wide, folder, answers.tolist(), said) == len(TEXTS)
    assert said.lines == [
        f"texts are tokenized as for the tuned models; {wide}'s own tokenizer would give other ids for 11 of 11"
    ]


def adapter(folder: Path, base: Path, tokenizer: Any) -> Path:
    """A LoRA adapter of one matrix with a classifier and, as trainers write it, its tokenizer."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["query"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.encoder.layer.1.attention.self.query.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(2, 24), f"{name}B.weight": torch.ones(24, 2)},
        folder / "adapter_model.safetensors",
    )
    save_file({"classifier": torch.ones(24)}, folder / "classifier.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def test_an_adapters_own_tokenizer(tmp_path: Path) -> None:
    base = models.save_word_model(tmp_path / "base", 3, models.encoder)
    folder = adapter(tmp_path / "lora", base, ending(models.word_tokenizer(60)))
    assert Runner.open(Checkpoint.open(str(base))).tokens(["bread"], 32) == [[8]]
    assert Classifier.open(str(folder), str(base)).runner.tokens(["bread"], 32) == [[1, 8, 1]]
    other = adapter(tmp_path / "other", base, models.word_tokenizer(59))
    with pytest.raises(CheckpointError, match=f"{other}: its tokenizer has other tokens than that of {base}"):
        Classifier.open(str(other), str(base))
