"""Displacements: a tuned model less its base, against brute force on both, and LoRA folders against PEFT's own merging.

And what it is for: of all-MiniLM-L6-v2 tuned on film reviews, the neurons that moved most speak of opinions.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import models
import oracle
import paramdex
from paramdex.cli import cli
from paramdex.tour import demo_sources
from paramdex_builder import Options, build
from paramdex_builder.project.pairs import of_rank
from paramdex_builder.read.displacement import Displacement
from paramdex_schemas import AddressError, BuildError, CheckpointError, QueryError

ROOT = Path(__file__).parents[3]
ADAPTER = ROOT / "data" / "models" / "minilm-reviews-lora"
OPTIONS = Options(top_k=8, pair_k=20, neighbor_k=2, device="cpu")
NAMES = ["gpt2-a", "llama-gqa", "bert"]
MOVED_LAYER = {"gpt2-a": "h.1.", "llama-gqa": "layers.1.", "bert": "layer.1."}


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


# ---- full models


def tune(base: Path, tuned: Path, layer: str) -> None:
    """A copy of a model whose embedding and every tensor of one layer moved a little, as training moves them."""
    shutil.copytree(base, tuned)
    state = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, value in state.items():
        if layer in name or value.shape[0] > 64:
            noise = torch.randn(value.shape, generator=generator) * 0.01
            state[name] = (value.float() + noise).to(value.dtype)
    save_file(state, tuned / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def tuned_folders(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tuned")
    for name in NAMES:
        tune(model_folders[name], root / f"{name}-tuned", MOVED_LAYER[name])
    return {name: root / f"{name}-tuned" for name in NAMES}


@pytest.fixture(scope="module")
def path(
    model_folders: dict[str, Path], tuned_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An atlas of three bases, one of the tuned models, and all three displacements."""
    path = tmp_path_factory.mktemp("moved") / "moved.atlas"
    build([str(model_folders[name]) for name in NAMES] + [str(tuned_folders["bert"])], path, OPTIONS)
    for name in NAMES:
        build([str(tuned_folders[name])], path, Options(**vars(OPTIONS) | {"base": str(model_folders[name])}))
    return path


@pytest.fixture(scope="module")
def atlas(path: Path) -> paramdex.Atlas:
    return paramdex.open(path)


def difference(tuned: oracle.Truth, base: oracle.Truth) -> oracle.Truth:
    """The truth of a displacement's vectors; of its pairs it knows nothing."""
    rows = {kind: [a - b for a, b in zip(tuned.rows[kind], base.rows[kind], strict=True)] for kind in base.rows}
    return oracle.Truth(base.E, rows, base.n_heads, base.n_kv_heads)


@pytest.mark.parametrize("name", NAMES)
def test_every_vector_is_the_float64_difference(
    name: str, atlas: paramdex.Atlas, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    tuned, base = (oracle.read(folders[name], sums=np.float64) for folders in (tuned_folders, model_folders))
    model = f"{name}-tuned-minus-{name}"
    rows = atlas.sql("SELECT * FROM parameters WHERE model = ? ORDER BY param_id", [model]).to_rows()
    tokens: dict[tuple[str, str], list[tuple[int, float]]] = {}
    listed = "SELECT * FROM parameter_tokens WHERE model = ? AND rank > 0 ORDER BY rank"
    for row in atlas.sql(listed, [model]).to_rows():
        tokens.setdefault((row["address"], row["side"]), []).append((row["token_id"], row["score"]))
    n_moved = 0
    for row, (kind, layer, head, idx, vector) in zip(rows, difference(tuned, base).parameters(), strict=True):
        assert row["address"] == oracle.address(model, kind, layer, head, idx)
        scores = base.E @ vector
        found = [row[column] for column in ("norm", "mean", "std")]
        np.testing.assert_allclose(found, [np.linalg.norm(vector), scores.mean(), scores.std()], rtol=2e-6, atol=1e-12)
        for side in ("top", "bottom"):
            ids, stored = zip(*tokens[row["address"], side], strict=True)
            oracle.assert_strongest(list(stored), scores[list(ids)], scores, side)
        if not vector.any():
            assert found == [0, 0, 0]
        n_moved += vector.any()
    assert 0 < n_moved < len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_head_matrices_are_the_difference_of_the_two_matrices(
    name: str, atlas: paramdex.Atlas, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    tuned, base = (oracle.read(folders[name]) for folders in (tuned_folders, model_folders))
    model = f"{name}-tuned-minus-{name}"
    heads = atlas.sql("SELECT * FROM heads WHERE model = ? ORDER BY head_id", [model]).to_rows()
    pairs = atlas.sql("SELECT * FROM head_pairs WHERE model = ? AND rank IS NOT NULL ORDER BY rank", [model]).to_rows()
    assert len(heads) == base.n_layers * base.n_heads
    for row in heads:
        for matrix in ("QK", "VO"):
            place = (matrix, row["layer"], row["head"])
            (P, Q), (P0, Q0) = tuned.head(*place), base.head(*place)
            M = P @ Q.T - P0 @ Q0.T
            scores = base.E @ M @ base.E.T
            found = [row[f"{matrix.lower()}_{number}"] for number in ("norm", "mean", "std")]
            if row["layer"] == 0:  # nothing in it moved: zero, not what float64 leaves of a difference
                assert found == [0, 0, 0]
            np.testing.assert_allclose(found, [np.linalg.norm(M), scores.mean(), scores.std()], rtol=1e-6, atol=1e-10)
            for side in ("top", "bottom"):
                mine = [p for p in pairs if (p["address"], p["matrix"], p["side"]) == (row["address"], matrix, side)]
                at = scores[[p["source_id"] for p in mine], [p["target_id"] for p in mine]]
                oracle.assert_strongest([p["score"] for p in mine], at, scores, side)
                if row["layer"] == 0:
                    assert not any(p["score"] for p in mine)


def test_the_vocabulary_and_the_embedding_are_the_bases(
    atlas: paramdex.Atlas, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    rows = {row["model"]: row for row in atlas.sql("SELECT * FROM models").to_rows()}
    for name in NAMES:
        moved, base = rows[f"{name}-tuned-minus-{name}"], rows[name]
        for column in ("vocabulary", "vocabulary_size", "family", "n_heads", "embedding", "tokenizer_sha256"):
            assert moved[column] == base[column]
        assert moved["base_sha256"] == base["weights_sha256"] != moved["weights_sha256"]
        assert (moved["base"], moved["source"]) == (str(model_folders[name]), str(tuned_folders[name]))
        assert (base["base"], base["base_sha256"]) == (None, None)
    assert rows["bert-tuned-minus-bert"]["weights_sha256"] == rows["bert-tuned"]["weights_sha256"]


def test_norms_are_folded_into_each_model_before_they_are_subtracted(
    model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    name = "gpt2-a"
    tuned, base = (oracle.read(folders[name]) for folders in (tuned_folders, model_folders))
    gains = [
        load_file(folders[name] / "model.safetensors")["transformer.h.1.ln_2.weight"].double().numpy()
        for folders in (tuned_folders, model_folders)
    ]
    moved = Displacement.open(str(tuned_folders[name]), str(model_folders[name]), fold_norm=True)
    run = next(run for run in moved.layout.of("ff_key") if run.layer == 1)
    found = moved.rows(run).numpy()
    expected = tuned.rows["ff_key"][1] * gains[0] - base.rows["ff_key"][1] * gains[1]
    expected -= expected.mean(1, keepdims=True)  # GPT-2 has LayerNorm
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_the_same_command_finds_its_work_done_and_another_name_is_asked_for(
    path: Path, model_folders: dict[str, Path], tuned_folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.atlas"
    shutil.copytree(path, copy)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    base = Options(**vars(OPTIONS) | {"base": str(model_folders["bert"])})
    build([str(tuned_folders["bert"])], copy, base)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    with pytest.raises(BuildError, match="already has a model bert, built from other weights"):
        build([f"bert={tuned_folders['bert']}"], copy, base)  # what moved is not the model of that name
    build([f"moved={tuned_folders['bert']}"], copy, base)
    assert [*paramdex.open(copy).models][-1] == "moved"


@pytest.mark.parametrize(
    ("tuned", "settings", "message"),
    [
        ("encoder", {"heads": 4}, "n_heads 4 against 3, n_kv_heads 4 against 3, d_head 6 against 8"),
        ("encoder", {"intermediate_size": 48}, "d_ff 48 against 40"),
        ("encoder", {"num_hidden_layers": 1}, "n_layers 1 against 2"),
        ("encoder", {"max_position_embeddings": 16}, "other parameters of kind position"),
        ("gpt2", {}, "family gpt2 against bert"),
    ],
)
def test_models_of_two_architectures_are_refused_with_what_differs(
    tuned: str, settings: dict[str, int], message: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = models.wordpiece_tokenizer()
    other = models.save(tmp_path / "other", getattr(models, tuned)(len(tokenizer), **settings), tokenizer, 1)
    with pytest.raises(CheckpointError, match=f"not of one architecture: .*{message}"):
        build([str(other)], tmp_path / "x.atlas", Options(base=str(model_folders["bert"])))
    assert not (tmp_path / "x.atlas").exists()


# ---- LoRA


def adapt(base: Path, auto: Any, out: Path, seed: int = 3, **settings: Any) -> tuple[Path, Path]:
    """(adapter, merged): a LoRA of PEFT's over a base, its factors drawn at random, and what PEFT merges it into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of transformers
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(auto.from_pretrained(base, dtype=torch.float64), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
                    parameter.copy_((parameter + noise).float().double())
        adapter, merged = out / "adapter", out / "merged"
        model.save_pretrained(adapter)
        model.merge_and_unload().save_pretrained(merged)
    return adapter, merged


GPT2 = {"r": 3, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
BERT = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "key", "value", "dense"]}
LORAS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "linear layers": ("bert", AutoModel, BERT),
    "weights stored as in x out": ("gpt2-a", AutoModelForCausalLM, GPT2),
    "no head in the adapter": ("gpt2-a", AutoModel, GPT2),
    "one layer alone": ("bert", AutoModel, BERT | {"layers_to_transform": [1]}),
    "rank-stabilized": ("bert", AutoModel, BERT | {"use_rslora": True}),
    "ranks and scales by pattern": (
        "bert",
        AutoModel,
        BERT | {"rank_pattern": {"attention.self.query": 2}, "alpha_pattern": {"layer.1.output.dense": 40, "key": 3}},
    ),
    "trained biases": ("bert", AutoModel, BERT | {"bias": "lora_only"}),
    "a classifier beside it": ("bert", AutoModelForSequenceClassification, BERT | {"modules_to_save": ["classifier"]}),
    "positions": ("bert", AutoModel, BERT | {"target_modules": ["query", "position_embeddings"]}),
    "weights of both orders": (
        "gpt2-a",
        AutoModelForCausalLM,
        {"r": 3, "target_modules": ["c_fc", "attn.c_proj", "lm_head"]},
    ),
    "every linear layer": ("llama-gqa", AutoModelForCausalLM, {"r": 2, "target_modules": "all-linear"}),
}


def all_rows(moved: Displacement) -> dict[Any, np.ndarray]:
    """Every run of a displacement -> its vectors."""
    return {run: moved.rows(run).numpy() for run in moved.layout.runs}


@pytest.mark.parametrize("case", LORAS)
def test_an_adapter_moves_what_merging_it_moves(case: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Against PEFT's own merged weights, in float64."""
    name, auto, settings = LORAS[case]
    base = model_folders[name]
    adapter, merged = adapt(base, auto, tmp_path, **settings)
    shutil.copy(base / "config.json", merged)
    found, expected = Displacement.open(str(adapter), str(base)), Displacement.open(str(merged), str(base))
    found.check_layers()
    mine, theirs = all_rows(found), all_rows(expected)
    assert mine.keys() == theirs.keys()
    for run, rows in theirs.items():
        np.testing.assert_allclose(mine[run], rows, rtol=0, atol=1e-12, err_msg=str(run))
    assert sum(rows.any() for rows in mine.values()) > 1


def test_an_adapter_is_built_as_the_model_it_makes(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """The whole way into the atlas, and its scale is part of what it is."""
    base = model_folders["bert"]
    adapter, _ = adapt(base, AutoModel, tmp_path, **BERT)
    options = Options(**vars(OPTIONS) | {"base": str(base)})
    path = build([str(adapter)], tmp_path / "x.atlas", options)
    state, truth = load_file(adapter / "adapter_model.safetensors"), oracle.read(base)
    A, B = (
        state[f"base_model.model.encoder.layer.1.output.dense.lora_{part}.weight"].double().numpy() for part in "AB"
    )
    rows = (B @ A * 6 / 4).T
    with paramdex.open(path) as atlas:
        address = "adapter-minus-bert/L1/ff_value/5"
        (row,) = atlas.sql("SELECT norm, mean FROM parameters WHERE address = ?", [address]).to_rows()
        assert row["norm"] == pytest.approx(np.linalg.norm(rows[5]), rel=1e-6)
        assert row["mean"] == pytest.approx((truth.E @ rows[5]).mean(), rel=1e-6)
    build([str(adapter)], path, options)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 7}))
    with pytest.raises(BuildError, match="already has a model adapter-minus-bert, built from other weights"):
        build([str(adapter)], path, options)


@pytest.fixture(scope="module")
def adapter(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(model_folders["bert"], AutoModel, tmp_path_factory.mktemp("adapter"), **BERT)[0]


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def weighted(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "adapter_model.safetensors")
        change(state)
        save_file(state, folder / "adapter_model.safetensors")

    return apply


QUERY = "base_model.model.encoder.layer.0.attention.self.query"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "DoRA": (configured(use_dora=True), "adapters with use_dora are not read; merge it into its base"),
    "PiSSA": (configured(init_lora_weights="pissa"), "adapters with init_lora_weights pissa are not read"),
    "parameters": (configured(target_parameters=["x"]), "adapters with target_parameters are not read"),
    "another type": (configured(peft_type="IA3"), "is a IA3 adapter; paramdex reads LoRA adapters"),
    "no scale": (configured(lora_alpha=None), "says lora_alpha None, which is not a usable number"),
    "no number": (configured(lora_alpha=float("nan")), "says lora_alpha nan, which is not a usable number"),
    "a number beyond floats": (configured(lora_alpha=10**400), r"says lora_alpha 10{79}, which is not a usable number"),
    "no patterns": (configured(alpha_pattern=[1]), r"says alpha_pattern \[1\], which is not an object"),
    "no pattern": (configured(alpha_pattern={"(": 1}), r"the pattern '\(' cannot be read: missing \)"),
    "a pattern tried for years": (configured(alpha_pattern={"((e|n)+)+x": 1}), r"has the pattern '.*'; write names of"),
    "a pattern of many stars": (configured(alpha_pattern={".*.*.*.*x": 1}), r"has the pattern '.*'; write names of"),
    "nested deeply": (
        lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000),
        "adapter_config.json cannot be read: it is nested too deeply",
    ),
    "the other half of one": (weighted(lambda state: state.pop(f"{QUERY}.lora_A.weight")), "has no lora_A beside it"),
    "no rank": (
        weighted(
            lambda state: state.update(
                {f"{QUERY}.lora_A.weight": torch.ones(0, 24), f"{QUERY}.lora_B.weight": torch.ones(24, 0)}
            )
        ),
        "are no LoRA of a linear",
    ),
    "complex": (
        weighted(lambda state: state.update({f"{QUERY}.lora_A.weight": torch.ones(4, 24, dtype=torch.complex64)})),
        "lora_A.weight is C64; paramdex reads float32",
    ),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
    "a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "adapter_config.json cannot be read"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "damage": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 90),
        "adapter_model.safetensors is truncated",
    ),
    "another width": (
        weighted(lambda state: state.update({f"{QUERY}.lora_A.weight": torch.ones(4, 23)})),
        r"product for encoder.layer.0.attention.self.query.weight is 24 x 23, the base's tensor 24 x 24",
    ),
    "two ranks": (
        weighted(lambda state: state.update({f"{QUERY}.lora_A.weight": torch.ones(3, 24)})),
        "are no LoRA of a linear",
    ),
    "half of one": (weighted(lambda state: state.pop(f"{QUERY}.lora_B.weight")), "has no lora_B beside it"),
    "a magnitude": (
        weighted(lambda state: state.update({f"{QUERY}.lora_magnitude_vector": torch.ones(24)})),
        "_vector are not read",
    ),
    "more layers": (
        weighted(lambda state: state.update({f"{QUERY.replace('.0.', '.7.')}.lora_A.weight": torch.ones(4, 24)})),
        "has no tensor encoder.layer.7.attention.self.query.weight",
    ),
    "nothing": (weighted(lambda state: state.clear()), "its adapter holds nothing of the base"),
    "not finite": (
        weighted(lambda state: state[f"{QUERY}.lora_B.weight"].fill_(float("nan"))),
        "values that are NaN or infinite",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_read_is_refused(
    case: str, adapter: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    damage, message = REFUSED[case]
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        build([str(folder)], tmp_path / "x.atlas", Options(base=str(model_folders["bert"])))
    assert not (tmp_path / "x.atlas").exists()


def test_an_adapter_over_another_base_is_refused(adapter: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor encoder\.layer"):
        build([str(adapter)], tmp_path / "x.atlas", Options(base=str(model_folders["gpt2-a"])))


def test_an_adapter_without_a_base_asks_for_it(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an adapter; say with --base which model it was tuned from"):
        build([str(adapter)], tmp_path / "x.atlas")


@pytest.mark.parametrize(("m", "d", "rank"), [(12, 20, 4), (12, 20, 12), (30, 20, 6), (12, 20, 0)])
def test_factors_of_a_low_rank_product_have_as_many_rows(m: int, d: int, rank: int) -> None:
    """Or else stay as they are: full rank, or nothing at all."""
    generator = np.random.default_rng(m + rank)
    P, Q = (
        generator.standard_normal((m, rank)) @ generator.standard_normal((rank, d)),
        generator.standard_normal((m, d)),
    )
    left, right = (factor.numpy() for factor in of_rank(torch.from_numpy(P), torch.from_numpy(Q)))
    assert len(left) == len(right) == (rank or m)
    np.testing.assert_allclose(left.T @ right, P.T @ Q, rtol=0, atol=1e-12)
    if rank in (0, m):
        assert (left == P).all()
        assert (right == Q).all()


# ---- diff


def test_diff_gives_the_most_moved_in_order_with_what_they_moved_toward(
    atlas: paramdex.Atlas, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    tuned, base = (oracle.read(folders["bert"]) for folders in (tuned_folders, model_folders))
    rows = atlas.diff("bert", "bert-tuned", k=4).to_rows()
    kinds = ["ff_key"] * 4 + ["ff_value"] * 4 + ["QK"] * 3 + ["VO"] * 3  # a layer of three heads moved
    assert [row["kind"] for row in rows] == kinds
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("ff_key", "ff_value", "QK", "VO")}
    for kind in ("ff_key", "ff_value"):
        moved = np.linalg.norm(tuned.rows[kind][1] - base.rows[kind][1], axis=1)
        order = np.argsort(-moved)[:4]
        assert [row["address"] for row in by_kind[kind]] == [f"bert-tuned-minus-bert/L1/{kind}/{i}" for i in order]
        np.testing.assert_allclose([row["norm"] for row in by_kind[kind]], moved[order], rtol=1e-6)
        relative = moved[order] / np.linalg.norm(base.rows[kind][1][order], axis=1)
        np.testing.assert_allclose([row["relative"] for row in by_kind[kind]], relative, rtol=1e-6)
    for matrix in ("QK", "VO"):
        factors = [[truth.head(matrix, 1, head) for head in range(3)] for truth in (tuned, base)]
        M, M0 = (np.stack([P @ Q.T for P, Q in each]) for each in factors)
        moved = np.linalg.norm(M - M0, axis=(1, 2))
        order = np.argsort(-moved)
        assert [row["address"] for row in by_kind[matrix]] == [f"bert-tuned-minus-bert/L1/H{h}" for h in order]
        np.testing.assert_allclose([row["norm"] for row in by_kind[matrix]], moved[order], rtol=1e-6)
        relative = moved[order] / np.linalg.norm(M0, axis=(1, 2))[order]
        np.testing.assert_allclose([row["relative"] for row in by_kind[matrix]], relative, rtol=1e-6)
        for row in by_kind[matrix]:
            assert len(row["top"]) == len(row["bottom"]) == 3
            assert all(" → " in pair for pair in row["top"] + row["bottom"])
    row = by_kind["ff_value"][0]
    shown = atlas.show(row["address"], k=5).to_rows()
    for side in ("top", "bottom"):
        assert row[side] == [each["text"] for each in shown if each["side"] == side]


def test_diff_finds_a_displacement_by_names_by_sources_and_by_its_own_name(
    atlas: paramdex.Atlas, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    base, tuned = str(model_folders["bert"]), str(tuned_folders["bert"])
    expected = atlas.diff("bert-tuned-minus-bert").to_rows()
    for given in [("bert", "bert-tuned"), (base, tuned), ("bert", tuned), (base + "/", "bert-tuned-minus-bert")]:
        assert atlas.diff(*given).to_rows() == expected
    one = atlas.diff("bert-tuned-minus-bert", kind="attn_value_bias", layer=1, k=2).to_rows()
    assert [row["rank"] for row in one] == [1, 2]
    assert {row["kind"] for row in one} == {"attn_value_bias"}
    unmoved = atlas.diff("bert-tuned-minus-bert", kind="ff_value", layer=0)
    assert len(unmoved) == 0
    assert list(unmoved.notes) == ["ff_value: nothing moved"]


def test_the_command_prints_what_the_method_gives(
    path: Path, atlas: paramdex.Atlas, model_folders: dict[str, Path]
) -> None:
    source = str(model_folders["bert"])
    arguments = ["diff", str(path), source, "bert-tuned", "-k", "2"]
    ran = {output: CliRunner().invoke(cli, [*arguments, "--format", output]) for output in ("table", "json", "csv")}
    found = atlas.diff("bert", "bert-tuned", k=2)
    assert {output: one.output.rstrip("\n") for output, one in ran.items()} == {
        output: found.render(output).replace("\r", "") for output in ran
    }
    lines = ran["table"].output.splitlines()
    assert lines[0].startswith("bert-tuned-minus-bert: what moved from bert to")
    start = lines.index("moved most, by squared norm: L1 100%")
    header = set(" ".join(lines[start + 1 : start + 3]).split())  # of two lines where the terminal is narrow
    assert {"kind", "rank", "address", "norm", "relative"} <= header
    one = CliRunner().invoke(cli, ["diff", str(path), "bert-tuned-minus-bert", "--kind", "VO", "--format", "json"])
    assert [row["address"] for row in json.loads(one.output)] == [
        row["address"] for row in atlas.diff("bert", "bert-tuned", kind="VO")
    ]


def test_diff_says_how_to_make_what_is_not_there(
    atlas: paramdex.Atlas, small_atlas: Path, model_folders: dict[str, Path], tuned_folders: dict[str, Path]
) -> None:
    source = str(model_folders["gpt2-a"])
    how = f"paramdex build --base {source} elsewhere/x -o {atlas.path}"
    with pytest.raises(QueryError) as raised:
        atlas.diff("gpt2-a", "elsewhere/x")
    assert how in str(raised.value)
    assert "it has gpt2-a-tuned-minus-gpt2-a, llama-gqa-tuned-minus-llama-gqa, bert-tuned" in str(raised.value)
    with pytest.raises(QueryError, match=r"bert is not a displacement; give two models, BASE TUNED, or the"):
        atlas.diff("bert")
    with pytest.raises(AddressError, match=r"no displacement 'bert-tuned-minus-bort'; .*bert-tuned-minus-bert"):
        atlas.diff("bert-tuned-minus-bort")
    with pytest.raises(AddressError, match="there is no layer 9"):
        atlas.diff("bert-tuned-minus-bert", layer=9)
    with pytest.raises(QueryError, match="has no parameters of kind 'ff_gate'"):
        atlas.diff("bert-tuned-minus-bert", kind="ff_gate")
    with paramdex.open(small_atlas) as plain, pytest.raises(AddressError, match="paramdex build --base BASE TUNED"):
        plain.diff("nothing")


def test_diff_without_the_base_in_the_atlas_leaves_the_relative_norm_out(
    model_folders: dict[str, Path], tuned_folders: dict[str, Path], tmp_path: Path
) -> None:
    base, tuned = str(model_folders["bert"]), str(tuned_folders["bert"])
    path = build([f"one={tuned}"], tmp_path / "x.atlas", Options(**vars(OPTIONS) | {"base": base}))
    with paramdex.open(path) as atlas:
        found = atlas.diff(base, tuned)
        assert {row["relative"] for row in found.to_rows()} == {None}
        assert "is not in" in found.notes[-1]
    build([f"two={tuned}"], path, Options(**vars(OPTIONS) | {"base": base, "fold_norm": True}))
    with paramdex.open(path) as atlas, pytest.raises(QueryError, match=r"several .* the name of one alone: one or two"):
        atlas.diff(base, tuned)


# ---- what it is for


def minilm() -> Path:
    return Path(dict(source.split("=", 1) for source in demo_sources(ROOT / "data" / "models"))["minilm"])


def opinion_share(vectors: np.ndarray, E: np.ndarray, opinion: np.ndarray, words: np.ndarray, k: int = 10) -> float:
    """The share of opinion words among the k strongest words on either side of each vector (n x d)."""
    scores = (vectors @ E.T)[:, words]
    strongest = np.argpartition(np.concatenate([scores, -scores]), -k, axis=1)[:, -k:]
    return float(opinion[words][strongest].mean())


READING = ["ff_key", "attn_query", "attn_key", "attn_value"]


def test_the_most_moved_parameters_of_a_model_tuned_on_reviews_read_opinions() -> None:
    """The 30 most moved parameters of each kind that reads, in the tuned layers: opinion words among their strongest,
    against the same parameters in the base, others of the base at random, and random directions.

    What writes is left out: of this adapter it does not speak of opinions.
    """
    base = minilm()
    truth = oracle.read(base)
    tokenizer = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    lines = (ROOT / "tests" / "helpers" / "opinion_words.txt").read_text("utf-8").splitlines()
    listed = {word for line in lines if not line.startswith("#") for word in line.split()}
    words = np.array([i for token, i in tokenizer.items() if token.isalpha() and len(token) > 2])
    opinion = np.zeros(len(truth.E), dtype=bool)
    opinion[[i for token, i in tokenizer.items() if token in listed]] = True
    generator = np.random.default_rng(0)
    share: dict[str, float] = {}
    baselines: dict[str, float] = {}
    found = Displacement.open(str(ADAPTER), str(base))
    for kind in READING:
        runs = found.layout.of(kind)
        moved = [found.rows(run).numpy() for run in runs]
        assert not any(rows.any() for rows in moved[:3])
        assert all(rows.any(axis=1).all() for rows in moved[3:])
        vectors, own = np.concatenate(moved[3:]), np.concatenate(truth.rows[kind][3:])
        order = np.argsort(-np.linalg.norm(vectors, axis=1))[:30]
        share[kind] = opinion_share(vectors[order], truth.E, opinion, words)
        baselines[f"{kind} in the base"] = opinion_share(own[order], truth.E, opinion, words)
        others = own[generator.choice(len(own), 300, replace=False)]
        baselines[f"others of {kind}"] = opinion_share(others, truth.E, opinion, words)
    random_rows = generator.standard_normal((300, truth.E.shape[1]))
    baselines["random directions"] = opinion_share(random_rows, truth.E, opinion, words)
    print(share, baselines)
    assert min(share.values()) > 2 * max(baselines.values())
    assert np.mean(list(share.values())) > 5 * max(baselines.values())


def test_the_committed_adapter_is_small_and_says_nothing_of_where_it_was_made() -> None:
    files = [file for file in ADAPTER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 700_000
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    facts, result = (json.loads(line) for line in (ADAPTER / "training.jsonl").read_text().splitlines())
    assert facts["seed"] == 0
    assert result["held_out_accuracy"] > 0.8
