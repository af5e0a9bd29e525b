"""Every family's reading against plain oracles: its states against the inputs of the modules that hold the weights, its
maps against ridge regression in NumPy, its correlations against NumPy's; and those that cannot be read so are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModel

import models
from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.maps import PART, RIDGE
from paramdex_builder.stream.reading import Reading, make_reading, precision, reading_of, run_name
from paramdex_builder.stream.space import Tables
from paramdex_builder.stream.texts import FITTED, HELD_OUT, Texts, own, windows
from paramdex_schemas import KINDS, BuildError, Run

V = 60
ENCODERS = ("Bert", "Roberta", "Camembert", "Data2Vec", "XLM", "Electra")
REFUSED = ("Albert", "T5", "MT5", "Bart")
NO_ENCODERS = [name for name in models.MAKERS if not name.startswith(REFUSED)]
Array = npt.NDArray[np.float64]


def is_encoder(name: str) -> bool:
    return any(part in name for part in ("Bert", *ENCODERS))


def words() -> str:
    """Text of 5,000 words of the models' vocabulary."""
    tokens = models.word_tokenizer(V).get_vocab()
    plain = sorted(token for token in tokens if token.isalnum())
    return " ".join(np.random.default_rng(0).choice(plain, 5000).tolist())


def holds(parameter: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether some vectors (n x d) are rows or columns of a module's parameter, whatever else it has."""
    d = rows.shape[1]
    if parameter.ndim < 2:
        return False
    for table in (parameter, parameter.mT):
        if table.shape[-1] == d:
            there = table.reshape(-1, d)
            if bool((there == rows[0]).all(1).any()) and bool((there == rows[-1]).all(1).any()):
                return True
    return False


def given_to_modules(runner: Runner, texts: Texts, layer: int = 1) -> dict[torch.nn.Module, Array]:
    """Module of a layer with weights of its own -> the vectors that it is given at each counted token (n x d, others
    left out).
    """
    given: dict[torch.nn.Module, list[torch.Tensor]] = {}

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        given.setdefault(module, []).append(state.clone())

    modules = [module for module in runner.blocks[layer].modules() if list(module.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    for start in range(0, len(texts), PART):
        ids = texts.ids[start : start + PART]
        runner.run(Batch(ids, torch.ones_like(ids)))
        for parts in given.values():
            if parts[-1].numel() % ids.numel() == 0:
                parts[-1] = texts.counted(parts[-1].reshape(*ids.shape, -1)).flatten(0, 1)
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(parts).double().numpy() for module, parts in given.items()}


def readers(checkpoint: Checkpoint, layer: int = 1) -> list[Run]:
    return [run for run in checkpoint.layout.runs if run.layer == layer and KINDS[run.kind].role == "reads"]


def ridge(X: Array, Y: Array, n_texts: int) -> Array:
    """The regression of Y on X (n x d each), both less the means over the text that a row is of."""
    Xc, Yc = (np.vstack([text - text.mean(0) for text in np.split(rows.astype(float), n_texts)]) for rows in (X, Y))
    G, C = Xc.T @ Xc, Xc.T @ Yc
    paid = RIDGE * G.diagonal().mean()
    return np.linalg.solve(G + paid * np.eye(len(G)), C + paid * np.diag(C.diagonal() / G.diagonal()))


def check_states_alone(folder: Path, checkpoint: Checkpoint, tables: Tables) -> None:
    """Both Z are the first two hidden_states of transformers' model, normalized, and of the first the mean over
    positions.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        n = min(32, Runner.open(checkpoint).longest)
        many, one = (
            model(torch.arange(V)[:, None].expand(-1, k), output_hidden_states=True).hidden_states for k in (n, 1)
        )
    assert list(tables) == ["entering", "reading"]
    for Z, hidden in zip(tables.values(), (many[0].double().mean(1), one[1][:, 0]), strict=True):
        states = hidden.double().numpy()
        if checkpoint.family.norm == "layer":
            states = states - states.mean(1, keepdims=True)
        wanted = states / np.sqrt((states**2).mean(1, keepdims=True))
        assert Z.double().numpy() == pytest.approx(wanted, abs=1e-5)


def check_maps(checkpoint: Checkpoint, runner: Runner, reading: Reading, texts: Texts, layer: int) -> None:
    """Every reader of a layer has the map and the correlations that follow from what its module is given."""
    given = given_to_modules(runner, texts, layer)
    n = texts[:FITTED].n_tokens
    z = reading.tables["reading" if layer else "entering"][texts.counted(texts.ids).flatten()].double().numpy()
    assert reading.n_tokens == n
    for run in readers(checkpoint, layer):
        through = {"attn_query_bias": "attn_key", "attn_key_bias": "attn_query"}.get(run.kind)
        beside = next((each for each in readers(checkpoint, layer) if each.kind == through), run)
        stored = checkpoint.rows(beside).float()
        of = [m for m in given if any(holds(p.detach(), stored) for p in m.parameters(recurse=False))]
        assert len(of) == 1, run
        x = given[of[0]]
        A = reading.map(run).double().numpy()
        wanted = ridge(z[:n], x[:n], FITTED)
        assert np.abs(A - wanted).max() < 1e-6 * np.abs(wanted).max(), run
        rows = checkpoint.rows(run).double().numpy()
        pulled = reading.pulled(checkpoint, run, torch.from_numpy(rows)).numpy()
        assert pulled == pytest.approx(rows @ A.T, rel=1e-12, abs=1e-12)
        found = reading.reads[run_name(run)].numpy()
        each = [np.corrcoef(x[n:] @ w, z[n:] @ r)[0, 1] for w, r in zip(rows, pulled, strict=True)]
        assert found == pytest.approx(np.array(each), abs=1e-5), run


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_what_is_expected_is_what_regression_says(name: str, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])
    checkpoint = Checkpoint.open(str(folder))
    text = None
    if is_encoder(name):
        text = tmp_path / "words.txt"
        text.write_text(words())
        assert reading_of("auto", checkpoint) == "embedding"
        with pytest.raises(BuildError, match="is no causal model, and writes no text; give some with --text FILE"):
            reading_of("expected", checkpoint)
    assert reading_of("expected", checkpoint, text) == reading_of("auto", checkpoint, text) == "expected"
    reading = make_reading(checkpoint, "expected", V, text, Progress())
    dtype = precision(checkpoint)
    author = None if text else own_text.opened(checkpoint, dtype)
    runner = Runner.open(checkpoint, None if author is None else author.base_model, dtype)
    n = FITTED + HELD_OUT
    texts = windows(runner, words(), "", n, 0) if text else own(runner, author, V, n, 0, Progress())
    check_states_alone(folder, checkpoint, reading.tables)
    for layer in (0, 1):
        check_maps(checkpoint, runner, reading, texts, layer)
        assert {run_name(run) for run in readers(checkpoint, layer)} <= set(reading.reads)


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_what_is_effective_is_what_a_token_alone_does(name: str, tmp_path: Path) -> None:
    """Where a norm stands before the attention of layer 1, the scores of its readers are what they read of a token that
    is alone, but for the norm's bias.
    """
    folder = models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])
    checkpoint = Checkpoint.open(str(folder))
    assert reading_of("effective", checkpoint) == "effective"
    reading = make_reading(checkpoint, "effective", V, None, Progress())
    assert (reading.how, reading.maps, reading.reads, reading.text) == ("effective", {}, {}, None)
    check_states_alone(folder, checkpoint, reading.tables)
    gains = checkpoint.norms.beside("attn_query", (None, 1))
    for run in (*readers(checkpoint, 0), *readers(checkpoint)):
        beside = checkpoint.norms.beside(run.kind, run.place)
        rows = checkpoint.rows(run)
        wanted = checkpoint.fold(rows.double(), beside, "reads")
        assert torch.equal(reading.pulled(checkpoint, run, rows), wanted)
    if gains is None or ".1." not in gains:
        return  # no norm, or that of layer 0 at its end
    runner = Runner.open(checkpoint)
    alone = Texts(torch.arange(V)[:, None], 0, 0, "")
    given = given_to_modules(runner, alone)
    run = next(run for run in readers(checkpoint) if run.kind == "attn_query")
    rows = checkpoint.rows(run)
    (x,) = [x for module, x in given.items() if any(holds(p.detach(), rows) for p in module.parameters(recurse=False))]
    scores = reading.tables["reading"].double() @ reading.pulled(checkpoint, run, rows).T
    read = torch.from_numpy(x) @ rows.double().T
    assert (scores - scores.mean(0)).numpy() == pytest.approx((read - read.mean(0)).numpy(), abs=2e-3)


@pytest.mark.parametrize("name", [name for name in models.MAKERS if name.startswith(REFUSED)])
def test_what_cannot_be_run_is_read_by_its_embedding(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])))
    why = "its layers share their weights" if name.startswith("Albert") else "it is an encoder-decoder"
    for asked in ("expected", "effective"):
        for text in (None, Path("any")):
            with pytest.raises(BuildError, match=f"{why}.*; build it with --reading embedding"):
                reading_of(asked, checkpoint, text)
    with pytest.raises(BuildError, match=why):
        make_reading(checkpoint, "expected", V, None, Progress())
    assert reading_of("embedding", checkpoint) == "embedding"
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    assert reading_of("auto", checkpoint, None, progress) == "embedding"
    assert len(said) == 1
    assert f"its readers are read by its embedding, because {why}" in said[0]
