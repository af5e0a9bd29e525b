"""Forward passes: a transformers model over texts, with its residual stream read, or replaced, between two blocks.

Blocks are found by the names that the family file gives them, and everything is done by hooks on them, so that any
model of transformers that is one stack of blocks can be run, whatever happens inside a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import typed_config
from paramdex_builder.read.tensors import same_name
from paramdex_builder.read.tokenizer import load_tokenizer
from paramdex_schemas import BuildError, CheckpointError, FamilyError
from paramdex_schemas.foreign import reading

LONGEST = 512
"""The most tokens of a text that are read."""
_POOLER = re.compile(r"(^|\.)pooler\.")


@dataclass(frozen=True)
class Batch:
    """Token ids and mask (both batch x length); a text ends before its padding, where the mask is 0."""

    ids: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """The states (batch x length x d) of tokens that are no padding (n x d)."""
        return states[self.mask.bool()]


@dataclass
class Runner:
    """A model of transformers on the CPU, its blocks first to last, and its tokenizer."""

    checkpoint: Checkpoint
    model: Any
    blocks: list[torch.nn.Module]
    tokenizer: Any

    @classmethod
    def open(cls, checkpoint: Checkpoint, model: Any = None, dtype: torch.dtype = torch.float32) -> Runner:
        """Run an opened checkpoint, in ``dtype``; or ``model``, which has its architecture.

        Raises CheckpointError where transformers cannot load it, FamilyError where it is not a single stack of blocks.
        """
        checkpoint.names.blocks()  # before it is loaded
        model = load(checkpoint, dtype=dtype) if model is None else model
        blocks = blocks_of(checkpoint, model)
        return cls(checkpoint, model.eval(), blocks, load_tokenizer(checkpoint.source, checkpoint.folder))

    @property
    def longest(self) -> int:
        """The tokens of a text that the model can read, LONGEST at most."""
        positions = [run.n_rows for run in self.checkpoint.layout.of("position")]
        config = self.checkpoint.config
        limits = [*positions, getattr(config, "max_position_embeddings", None), getattr(config, "max_seq_len", None)]
        limit = next((each for each in limits if isinstance(each, int)), LONGEST)
        own = self.tokenizer.model_max_length
        return min(LONGEST, limit, int(own) if isinstance(own, (int, float)) and own >= 1 else LONGEST)

    def batches(self, texts: Sequence[str], longest: int, size: int) -> Iterator[tuple[list[int], Batch]]:
        """(numbers of the texts, their tokens) in batches of at most ``size`` texts of one length, so that nothing is
        padded and every text is run as if alone. Raises BuildError for a text without tokens.
        """
        ids = self.tokens(texts, longest)
        by_length: dict[int, list[int]] = {}
        for i, each in enumerate(ids):
            if not each:
                source = self.checkpoint.source
                raise BuildError(f"{source}: its tokenizer finds no tokens in a text; leave it out: {texts[i][:60]!r}")
            by_length.setdefault(len(each), []).append(i)
        for _, numbers in sorted(by_length.items()):
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size]
                yield chosen, self.batch([ids[i] for i in chosen])

    def tokens(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Ids of the first ``longest`` tokens of every text. Raises as ``encode``."""
        return self.encode(list(texts), max_length=longest)

    def encode(self, text: str | list[str], **options: Any) -> list[list[int]]:
        """Ids as the tokenizer gives them with truncation and some ``options``.

        Raises CheckpointError where it fails, BuildError for a text with a token that the embedding has no row for.
        """
        source = self.checkpoint.source
        with reading(source, CheckpointError, "has a tokenizer that cannot read a text"):
            ids: list[list[int]] = self.tokenizer(text, truncation=True, **options)["input_ids"]
        rows = self.n_rows
        past = next((i for each in ids for i in each if i >= rows), None)
        if past is not None:
            token = self.tokenizer.convert_ids_to_tokens(past)
            raise BuildError(f"{source}: a text has {token!r}, a token that the embedding has no row for; leave it out")
        return ids

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids of special tokens that the tokenizer puts before and after any text."""
        (ids,) = self.encode(["a"])
        (bare,) = self.encode(["a"], add_special_tokens=False)
        start = next((i for i in range(len(ids)) if ids[i : i + len(bare)] == bare), 0)
        return ids[:start], ids[start + len(bare) :]

    @property
    def n_rows(self) -> int:
        """Rows of the embedding that the model reads; a tokenizer may have added tokens past them."""
        return len(self.model.get_input_embeddings().weight)

    def batch(self, ids: list[list[int]]) -> Batch:
        """Sequences of ids, padded at the end."""
        length = max(map(len, ids))
        pad = self.pad_id
        padded = [[*each, *[pad] * (length - len(each))] for each in ids]
        mask = [[1] * len(each) + [0] * (length - len(each)) for each in ids]
        return Batch(torch.tensor(padded), torch.tensor(mask))

    @property
    def pad_id(self) -> int:
        """The token used as padding; it is masked, so any will do."""
        found = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((each for each in found if each is not None and each < self.n_rows), 0)

    def final_norm(self) -> torch.nn.Module | None:
        """The norm between the last block and the output embedding; None where there is none beside the blocks' own."""
        name = self.checkpoint.norms.final()
        if name is None:
            return None
        inside = {id(module) for block in self.blocks for module in block.modules()}
        found = [
            module
            for path, module in self.model.named_modules()
            if path and same_name(f"{path}.weight", name) and id(module) not in inside
        ]
        return found[0] if found else None

    @cached_property
    def gives_tuples(self) -> bool:
        """Whether a block returns a tuple, not the state alone."""
        seen: list[Any] = []
        hook = self.blocks[0].register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            self.run(self.batch([[0, 0]]))
        finally:
            hook.remove()
        return isinstance(seen[0], (tuple, list))

    @torch.no_grad()
    def run(self, batch: Batch) -> Any:
        """transformers' own output."""
        return self.model(**batch.inputs)

    def states(self, batch: Batch) -> list[torch.Tensor]:
        """The residual stream (batch x length x d each) before every block, and last that after the last block, which
        no final norm has touched.
        """
        with watched(self.blocks) as seen:
            self.run(batch)
        return seen


def blocks_of(checkpoint: Checkpoint, model: Any) -> list[torch.nn.Module]:
    """The blocks of transformers' model of a checkpoint. Raises FamilyError where it is not a single stack of them."""
    names = checkpoint.names.blocks()
    modules = dict(model.named_modules())
    starts = [name.removesuffix(names[0]) for name in modules if f".{name}".endswith(f".{names[0]}")]
    if len(starts) != 1 or any(starts[0] + name not in modules for name in names):
        raise FamilyError(f"{checkpoint.source}: transformers' model has no blocks {names[0]} to {names[-1]}")
    return [modules[starts[0] + name] for name in names]


@contextmanager
def watched(blocks: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """A list that, once the model has run, holds what entered every block and what left the last."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.append(entering(args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    hooks.append(blocks[-1].register_forward_hook(lambda _, __, output: seen.append(leaving(output))))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced(runner: Runner, layer: int, states: torch.Tensor) -> Iterator[None]:
    """While it is open, ``states`` (batch x length x d) enter block number ``layer`` in place of its own input; or,
    where that is the number of blocks, they leave the last one. The blocks before do nothing, which saves their time.
    """
    blocks, as_tuple = runner.blocks, runner.gives_tuples

    def idle(*args: Any, **kwargs: Any) -> Any:
        state = entering(args, kwargs)
        return (state, None) if as_tuple else state

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    def leave(_: Any, __: Any, output: Any) -> Any:
        return (states, *output[1:]) if isinstance(output, (tuple, list)) else states

    if layer < len(blocks):
        hook = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
    else:
        hook = blocks[-1].register_forward_hook(leave)
    for block in blocks[:layer]:
        block.forward = idle  # hides the method of its class
    try:
        yield
    finally:
        hook.remove()
        for block in blocks[:layer]:
            del block.forward


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The state that a block is given, of the arguments of its call."""
    state: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return state.detach()


def leaving(output: Any) -> torch.Tensor:
    """The state that a block gives, of what its call returns."""
    state: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return state.detach()


def load(checkpoint: Checkpoint, auto: str = "AutoModel", dtype: torch.dtype = torch.float32) -> Any:
    """The model of an opened checkpoint as one of transformers' auto classes gives it, in float32 or float64.

    Raises CheckpointError where transformers cannot load it, or would read other tensors.
    """
    import transformers

    checkpoint.files.check_copies()
    config = typed_config(checkpoint.source, checkpoint.folder)
    config._attn_implementation = None  # transformers' own, not code of the hub that a config may name  # noqa: SLF001
    with reading(checkpoint.source, CheckpointError, "cannot be loaded by transformers"), quiet():
        cls = getattr(transformers, auto)
        model, info = cls.from_pretrained(
            checkpoint.folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    # transformers draws what it does not find at random. A pooler may be missing: without a head nothing reads it.
    drawn = {name for name in info["missing_keys"] if auto != "AutoModel" or not _POOLER.search(name)}
    if checkpoint.embeddings.of_head:  # a model without its head does not read what has the head's name
        table = model.get_input_embeddings().weight
        drawn -= {name for name, each in model.named_parameters() if each is table}
        with torch.no_grad():
            table.copy_(checkpoint.files.tensor(checkpoint.embeddings.entry))
    if drawn:
        more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        raise CheckpointError(f"{checkpoint.source}: transformers does not find {min(drawn)}{more} in its weights")
    model.config.use_cache = False
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and its reports of tensors that a model without its head does not need."""
    import transformers

    logging: Any = transformers.logging  # most of its functions have no types
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
