"""Which tensor is read as the embedding: the one that transformers' own model scores by, whatever a file calls it and
whatever config.json says of it; or the model is refused.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SMALL_OPTIONS
from safetensors.torch import load_file, save_file

import models
import paramdex
from paramdex_builder import build
from paramdex_builder.measure.classifier import Classifier
from paramdex_builder.measure.evaluate import EvaluateOptions, evaluate
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import CheckpointError, FamilyError
from paramdex_schemas.progress import Progress

V, D = 60, 24
State = dict[str, torch.Tensor]


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def save(folder: Path, maker: Callable, state: Callable[[State], State] | None = None, **config: Any) -> Any:
    """A model in ``folder`` as transformers saves it, or with the tensors that ``state`` makes of all its parameters,
    each under every name that the model has for it; ``config`` is written over config.json. The model itself.
    """
    model = maker(V)
    models.save(folder, model, models.word_tokenizer(V), 3)
    if state is not None:
        whole = {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}
        save_file(state(whole), folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return model


def table(seed: int = 9, rows: int = V) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def read(folder: Path, space: str = "output", **options: Any) -> tuple[torch.Tensor, str, bool]:
    return Checkpoint.open(str(folder), **options).embedding(space)


def notes(folder: Path, space: str = "output") -> list[str]:
    return list(Checkpoint.open(str(folder)).embeddings.notes(space))


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {(new if name == old else name): value for name, value in state.items()}


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name not in names}


# ---- an output embedding under another name

NAMES = [
    ("GPTNeoXForCausalLM", "lm_head.weight", "lm_head.weight"),  # what transformers calls it since 5.13
    ("GPTNeoXForCausalLM", "lm_head.weight", "embed_out.weight"),
    ("LlamaForCausalLM", "lm_head.weight", "output.weight"),
    ("LlamaForCausalLM", "lm_head.weight", "model.lm_head.weight"),
    ("GptOssForCausalLM", "lm_head.weight", "model.embed_out.weight"),
    ("GPTJForCausalLM", "lm_head.weight", "transformer.lm_head.weight"),
    ("PhiForCausalLM", "lm_head.weight", "transformer.output_layer.weight"),
    ("BertForMaskedLM", "cls.predictions.decoder.weight", "bert.cls.predictions.decoder.weight"),
    ("RobertaForMaskedLM", "lm_head.decoder.weight", "lm_head.weight"),
    ("DistilBertForMaskedLM", "vocab_projector.weight", "distilbert.vocab_projector.weight"),
    ("ModernBertForMaskedLM", "decoder.weight", "head.decoder.weight"),
    ("T5ForConditionalGeneration", "lm_head.weight", "decoder.lm_head.weight"),
    ("LlamaForCausalLM", "lm_head.weight", "language_model.lm_head.weight"),
]


@pytest.mark.parametrize(("name", "old", "new"), NAMES)
def test_an_untied_output_embedding_is_read_under_its_usual_names(
    name: str, old: str, new: str, tmp_path: Path
) -> None:
    """Its numbers are those by which the model itself scores tokens."""
    other: list[torch.Tensor] = []

    def state(whole: State) -> State:
        other.append(torch.randn(whole[old].shape, generator=torch.Generator().manual_seed(5)))
        return renamed(old, new)({**whole, old: other[0]})

    model = save(tmp_path, models.MAKERS[name], state, tie_word_embeddings=False)
    words = model.get_input_embeddings().weight
    E, which, tied = read(tmp_path)
    assert (which, tied) == ("output", False)
    assert torch.equal(E, other[0])
    E, which, tied = read(tmp_path, "input")
    assert (which, tied) == ("input", False)
    assert torch.equal(E, words)
    assert notes(tmp_path) == []


@torch.no_grad()
def test_the_state_dict_of_gpt_neox_scores_as_the_model_does(tmp_path: Path) -> None:
    """Scores in the atlas are those of the model's own output layer."""
    model = save(tmp_path / "neox", models.neox, dict)
    atlas = paramdex.open(build([str(tmp_path / "neox")], tmp_path / "a.atlas", SMALL_OPTIONS))
    assert atlas.sql("SELECT embedding, tied FROM models").to_rows() == [{"embedding": "output", "tied": False}]
    rows = atlas.sql(
        "SELECT token_id, score FROM parameter_tokens WHERE address = 'neox/L1/ff_value/7' AND side = 'top' "
        "AND rank > 0 ORDER BY rank"
    ).to_rows()
    scores = model.lm_head(model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[:, 7])
    best = scores.topk(len(rows))
    assert [row["token_id"] for row in rows] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), best.values)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "extra", [table(), table().T.contiguous(), table(rows=V + 4)], ids=["V x d", "d x V", "padded"]
)
def test_a_table_that_no_name_accounts_for_is_refused(tie: bool, extra: torch.Tensor, tmp_path: Path) -> None:
    """It may be what the model scores by; where config.json says that the two are tied, that may be false."""
    model = save(
        tmp_path,
        models.llama,
        lambda s: without("lm_head.weight")(s) | {"model.scorer.table": extra},
        tie_word_embeddings=tie,
    )
    shape = " x ".join(map(str, extra.shape))
    about = (
        f"{tmp_path}: tensor model.scorer.table has the shape of an output embedding ({shape}) but none of its known "
        "names; rename it to lm_head.weight if it is one"
    )
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    if tie:
        assert str(caught.value) == f"{about}, or take it out of the file if it is not"
        with pytest.raises(CheckpointError, match=r"model\.scorer\.table"):
            read(tmp_path, "input")
    else:
        assert str(caught.value) == f"{about}; or score by model.embed_tokens.weight with --space input"
        E, which, tied = read(tmp_path, "input")
        assert (which, tied) == ("input", False)
        assert torch.equal(E, model.model.embed_tokens.weight)


def test_the_head_of_another_part_of_a_tied_model_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Nor is it said to be none: transformers would tie the two, and score otherwise than a head of that name."""
    save(tmp_path, models.gpt2, lambda s: without("lm_head.weight")(s) | {"ahead.2.lm_head.weight": table()})
    for space in ("output", "input"):
        with pytest.raises(CheckpointError, match=r"tensor ahead\.2\.lm_head\.weight has the shape of an "):
            read(tmp_path, space)


@pytest.mark.parametrize("tie", [False, True])
def test_a_copy_of_the_input_embedding_is_no_other_table(tie: bool, tmp_path: Path) -> None:
    """Whatever it is called, it scores the same, and says that the two are tied."""
    model = save(
        tmp_path,
        models.llama,
        lambda s: without("lm_head.weight")(s) | {"scorer.table": s["model.embed_tokens.weight"].double()},
        tie_word_embeddings=tie,
    )
    for space in ("output", "input"):
        E, which, tied = read(tmp_path, space)
        assert (which, tied) == (space, True)
        assert torch.equal(E, model.model.embed_tokens.weight)


def test_other_tensors_of_the_streams_width_are_no_embedding(tmp_path: Path) -> None:
    """A classifier's rows, a square matrix, a bias over the vocabulary and positions are none."""
    extra = {
        "score.weight": table(rows=3),
        "pooler.dense.weight": table(rows=D),
        "lm_head.bias": torch.zeros(V),
        "final_logits_bias": torch.zeros(1, V),
    }
    model = save(tmp_path, partial(models.gpt2, cls="GPT2Model"), lambda s: s | extra, tie_word_embeddings=False)
    E, which, tied = read(tmp_path)
    assert (which, tied) == ("input", False)
    assert torch.equal(E, model.wte.weight)


def test_two_different_output_embeddings_are_refused(tmp_path: Path) -> None:
    save(tmp_path, models.neox, lambda s: s | {"embed_out.weight": s["lm_head.weight"] + 1})
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: tensors embed_out.weight and lm_head.weight are different, and each has the name of an output "
        "embedding; take the one that is none out of the file"
    )


def test_one_output_embedding_under_two_names_is_read(tmp_path: Path) -> None:
    model = save(tmp_path, models.neox, lambda s: s | {"embed_out.weight": s["lm_head.weight"].clone()})
    assert torch.equal(read(tmp_path)[0], model.lm_head.weight)


# ---- no output embedding at all


def test_an_untied_model_without_its_head_is_read_by_its_input_embedding_which_is_said(tmp_path: Path) -> None:
    model = save(tmp_path / "bare", models.llama, without("lm_head.weight"))
    said = Said()
    atlas = paramdex.open(build([str(tmp_path / "bare")], tmp_path / "a.atlas", SMALL_OPTIONS, said))
    assert atlas.sql("SELECT embedding, tied FROM models").to_rows() == [{"embedding": "input", "tied": False}]
    note = (
        "its input embedding model.embed_tokens.weight stands in for an output embedding: it has none, and the two are "
        "not tied"
    )
    assert f"bare: {note}" in said.lines
    assert torch.equal(read(tmp_path / "bare")[0], model.model.embed_tokens.weight)
    assert notes(tmp_path / "bare", "input") == []
    said = Said()
    options = EvaluateOptions(k=3, pair_k=5, draws=1, samples=4)
    evaluate(str(tmp_path / "bare"), "food bread music river " * 20, options, said)
    assert f"{tmp_path / 'bare'}: {note}" in said.lines


@pytest.mark.parametrize("maker", [models.encoder, partial(models.gpt2, cls="GPT2Model")])
def test_a_model_that_never_had_a_head_is_read_without_a_word(maker: Callable, tmp_path: Path) -> None:
    model = save(tmp_path, maker)
    E, which, tied = read(tmp_path)
    assert (which, tied, notes(tmp_path)) == ("output", True, [])
    assert torch.equal(E, model.get_input_embeddings().weight)


def test_a_table_that_a_head_reads_its_own_state_by_is_no_embedding_of_the_stream(tmp_path: Path) -> None:
    """An untied ELECTRA of a narrower embedding: its head has a narrow state of its own, beside the stream."""
    save(tmp_path, models.MAKERS["ElectraForMaskedLM, narrower embedding, untied"])
    assert read(tmp_path)[1:] == ("input", False)
    assert notes(tmp_path) == [
        (
            "its input embedding electra.embeddings.word_embeddings.weight stands in for an output embedding: "
            "generator_lm_head.weight does not read the stream, and the two are not tied"
        )
    ]


def test_an_output_embedding_of_the_streams_width_is_read_beside_a_narrower_input_embedding(tmp_path: Path) -> None:
    name = "ElectraForMaskedLM, narrower embedding, untied"
    save(
        tmp_path,
        models.MAKERS[name],
        lambda s: without("generator_lm_head.weight")(s) | {"lm_head.weight": table()},
        tie_word_embeddings=False,
    )
    E, which, tied = read(tmp_path)
    assert (which, tied) == ("output", False)
    assert torch.equal(E, table())


# ---- tied or not: by the tensors

ENTRIES = ("shared.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")

TIES = [
    ("LlamaForCausalLM", "lm_head.weight"),
    ("GPT2LMHeadModel", "lm_head.weight"),
    ("GPTNeoXForCausalLM", "lm_head.weight"),
    ("BertForMaskedLM", "cls.predictions.decoder.weight"),
    ("MT5ForConditionalGeneration", "lm_head.weight"),
    ("BartForConditionalGeneration", "lm_head.weight"),
]


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(("name", "head"), TIES)
def test_tied_is_what_the_tensors_are(name: str, head: str, equal: bool, says: bool, tmp_path: Path) -> None:
    """Where a file has both tables, for either space, and with the gains of the final norm on what it gives alone."""
    wanted: list[torch.Tensor] = []

    def state(whole: State) -> State:
        words = next(value for key, value in whole.items() if key.endswith(ENTRIES))
        output = words.clone() if equal else torch.randn(words.shape, generator=torch.Generator().manual_seed(4))
        wanted.extend((words, output))
        return whole | {head: output}

    save(tmp_path, models.MAKERS[name], state, tie_word_embeddings=says)
    for space, E in zip(("input", "output"), wanted, strict=True):
        found, which, tied = read(tmp_path, space)
        assert (which, tied) == (space, equal)
        assert torch.equal(found, E)
        folded, _, _ = read(tmp_path, space, fold_norm=True)
        assert torch.equal(folded, E) == (space == "input" and not equal)


@torch.no_grad()
@pytest.mark.parametrize("says", [True, False])
def test_an_untied_t5_is_untied_in_the_atlas(says: bool, tmp_path: Path) -> None:
    """T5 v1.1 and Flan-T5, which transformers 5 takes for tied; the logits are those of the output table."""
    save(tmp_path / "t5", models.t5, lambda s: s | {"lm_head.weight": table()}, tie_word_embeddings=says)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").eval()
    ids = torch.tensor([[5, 9, 1]])
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    logits = model(input_ids=ids, decoder_input_ids=ids).logits
    E, _, _ = read(tmp_path / "t5")
    torch.testing.assert_close(seen[0] @ E.T, logits)
    for space in ("output", "input"):
        options = replace(SMALL_OPTIONS, space=space)
        atlas = paramdex.open(build([str(tmp_path / "t5")], tmp_path / f"{space}.atlas", options))
        assert atlas.sql("SELECT embedding, tied FROM models").to_rows() == [{"embedding": space, "tied": False}]


@pytest.mark.parametrize(("says", "expected"), [(True, ("output", True)), (False, ("input", False))])
def test_one_table_of_a_t5_is_tied_as_config_json_says(says: bool, expected: tuple[str, bool], tmp_path: Path) -> None:
    """And not as transformers says of every T5: an encoder of T5 v1.1 has lost the table that it scored by."""
    model = save(tmp_path, partial(models.t5, cls="T5EncoderModel"), tie_word_embeddings=says)
    E, which, tied = read(tmp_path)
    assert (which, tied) == expected
    assert torch.equal(E, model.shared.weight)


# ---- a tied model with one of its two tables

TIED = [
    "GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "GPTNeoXForCausalLM, tied, no bias", "OPTForCausalLM",
    "OPTForCausalLM, narrower embedding", "BloomForCausalLM", "FalconForCausalLM, multi-query", "MptForCausalLM",
    "Qwen2ForCausalLM", "Gemma2ForCausalLM", "CohereForCausalLM", "BertForMaskedLM", "RobertaForMaskedLM",
    "DistilBertForMaskedLM", "ElectraForMaskedLM", "ElectraForMaskedLM, narrower embedding", "AlbertForMaskedLM",
    "ModernBertForMaskedLM", "T5ForConditionalGeneration", "BartForConditionalGeneration", "BartForCausalLM",
]  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_is_read_under_whichever_name_its_table_stands(name: str, tmp_path: Path) -> None:
    """Input or output, the one that stacks share or that of either: the same rows, embedding and layout."""
    model = save(tmp_path / "saved", models.MAKERS[name], tie_word_embeddings=True)
    whole = {key: value.detach().clone() for key, value in model.named_parameters(remove_duplicate=False)}
    words = model.get_input_embeddings().weight
    names = [key for key, value in whole.items() if torch.equal(value, words)]
    assert len(names) == {"T5ForConditionalGeneration": 4, "BartForConditionalGeneration": 4}.get(name, 2)
    plain = Checkpoint.open(str(tmp_path / "saved"))
    for i, kept in enumerate(names):
        folder = Path(shutil.copytree(tmp_path / "saved", tmp_path / str(i)))
        state = {key: value for key, value in whole.items() if key == kept or key not in names}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        found = Checkpoint.open(str(folder))
        assert found.layout == plain.layout
        assert found.dtype() == "float32"
        found.check_layers()
        for space in ("output", "input"):
            E, *about = found.embedding(space)
            expected, *wanted = plain.embedding(space)
            assert about == wanted
            assert torch.equal(E, expected)
        for run in plain.layout.runs:
            assert torch.equal(found.rows(run), plain.rows(run))


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "BertForMaskedLM", "BartForConditionalGeneration"])
def test_an_inferred_tied_model_is_read_by_its_output_table(name: str, tmp_path: Path) -> None:
    model = save(tmp_path, models.MAKERS[name], model_type="brandnew", tie_word_embeddings=True)
    words = model.get_input_embeddings().weight.detach()
    state = {key: value for key, value in load_file(tmp_path / "model.safetensors").items() if value.shape != (V, D)}
    save_file(state | {"lm_head.weight": words.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(str(tmp_path))
    assert checkpoint.inferred
    E, which, tied = checkpoint.embedding()
    assert (which, tied) == ("output", True)
    assert torch.equal(E, words)


def test_an_untied_model_without_its_input_embedding_is_refused(tmp_path: Path) -> None:
    save(tmp_path, models.llama, without("model.embed_tokens.weight"))
    with pytest.raises(FamilyError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: there is no tensor model.embed_tokens.weight, the input embedding, and no output embedding that "
        "config.json ties to it"
    )


@torch.no_grad()
def test_a_tied_model_runs_by_its_output_table(tmp_path: Path) -> None:
    """What ``evaluate`` runs has the embedding that the file has; transformers draws one at random."""
    model = save(tmp_path, models.gpt2, without("transformer.wte.weight"))
    runner = Runner.open(Checkpoint.open(str(tmp_path)))
    batch = runner.batch([[5, 6, 7]])
    wanted = model(input_ids=batch.ids, output_hidden_states=True).hidden_states
    states = runner.states(batch)
    for mine, theirs in zip(states[:-1], wanted, strict=False):
        torch.testing.assert_close(mine, theirs)
    E, which, tied = runner.checkpoint.embedding()
    assert (which, tied) == ("output", True)
    final = runner.final_norm()
    assert final is not None
    torch.testing.assert_close(final(states[-1]) @ E.T, model(input_ids=batch.ids).logits)


@torch.no_grad()
def test_an_adapter_of_the_embedding_runs_on_a_base_with_its_output_table_alone(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    warnings.simplefilter("ignore")  # PEFT's, of transformers
    whole, base = tmp_path / "whole", tmp_path / "base"
    for folder, state in ((whole, dict), (base, without("transformer.wte.weight"))):
        save(folder, models.gpt2, state)
    made = get_peft_model(transformers.AutoModel.from_pretrained(whole), LoraConfig(r=2, target_modules=["wte"]))
    models.randomize(made, 8).save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    save_file({"classifier": torch.ones(D)}, tmp_path / "lora" / "classifier.safetensors")
    merged = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(whole), tmp_path / "lora")
    merged = merged.merge_and_unload().eval()
    runner = Classifier.open(str(tmp_path / "lora"), str(base)).runner
    batch = runner.batch([[5, 6, 7]])
    plain = transformers.AutoModel.from_pretrained(whole)(input_ids=batch.ids).last_hidden_state
    wanted = merged(input_ids=batch.ids).last_hidden_state
    assert float((wanted - plain).abs().max()) > 0.1
    torch.testing.assert_close(runner.run(batch).last_hidden_state, wanted, atol=1e-4, rtol=1e-4)


def test_a_displacement_from_a_base_with_its_output_table_alone(tmp_path: Path) -> None:
    """What did not move is zero, and scores are by the base's table."""
    model = save(tmp_path / "tuned", models.gpt2, dict)
    save(tmp_path / "base", models.gpt2, without("transformer.wte.weight"))
    moved = Displacement.open(str(tmp_path / "tuned"), str(tmp_path / "base"))
    for run in moved.layout.runs:
        assert not moved.rows(run).any()
    E, which, tied = moved.embedding()
    assert (which, tied, list(moved.notes("output"))) == ("output", True, [])
    assert torch.equal(E, model.transformer.wte.weight)


# ---- two embeddings of an encoder-decoder


def marian(rows: int, **more: Any) -> Any:
    return models.bart(rows, "MarianMTModel", share_encoder_decoder_embeddings=False, **more)


def with_positions(model: Any, folder: Path) -> None:
    """Marian's positions are computed, and saved by older versions alone."""
    state = load_file(folder / "model.safetensors")
    state |= {name: value.detach().clone() for name, value in model.named_parameters() if "embed_positions" in name} | {
        name: value.clone() for name, value in model.named_buffers() if "embed_positions" in name
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})


TWO: dict[str, tuple[Callable[[int], Any], str]] = {
    "BART, untied": (partial(models.bart, tie_word_embeddings=False), "BartForConditionalGeneration"),
    "BART, untied, no head": (partial(models.bart, cls="BartModel", tie_word_embeddings=False), "BartModel"),
    "Pegasus, untied, inferred": (
        partial(models.bart, cls="PegasusForConditionalGeneration", tie_word_embeddings=False),
        "PegasusForConditionalGeneration",
    ),
    "Marian, tied, inferred": (partial(marian, decoder_vocab_size=V), "MarianMTModel"),
    "Marian, untied, inferred": (partial(marian, decoder_vocab_size=V, tie_word_embeddings=False), "MarianMTModel"),
    "Marian, decoder of fewer tokens": (partial(marian, decoder_vocab_size=V - 12), "MarianMTModel"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", TWO)
def test_the_decoders_table_scores_where_encoder_and_decoder_have_two(name: str, tmp_path: Path) -> None:
    """The output embedding where there is one; the logits are its own."""
    maker, cls = TWO[name]
    model = save(tmp_path, maker)
    if cls == "MarianMTModel":
        with_positions(model, tmp_path)
    model = getattr(transformers, cls).from_pretrained(tmp_path).eval()
    decoder, encoder = model.get_decoder().embed_tokens.weight, model.get_encoder().embed_tokens.weight
    assert not torch.equal(decoder, encoder)
    ids = torch.tensor([[5, 9, 7]])
    E, which, tied = read(tmp_path)
    assert torch.equal(read(tmp_path, "input")[0], decoder)
    if cls == "BartModel":
        assert (which, tied) == ("input", False)
        assert torch.equal(E, decoder)
    else:
        assert (which, tied) == ("output", "untied" not in name)
        seen: list[torch.Tensor] = []
        model.model.decoder.register_forward_hook(lambda _, __, out: seen.append(out[0]))
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(seen[0] @ E.T + model.final_logits_bias, logits)
    said = notes(tmp_path)[-1]
    entry = "encoder.embed_tokens.weight"
    assert said.startswith(
        f"its encoder has its own input embedding, {'' if cls == 'BartModel' else 'model.'}{entry}; all scores"
    )


@pytest.mark.parametrize("own", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_a_stack_of_a_tied_model_may_have_a_table_of_its_own(name: str, own: str, tmp_path: Path) -> None:
    """As transformers loads it: the head is tied to what the stacks share, and a stack's own table is its own."""
    prefix = "model." if name.startswith("Bart") else ""
    model = save(tmp_path, models.MAKERS[name])
    state = load_file(tmp_path / "model.safetensors")
    state[f"{prefix}{own}.embed_tokens.weight"] = table()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model = getattr(transformers, name).from_pretrained(tmp_path)
    E, which, tied = read(tmp_path)
    assert (which, tied) == ("output", own == "encoder")
    assert torch.equal(E, model.get_output_embeddings().weight)
    assert torch.equal(read(tmp_path, "input")[0], model.get_decoder().embed_tokens.weight)


def test_an_encoder_alone_is_scored_by_its_own_table(tmp_path: Path) -> None:
    save(tmp_path, partial(models.t5, cls="T5EncoderModel"), lambda s: s | {"encoder.embed_tokens.weight": table()})
    E, which, tied = read(tmp_path)
    assert (which, tied, notes(tmp_path)) == ("output", True, [])
    assert torch.equal(E, table())
