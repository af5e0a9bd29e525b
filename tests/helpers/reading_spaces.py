"""An atlas whose readers have spaces of their own, and the brute force for it.

    tied        GPT-2, three layers, one embedding       expected: output, reading
    untied      the Llama layout, two embeddings         expected: output, input, reading
    effective   the weights of tied                      effective: output, reading
    plain       the weights of tied                      embedding: output

What leaves layer 0 is the running model's own; the maps are the atlas's, since their fit is tested with the builder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL_OPTIONS, _shared
from safetensors.numpy import load_file

import models
import oracle
from paramdex_builder import build
from query_helpers import Everything

FOLDERS = {"tied": "gpt2", "untied": "llama", "effective": "gpt2", "plain": "gpt2"}
READINGS = {"tied": "expected", "untied": "expected", "effective": "effective", "plain": "embedding"}
PLACES = {"attn": ["attn_query", "attn_key", "attn_value"], "ff": ["ff_key", "ff_gate"]}
"""A place of a layer -> the kinds that read there."""
READERS = {kind: kind for kinds in PLACES.values() for kind in kinds}
READERS |= {"attn_query_bias": "attn_key", "attn_key_bias": "attn_query"}
"""A kind that reads -> the kind that reads the same."""
_GAINS = {"attn": "transformer.h.{}.ln_1.weight", "ff": "transformer.h.{}.ln_2.weight"}


@pytest.fixture(scope="session")
def reading_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> its folder."""

    def make(part: Path) -> None:
        models.save_word_model(part / "gpt2", 1, partial(models.gpt2, layers=3))
        models.save_word_model(part / "llama", 2, partial(models.llama, head_dim=8))

    root = _shared(tmp_path_factory, "reading-models", make)
    return {model: root / folder for model, folder in FOLDERS.items()}


@pytest.fixture(scope="session")
def reading_atlas(tmp_path_factory: pytest.TempPathFactory, reading_folders: dict[str, Path]) -> Path:
    """The atlas of all four. Read-only by agreement."""

    def make(part: Path) -> None:
        for reading in dict.fromkeys(READINGS.values()):
            sources = [f"{model}={reading_folders[model]}" for model in FOLDERS if READINGS[model] == reading]
            build(sources, part / "reading.atlas", replace(SMALL_OPTIONS, reading=reading))

    return _shared(tmp_path_factory, "reading", make) / "reading.atlas"


@dataclass
class Spaced:
    """One of the models: its spaces (V x d each, float64), the maps and gains of its places (d x d, d), and all its
    parameters with all their scores, each in its own space.
    """

    truth: oracle.Truth
    X: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    gains: dict[tuple[str, int], np.ndarray]
    name: str

    def scores(self, kind: str, layer: int | None, w: np.ndarray) -> np.ndarray:
        """The V scores of a vector of a kind in its own space."""
        if kind not in READERS or "reading" not in self.X:
            return self.X["output"] @ w
        if not layer:
            return self.X.get("input", self.X["output"]) @ w
        return self.X["reading"] @ self.pulled(READERS[kind], layer, w)

    def pulled(self, kind: str, layer: int, w: np.ndarray) -> np.ndarray:
        """r of what reads as a kind does in a layer from 1 on."""
        for name, A in self.maps.items():
            kinds, _, number = name.partition("/")
            if number == str(layer) and kind in kinds.split("+"):
                return A.astype(np.float64) @ w
        return self.gains[next(place for place, kinds in PLACES.items() if kind in kinds), layer] * w

    @property
    def whole(self) -> Everything:
        rows = list(self.truth.parameters())
        addresses = [oracle.address(self.name, *row[:4]) for row in rows]
        scores = np.array([self.scores(kind, layer, w) for kind, layer, _, _, w in rows])
        return Everything(self.name, addresses, [row[0] for row in rows], [row[1] for row in rows], scores)


@pytest.fixture(scope="session")
def spaced(reading_atlas: Path, reading_folders: dict[str, Path]) -> dict[str, Spaced]:
    """Model -> its brute force."""
    return {name: _spaced(name, folder, reading_atlas / "models" / name) for name, folder in reading_folders.items()}


def _spaced(name: str, folder: Path, files: Path) -> Spaced:
    truth = oracle.read(folder)
    tensors = load_file(folder / "model.safetensors")
    X, gains = {"output": truth.E}, {}
    if READINGS[name] != "embedding":
        if FOLDERS[name] == "llama":
            X["input"] = tensors["model.embed_tokens.weight"].astype(np.float64)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            states = model(torch.arange(len(truth.E))[:, None], output_hidden_states=True).hidden_states[1][:, 0]
        Z = states.double().numpy()
        Z = Z if FOLDERS[name] == "llama" else Z - Z.mean(axis=1, keepdims=True)
        X["reading"] = Z / np.sqrt((Z**2).mean(axis=1, keepdims=True))
    if FOLDERS[name] == "gpt2":
        for layer in range(truth.n_layers):
            gains |= {(place, layer): tensors[gain.format(layer)].astype(np.float64) for place, gain in _GAINS.items()}
    maps = load_file(files / "maps.safetensors") if READINGS[name] == "expected" else {}
    return Spaced(truth, X, maps, gains, name)
