"""Fine-tuned classifiers: a model, and on top of it what turns the states of a text into a class.

Three forms are read: a folder of transformers' own with a head for sequence classification; a folder of a model with
``classifier.safetensors`` beside it; and a PEFT LoRA adapter with that file, over its base. The file holds one tensor,
``classifier`` (d, or classes x d), which reads the mean of a text's last hidden states: ``data/tune_reviews.py`` makes
one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.checkpoint import Checkpoint
from paramdex_builder.displacement import AdaptedFiles
from paramdex_builder.forward import Batch, Runner, load, read_tokenizer
from paramdex_builder.source import ADAPTER_CONFIG, locate, read_text
from paramdex_builder.tensors import TensorFiles, same_name
from paramdex_builder.vocabulary import read_vocabulary
from paramdex_schemas import BuildError, CheckpointError

CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class Labelled:
    """Texts, the class number of each (n), and the classes' names."""

    texts: list[str]
    classes: torch.Tensor
    names: list[str]

    @property
    def largest_share(self) -> float:
        """The share of the most frequent class: what is right by always saying the same."""
        return float(torch.bincount(self.classes).max() / len(self.classes))


@dataclass
class Classifier:
    """A runnable model and its classifier (classes x d), or None where the model has a head of its own."""

    runner: Runner
    weights: torch.Tensor | None

    @classmethod
    def open(cls, source: str, base: str | None = None) -> Classifier:
        """Open a fine-tuned classifier; an adapter over ``base``.

        Raises CheckpointError or FamilyError.
        """
        folder, _ = locate(source)
        if (folder / ADAPTER_CONFIG).is_file():
            if base is None:
                raise CheckpointError(f"{source} is an adapter; say with --base which model it was tuned from")
            checkpoint = Checkpoint.open(base)
            runner = Runner.open(checkpoint, adapted(source, folder, checkpoint))
            if (folder / "tokenizer_config.json").is_file():
                runner.tokenizer = _own_tokenizer(source, folder, checkpoint)
            return cls(runner, _weights(source, folder, checkpoint.d_model))
        checkpoint = Checkpoint.open(source)
        if (folder / CLASSIFIER).is_file():
            return cls(Runner.open(checkpoint), _weights(source, folder, checkpoint.d_model))
        built_as = getattr(checkpoint.config, "architectures", None) or [""]
        if not built_as[0].endswith("ForSequenceClassification"):
            raise CheckpointError(
                f"{source} is no classifier: it has neither a head for sequence classification nor {CLASSIFIER}"
            )
        runner = Runner.open(checkpoint, load(source, folder, "AutoModelForSequenceClassification"))
        config = runner.model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            # A decoder's head then takes the last token, but of one text at a time. No token has the id -1, so that
            # the last one that is no padding is the same, and several texts may be run at once.
            config.pad_token_id = -1
        return cls(runner, None)

    def on(self, runner: Runner) -> Classifier:
        """The classifier on top of another model of its width. Raises CheckpointError for a head of the model's own."""
        if self.weights is None:
            raise CheckpointError(f"{self.runner.checkpoint.source}: its classifier is part of it and fits no other")
        return Classifier(runner, self.weights)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Scores of the classes (batch x classes)."""
        output = self.runner.run(batch)
        if self.weights is None:
            return output.logits
        mask = batch.mask[:, :, None].to(torch.float32)
        return (output.last_hidden_state * mask).sum(1) / mask.sum(1) @ self.weights.T

    def n_classes(self) -> int:
        return int(self.runner.model.config.num_labels) if self.weights is None else len(self.weights)


def _own_tokenizer(source: str, folder: Path, base: Checkpoint) -> Any:
    """The tokenizer in the folder of an adapter. Raises CheckpointError where it has other tokens than the base's."""
    rows = len(base.embedding("input")[0])
    own, bases = (read_vocabulary(*each, rows).name for each in ((source, folder), (base.source, base.folder)))
    if own != bases:
        raise CheckpointError(
            f"{source}: its tokenizer has other tokens than that of {base.source}; without its tokenizer files, that "
            "of the base is used"
        )
    return read_tokenizer(source, folder)


def adapted(source: str, folder: Path, base: Checkpoint) -> Any:
    """transformers' model of ``base`` with an adapter's products added to its weights. Raises CheckpointError."""
    files = AdaptedFiles.open(source, folder, base)
    model = load(base.source, base.folder)
    parameters = dict(model.named_parameters())
    for name in {*files.factors, *files.replaced}:
        found = [each for each in parameters if same_name(each, name)]
        if len(found) != 1:
            raise CheckpointError(f"{source}: transformers' model of {base.source} has no {name}")
        with torch.no_grad():
            parameters[found[0]].copy_(files.tensor(name))
    return model


def _weights(source: str, folder: Path, d: int) -> torch.Tensor:
    """The classifier (classes x d, float32); one of a single vector, positive for the second class, as two rows.

    Raises CheckpointError.
    """
    files = TensorFiles.open(source, folder, (CLASSIFIER,))
    if files.names() != ["classifier"]:
        raise CheckpointError(f"{source}: {CLASSIFIER} holds {files.names()}, not the one tensor classifier")
    weights = files.tensor("classifier").float()
    if weights.ndim == 1:
        weights = torch.stack([torch.zeros_like(weights), weights])
    if weights.ndim != 2 or weights.shape[1] != d:
        raise CheckpointError(
            f"{source}: its classifier is {' x '.join(map(str, weights.shape))}, expected classes x {d}"
        )
    return weights


def read_labelled(path: Path, *, words: int | None = None, limit: int | None = None) -> Labelled:
    """Labelled texts of a file of JSON lines with ``text`` and ``label``, plain or compressed with xz.

    Of every text the last ``words`` words; of the texts ``limit``, as evenly over the file as can be. The classes are
    the labels in order. Raises BuildError where the file is none, or a line lacks something.
    """
    texts, labels = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            given, label = entry["text"], entry["label"]
        except (ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path}, line {number}: not a JSON object with text and label") from error
        if not isinstance(given, str) or not given.strip() or not isinstance(label, (str, int)):
            raise BuildError(f"{path}, line {number}: text must be a text that is not empty, label a name or a number")
        texts.append(" ".join(given.split()[-words:]) if words else given)
        labels.append(label)
    if limit is not None and limit < len(texts):
        chosen = [i * len(texts) // limit for i in range(limit)]
        texts, labels = [texts[i] for i in chosen], [labels[i] for i in chosen]
    return labelled(texts, labels, str(path))


def labelled(texts: Sequence[str], labels: Sequence[str | int], where: str) -> Labelled:
    """Labelled texts; the classes are the labels in order. Raises BuildError where there are not two."""
    names: list[Any] = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(names) < 2:
        raise BuildError(f"{where} has {len(names)} labels; a classifier is judged on texts of two or more")
    numbers = torch.tensor([names.index(label) for label in labels])
    return Labelled(list(texts), numbers, [str(name) for name in names])
