"""Stitching: against transformers' own output and float64 matrices, a model stitched to itself, and bad input."""

from __future__ import annotations

import json
import lzma
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers import logging as transformers_logging

import models
from paramdex.cli import cli
from paramdex.measures import stitching
from paramdex_builder import StitchOptions, stitch
from paramdex_builder.measure.classifier import Classifier, labelled, read_labelled
from paramdex_builder.measure.stitch import state_map
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Batch, Runner, replaced
from paramdex_schemas import BuildError, CheckpointError, FamilyError

transformers_logging.disable_progress_bar()

TEXTS = [
    "canada ottawa toronto bread", "seven eight green yellow winter summer", "music violin", "nurse doctor food",
    "river ocean river ocean river", "butter bread", "paris france green", "winter seven music ocean",
]  # fmt: skip
LABELS = ["pos", "neg", "pos", "neg", "neg", "pos", "neg", "pos"]
REVIEWS = labelled(TEXTS, LABELS, "here")
DRAW = random.Random(0)
MANY = labelled(
    [" ".join(f"word{DRAW.randrange(22, 38)}" for _ in range(DRAW.randrange(1, 9))) for _ in range(40)],
    [DRAW.randrange(2) for _ in range(40)],
    "here",
)
MAKERS = {
    "gpt2": models.gpt2,
    "bert": models.encoder,
    "llama": lambda rows: models.llama(rows, head_dim=8),
    "distilbert": models.MAKERS["DistilBertForMaskedLM"],
    "modernbert": models.MAKERS["ModernBertForMaskedLM"],
    "opt": models.opt,
    "neox": models.neox,
    "bloom": models.MAKERS["BloomModel"],
    "openai-gpt": models.MAKERS["OpenAIGPTLMHeadModel"],
    "mpt": models.MAKERS["MptForCausalLM"],
}
"""Makers of models whose blocks take and give their states in different ways."""


def word_model(folder: Path, seed: int, maker: Any) -> Path:
    """A model of the word vocabulary, with a small embedding: E of full column rank, and states that stay apart."""
    return models.save_word_model(folder, seed, maker)


def with_classifier(folder: Path, seed: int = 5, classes: int = 2) -> Path:
    """A random classifier beside a model."""
    d = json.loads((folder / "config.json").read_text())
    width = next(d[name] for name in ("hidden_size", "n_embd", "dim", "d_model") if name in d)
    generator = torch.Generator().manual_seed(seed)
    save_file({"classifier": torch.randn(classes, width, generator=generator)}, folder / "classifier.safetensors")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wide GPT-2 of three layers, and a classifier of two."""
    root = tmp_path_factory.mktemp("pair")
    a = word_model(root / "wide", 1, lambda rows: models.gpt2(rows, width=32, layers=3, heads=4))
    return a, with_classifier(word_model(root / "tuned", 2, models.gpt2))


def padded(runner: Runner, texts: list[str]) -> Batch:
    """All texts in one batch."""
    return runner.batch(runner.tokens(texts, runner.longest))


def one(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


# ---- the map of states


def test_kernel_is_the_papers(pair: tuple[Path, Path]) -> None:
    """In the paper's row form E is d x V, and the kernel E_A E_B^+."""
    E_a, E_b = (Checkpoint.open(str(folder)).embedding()[0].double().numpy() for folder in pair)
    assert E_a.shape == (60, 32)
    assert E_b.shape == (60, 24)
    np.testing.assert_allclose(
        state_map(torch.tensor(E_a), torch.tensor(E_b)).numpy(), E_a.T @ np.linalg.pinv(E_b.T), atol=1e-9
    )


def test_kernel_of_an_embedding_that_lacks_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    E_a = torch.randn(50, 6, generator=generator)
    E_b = torch.randn(50, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    expected = E_a.double().numpy().T @ np.linalg.pinv(E_b.double().numpy().T, rcond=1e-6)
    np.testing.assert_allclose(state_map(E_a, E_b).numpy(), expected, atol=1e-6)


# ---- states, read and replaced


@pytest.mark.parametrize("family", MAKERS)
def test_states_are_transformers_hidden_states(tmp_path: Path, family: str) -> None:
    """Before every block; what leaves the last is what its own final norm, where there is one, makes the output of."""
    folder = word_model(tmp_path / family, 3, MAKERS[family])
    runner = Runner.open(Checkpoint.open(str(folder)))
    model, _ = one(folder)
    batch = padded(runner, TEXTS[:3])
    assert batch.mask.sum(1).tolist() == [4, 6, 2]
    states = runner.states(batch)
    with torch.no_grad():
        expected = model(**batch.inputs, output_hidden_states=True)
    assert len(states) == len(expected.hidden_states) == len(runner.blocks) + 1
    for mine, theirs in zip(states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(batch.real(mine), batch.real(theirs))
    norm = runner.final_norm()
    with torch.no_grad():
        last = states[-1] if norm is None else norm(states[-1])
    torch.testing.assert_close(batch.real(last), batch.real(expected.last_hidden_state))
    assert (norm is None) == (family in ("bert", "distilbert", "openai-gpt"))


@pytest.mark.parametrize("family", MAKERS)
def test_a_model_stitched_to_itself_is_itself(tmp_path: Path, family: str) -> None:
    """At every point where as many layers come before as are cut off, and at no other."""
    folder = with_classifier(word_model(tmp_path / family, 4, MAKERS[family]))
    classifier = Classifier.open(str(folder))
    runner = classifier.runner
    E = runner.checkpoint.embedding()[0][:60]
    K = state_map(E, E)
    torch.testing.assert_close(K, torch.eye(len(K), dtype=torch.float64), atol=1e-8, rtol=0)
    batch = padded(runner, TEXTS)
    own = classifier.logits(batch)
    states = runner.states(batch)
    for layer in range(len(runner.blocks) + 1):
        for first, state in enumerate(states):
            with replaced(runner, layer, state @ K.float()):
                logits = classifier.logits(batch)
            assert ((logits - own).abs().max() < 1e-4) == (first == layer)
    torch.testing.assert_close(classifier.logits(batch), own)  # nothing stays replaced


def test_padding_changes_nothing(pair: tuple[Path, Path]) -> None:
    classifier = Classifier.open(str(pair[1]))
    together = classifier.logits(padded(classifier.runner, TEXTS))
    for i, text in enumerate(TEXTS):
        ((_, alone),) = classifier.runner.batches([text], 32, 1)
        torch.testing.assert_close(classifier.logits(alone)[0], together[i], atol=1e-5, rtol=1e-5)


# ---- accuracies


def brute_force(a: Path, b: Path, first: int, last: int, *, scale: bool = False, normed: bool = False) -> list[int]:
    """The class of every text, in float64, one text at a time, B's blocks called by hand."""
    A, tokenizer = one(a)
    B, _ = one(b)
    A, B = A.double(), B.double()
    C = load_file(b / "classifier.safetensors")["classifier"].double()
    E_a, E_b = (model.wte.weight.detach().double().numpy() for model in (A, B))
    K = torch.tensor(E_a.T @ np.linalg.pinv(E_b.T))
    mapped, lengths = [], []
    with torch.no_grad():
        for text in MANY.texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            x, own = A.wte(ids) + A.wpe.weight[: ids.shape[1]], B.wte(ids) + B.wpe.weight[: ids.shape[1]]
            for block in list(A.h)[:first]:
                x = block(x)
            for block in list(B.h)[: 2 - last]:
                own = block(own)
            x = (A.ln_f(x) if normed else x) @ K
            mapped.append(x)
            lengths.append((x.norm(dim=2).sum(), own.norm(dim=2).sum()))
        factor = sum(o for _, o in lengths) / sum(m for m, _ in lengths) if scale else 1.0
        classes = []
        for x in mapped:
            state = x * factor
            for block in list(B.h)[2 - last :]:
                state = block(state)
            classes.append(int((B.ln_f(state).mean(1) @ C.T).argmax()))
    return classes


@pytest.mark.parametrize("state", ["raw", "scaled", "normed"])
def test_accuracies_are_the_brute_forces(pair: tuple[Path, Path], state: str) -> None:
    a, b = pair
    rows = stitch(str(a), [str(b)], MANY, StitchOptions(state=state)).to_pylist()
    points = {(row["first"], row["last"]): row for row in rows if row["part"] == "stitched"}
    assert set(points) == {(first, last) for first in range(4) for last in range(3)}
    for (first, last), row in points.items():
        found = brute_force(a, b, first, last, scale=state == "scaled", normed=state == "normed")
        right = sum(x == y for x, y in zip(found, MANY.classes.tolist(), strict=True))
        assert (row["right"], row["n"], row["state"]) == (right, 40, state)
        assert row["accuracy"] == pytest.approx(right / 40)
    assert len({row["right"] for row in points.values()}) > 2  # else all of this would be easy to meet


def test_ends_are_the_tuned_model_and_its_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    base = word_model(tmp_path / "base", 9, models.gpt2)
    rows = stitch(str(a), [str(b)], REVIEWS, StitchOptions(last=(1,), base=str(base))).to_pylist()
    ends = {row["part"]: row["right"] for row in rows if row["part"] != "stitched"}
    C = load_file(b / "classifier.safetensors")["classifier"]
    assert set(ends) == {"fine-tuned", "pre-trained"}
    for part, folder in (("fine-tuned", b), ("pre-trained", base)):
        model, tokenizer = one(folder)
        right = 0
        for text, truth in zip(TEXTS, REVIEWS.classes.tolist(), strict=True):
            with torch.no_grad():
                states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            right += int((states.mean(0) @ C.T).argmax()) == truth
        assert ends[part] == right
    assert {row["last"] for row in rows if row["part"] == "stitched"} == {1}


def test_a_head_of_transformers_is_used_as_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    tokenizer = models.word_tokenizer(60)
    tokenizer.pad_token = "word30"
    models.save(folder, models.encoder(60, cls="BertForSequenceClassification"), tokenizer, 6)
    rows = stitch(str(pair[0]), [str(folder)], REVIEWS).to_pylist()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]
    right = sum(x == y for x, y in zip(found, REVIEWS.classes.tolist(), strict=True))
    assert [row["right"] for row in rows if row["part"] == "fine-tuned"] == [right]
    gpt2 = tmp_path / "gpt2"
    models.save(gpt2, models.gpt2(60, cls="GPT2ForSequenceClassification"), models.word_tokenizer(60), 7)
    classifier = Classifier.open(str(gpt2))
    model = AutoModelForSequenceClassification.from_pretrained(gpt2).eval()
    for numbers, batch in classifier.runner.batches(TEXTS, 32, 8):
        logits = classifier.logits(batch)
        for i, mine in zip(numbers, logits, strict=True):
            ids = classifier.runner.tokenizer(TEXTS[i], return_tensors="pt")["input_ids"]
            with torch.no_grad():
                torch.testing.assert_close(mine, model(input_ids=ids).logits[0], atol=1e-5, rtol=1e-5)


def test_an_adapter_runs_as_peft_merges_it(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = word_model(tmp_path / "base", 3, models.encoder)
    warnings.simplefilter("ignore")  # PEFT's, of transformers
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, lora_alpha=3, target_modules=["query", "dense"])
    made = get_peft_model(AutoModel.from_pretrained(base), config)
    models.randomize(made, 8).save_pretrained(tmp_path / "lora")
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(24, generator=generator)
    save_file({"classifier": vector}, tmp_path / "lora" / "classifier.safetensors")
    classifier = Classifier.open(str(tmp_path / "lora"), str(base))
    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "lora").merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in TEXTS:
        ((_, batch),) = classifier.runner.batches([text], 32, 1)
        with torch.no_grad():
            score = merged(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) @ vector
        torch.testing.assert_close(classifier.logits(batch)[0], torch.tensor([0.0, score]), atol=1e-4, rtol=1e-4)


def test_the_script_tunes_the_last_layers_and_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "data")
    import stitch_reviews

    monkeypatch.setattr(stitch_reviews, "EPOCHS", 30)
    base = word_model(tmp_path / "base", 1, models.gpt2)
    reviews = [("bread butter food", 1), ("winter river ocean", 0)] * 8
    folder = stitch_reviews.tuned_folder(base, 0, reviews, 1, tmp_path)
    before, after = (AutoModel.from_pretrained(each).state_dict() for each in (base, folder))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("h.1.") for name in moved)
    classifier = Classifier.open(str(folder))
    assert stitch_reviews.accuracy(classifier, reviews) == 1.0
    assert stitch_reviews.accuracy(classifier, [(text, 1 - label) for text, label in reviews]) == 0.0


# ---- the command


def write_reviews(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    return write_reviews(tmp_path / "reviews.jsonl", rows)


def test_command_prints_and_draws_several_tuned_models(pair: tuple[Path, Path], reviews: Path, tmp_path: Path) -> None:
    a, b = pair
    other = tmp_path / "other"
    shutil.copytree(b, other)
    with_classifier(other, 6)
    picture = tmp_path / "stitch.png"
    arguments = ["stitch", str(a), str(b), str(other), "--reviews", str(reviews), "--base", str(b)]
    done = CliRunner().invoke(cli, [*arguments, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "2 tuned models (means)" in " ".join(done.output.split())
    table = stitch(str(a), [str(b), str(other)], REVIEWS, StitchOptions(base=str(b)))
    assert str(stitching(table)) in done.output
    rows = table.to_pylist()
    mean = np.mean([row["accuracy"] for row in rows if (row["first"], row["last"]) == (3, 2)])
    (line,) = [line for line in stitching(table).shown.to_pylist() if line["first layers"] == 3]
    assert line["last 2"] == pytest.approx(mean)
    best = [max(r["accuracy"] for r in rows if r["tuned"] == str(t) and r["part"] == "stitched") for t in (b, other)]
    assert f"above 70%: {sum(x > 0.7 for x in best)} of 2 tuned models" in " ".join(done.output.split())
    done = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    assert json.loads(done.stdout) == json.loads(stitching(table).to_json())


def test_reviews_are_read_by_words_and_evenly(reviews: Path, tmp_path: Path) -> None:
    read = read_labelled(reviews, words=2, limit=4)
    assert read.texts == ["toronto bread", "music violin", "ocean river", "france green"]
    assert read.names == ["neg", "pos"]
    assert read.classes.tolist() == [1, 1, 0, 0]
    packed = tmp_path / "reviews.jsonl.xz"
    packed.write_bytes(lzma.compress(reviews.read_bytes()))
    assert read_labelled(packed).texts == TEXTS
    assert read_labelled(packed).largest_share == 0.5


def test_bad_input_says_what_is_wrong(pair: tuple[Path, Path], reviews: Path, tmp_path: Path) -> None:
    a, b = map(str, pair)
    other = tmp_path / "other"
    models.save(other, models.gpt2(70), models.word_tokenizer(70), 1)
    with_classifier(other)

    def fails(kind: type[Exception], message: str, *sources: str, **options: Any) -> None:
        with pytest.raises(kind, match=re.escape(message)):
            stitch(sources[0], sources[1:], options.pop("texts", REVIEWS), StitchOptions(**options))

    fails(BuildError, f"{a} and {other} have different vocabularies", a, str(other))
    fails(BuildError, f"{b} has 2 layers; its last 3 cannot be kept", a, b, last=(3,))
    fails(BuildError, "state is raw, scaled, normed, not 'round'", a, b, state="round")
    fails(BuildError, "space is output or input, not 'both'", a, b, space="both")
    fails(CheckpointError, f"{a} is not a classifier: it has neither", a, a)
    fails(BuildError, "give at least one tuned model", a)
    three = labelled(TEXTS, ["a", "b", "c", "a", "b", "c", "a", "b"], "here")
    fails(BuildError, f"{b} has 2 classes, but the texts have 3 labels: a, b, c", a, b, texts=three)
    no_norm = word_model(tmp_path / "bert", 1, models.encoder)
    fails(BuildError, f"{no_norm} has no norm after its last layer", str(no_norm), b, state="normed")
    t5 = models.save(tmp_path / "t5", models.t5(60), models.word_tokenizer(60), 1)
    fails(FamilyError, f"{t5}: it has several stacks of layers", str(t5), b)
    albert = word_model(tmp_path / "albert", 1, models.MAKERS["AlbertForMaskedLM"])
    fails(FamilyError, f"{albert}: its layers share their weights", str(albert), b)
    with pytest.raises(BuildError, match="has 1 labels"):
        read_labelled(write_reviews(tmp_path / "one.jsonl", [{"text": "bread", "label": "pos"}] * 2))
    with pytest.raises(BuildError, match=r"line 2: not a JSON object with text and label"):
        read_labelled(write_reviews(tmp_path / "no.jsonl", [{"text": "bread", "label": 1}, {"text": "butter"}]))
    with pytest.raises(BuildError, match=r"line 1: text must be a text that is not empty"):
        read_labelled(write_reviews(tmp_path / "empty.jsonl", [{"text": " ", "label": 1}]))
    with pytest.raises(BuildError, match="cannot be read"):
        read_labelled(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"classifier": torch.zeros(2, 7)}, "its classifier is 2 x 7, expected classes x 24"),
        ({"weight": torch.zeros(24)}, "holds ['weight'], not the one tensor classifier"),
    ],
)
def test_bad_classifier(pair: tuple[Path, Path], tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(pair[1], folder)
    save_file(tensors, folder / "classifier.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Classifier.open(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter; say with --base"):
        Classifier.open(str(folder))
