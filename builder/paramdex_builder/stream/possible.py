"""Which models can be run, to find what their layers read, and what is in the way where one cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import knows, typed_config
from paramdex_builder.stream.forward import Runner, blocks_of, quiet
from paramdex_builder.stream.own_text import is_causal
from paramdex_builder.stream.space import READERS, taps
from paramdex_schemas import KINDS, CheckpointError, FamilyError
from paramdex_schemas.foreign import reading

EMBEDDING = "build it with --reading embedding, which runs nothing"
_TEXT = "give some with --text FILE, or build it with --reading effective or embedding"


@dataclass(frozen=True)
class Obstacle:
    """Why a model cannot be read so, and what to do instead; whether that goes without saying for such a model."""

    why: str
    instead: str = EMBEDDING
    expected: bool = False


def obstacle(checkpoint: Checkpoint, how: str, has_text: bool) -> Obstacle | None:
    """What is in the way of reading a model so (expected or effective), with a text to fit it on or without; None where
    nothing is known. Of the weights nothing is read.
    """
    if checkpoint.layout.stacks:
        return Obstacle("it is an encoder-decoder, or a part of one, and only models of one stack are run")
    if not knows(checkpoint.model_type):
        return Obstacle(f"transformers knows no models of type {checkpoint.model_type}, and so cannot run it")
    try:
        missing = _without_module(checkpoint)
    except (CheckpointError, FamilyError) as error:
        return Obstacle(str(error).removeprefix(f"{checkpoint.source}: "))
    if how == "effective":
        if checkpoint.inferred:
            return Obstacle("no family file lists its type, so that the norms before its readers are not known")
        return None
    if missing is not None:
        instead = "build it with --reading effective or embedding"
        return Obstacle(
            f"transformers' model has no module of its own for {missing}, whose input could be read", instead
        )
    if has_text:
        return None
    if not is_causal(checkpoint):
        return Obstacle("it is no causal model, and writes no text", _TEXT, expected=True)
    if not _has_head(checkpoint):
        return Obstacle("its weights have no head by transformers' name, and so it writes no text", _TEXT)
    return None


def _has_head(checkpoint: Checkpoint) -> bool:
    """Whether transformers finds the head of a causal model: as the input embedding, or by a name that it knows."""
    embeddings = checkpoint.embeddings
    try:
        name, which, _ = embeddings.choose("output")
    except CheckpointError:  # which tensor it is cannot be told
        return False
    known = any(f".{name}".endswith(f".{each}") for each in checkpoint.family.output_embeddings)
    return embeddings.tied or (which == "output" and known)


def _without_module(checkpoint: Checkpoint) -> str | None:
    """A kind and layer that reads, for which transformers' model has no module; None where all have one.

    Raises CheckpointError where transformers cannot make such a model, FamilyError where it is no stack of blocks.
    """
    model = _skeleton(checkpoint)
    modules = taps(Runner(checkpoint, model, blocks_of(checkpoint, model), None), READERS)
    for run in checkpoint.layout.runs:
        reads = KINDS[run.kind].role == "reads" and KINDS[run.kind].form == "weight"
        if reads and run.layer is not None and (run.kind, run.layer) not in modules:
            return f"{run.kind} of layer {run.layer}"
    return None


def _skeleton(checkpoint: Checkpoint) -> Any:
    """transformers' model of a checkpoint without its weights."""
    import transformers

    config = typed_config(checkpoint.source, checkpoint.folder)
    config._attn_implementation = None  # as where it is loaded  # noqa: SLF001
    with reading(checkpoint.source, CheckpointError, "cannot be made by transformers"), quiet(), torch.device("meta"):
        auto: Any = transformers.AutoModel  # its functions have no types
        return auto.from_config(config, trust_remote_code=False)
