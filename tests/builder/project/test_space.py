"""Which embedding the scores belong to: the output embedding by default, the input embedding when asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_OPTIONS
from safetensors.torch import load_file

import oracle
import paramdex
from paramdex_builder import build
from paramdex_schemas import BuildError

INPUT = replace(SMALL_OPTIONS, space="input")


@pytest.mark.parametrize(("options", "name"), [(SMALL_OPTIONS, "lm_head.weight"), (INPUT, "model.embed_tokens.weight")])
def test_tokens_are_those_of_the_embedding(
    model_folders: dict[str, Path], tmp_path: Path, options: object, name: str
) -> None:
    folder = model_folders["llama-gqa"]
    atlas = paramdex.open(build([f"m={folder}"], tmp_path / "x.atlas", options))
    row = atlas.sql("SELECT embedding, tied, vocabulary_size FROM models").to_rows()[0]
    assert (row["embedding"], row["tied"]) == ("output" if name == "lm_head.weight" else "input", False)
    E = load_file(folder / "model.safetensors")[name].double().numpy()[: row["vocabulary_size"]]
    truth = oracle.read(folder)
    for idx in range(5):
        scores = E @ truth.vector("ff_value", 1, None, idx)
        tokens = atlas.sql(
            "SELECT token_id, score FROM parameter_tokens "
            "WHERE address = ? AND side = 'top' AND rank > 0 ORDER BY rank",
            [f"m/L1/ff_value/{idx}"],
        ).to_arrow()
        found = tokens["score"].to_numpy()
        oracle.assert_strongest(found, scores[tokens["token_id"].to_numpy()], scores, "top")
        np.testing.assert_allclose(found[0], scores.max(), rtol=1e-6)


def test_another_space_is_another_model(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source = f"m={model_folders['llama-gqa']}"
    build([source], tmp_path / "x.atlas", SMALL_OPTIONS)
    with pytest.raises(BuildError, match="already has a model m, built from other weights or with other options"):
        build([source], tmp_path / "x.atlas", INPUT)


def test_no_other_space(model_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="space is output or input, not 'middle'"):
        build([str(model_folders["bert"])], tmp_path / "x.atlas", replace(SMALL_OPTIONS, space="middle"))
