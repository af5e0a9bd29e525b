"""Fine-tuned classifiers: a model, and on top of it what turns the states of a text into a class.

Three forms are read: a folder of transformers' own with a head for sequence classification; a folder of a model with
``classifier.safetensors`` beside it; and a PEFT LoRA adapter with that file, over its base. The file holds one tensor,
``classifier`` (d, or classes x d), which reads the mean of a text's last hidden states: ``data/tune_reviews.py`` makes
one.

A head of transformers' own has its classes in the order of its config's ``id2label``. Where that gives no names but
LABEL_0, LABEL_1 ..., and beside a ``classifier.safetensors``, the order is that of the labels: numbers by their value,
then names by the alphabet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.read.adapter import AdaptedFiles
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.hub import ADAPTER_CONFIG, Origin
from paramdex_builder.read.source import locate, read_text, tokenizer_files
from paramdex_builder.read.tensors import TensorFiles, same_name
from paramdex_builder.read.tokenizer import load_tokenizer
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream.forward import Batch, Runner, load
from paramdex_schemas import BuildError, CheckpointError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import check_text
from paramdex_schemas.foreign import reading

CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class Labelled:
    """Texts, the label of each as a number (n, of its place among the names), and the labels' names: those that are
    whole numbers by their value, then the others by the alphabet.
    """

    texts: list[str]
    classes: torch.Tensor
    names: list[str]

    @property
    def largest_share(self) -> float:
        """The share of the most frequent label: the accuracy of always giving that label."""
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
        origin = locate(source)
        if origin.has(ADAPTER_CONFIG):
            if base is None:
                raise CheckpointError(f"{source} is an adapter; say with --base which model it was tuned from")
            checkpoint = Checkpoint.open(base)
            runner = Runner.open(checkpoint, adapted(origin, checkpoint))
            if origin.has("tokenizer_config.json"):
                origin.fetch(tokenizer_files(origin))
                runner.tokenizer = _own_tokenizer(source, origin.folder, checkpoint)
            return cls(runner, _weights(origin, checkpoint.d_model))
        checkpoint = Checkpoint.open(source)
        if origin.has(CLASSIFIER):
            return cls(Runner.open(checkpoint), _weights(origin, checkpoint.d_model))
        built_as = getattr(checkpoint.config, "architectures", None)
        first = str(built_as[0]) if isinstance(built_as, list) and built_as else ""
        if not first.endswith("ForSequenceClassification"):
            raise CheckpointError(
                f"{source} is not a classifier: it has neither a head for sequence classification nor {CLASSIFIER}"
            )
        runner = Runner.open(checkpoint, load(checkpoint, "AutoModelForSequenceClassification"))
        config = runner.model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            # A decoder's head then takes the last token, but for one text alone. No token has the id -1, so with
            # it the head takes the last token that is no padding, of several texts at once.
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
            logits: torch.Tensor = output.logits
            return logits
        states: torch.Tensor = output.last_hidden_state
        mask = batch.mask[:, :, None].to(torch.float32)
        return (states * mask).sum(1) / mask.sum(1) @ self.weights.T

    def n_classes(self) -> int:
        return int(self.runner.model.config.num_labels) if self.weights is None else len(self.weights)

    def class_names(self) -> dict[str, int]:
        """The class number of each name that the head's config gives to one; none where it gives only LABEL_0, LABEL_1
        ..., as transformers does by itself, or where the classifier is a file beside the model.
        """
        if self.weights is not None:
            return {}
        config = self.runner.model.config
        named = {str(name): number for number, name in config.id2label.items()}  # what transformers itself answers
        if named == _plain_names(self.n_classes()):
            named = {str(name): number for name, number in (config.label2id or {}).items() if number in config.id2label}
        return {} if named == _plain_names(self.n_classes()) else named

    def class_numbers(self, source: str, names: list[str]) -> list[int] | None:
        """The class number of each label: by the config's names, by LABEL_0, LABEL_1 ..., or, if they are 0 to n - 1,
        by themselves. None if nothing names the classes: then sorted order is the guess.

        Raises BuildError where the config's names are others, or there is another number of classes.
        """
        count, known = self.n_classes(), self.class_names()
        for given in (known, _plain_names(count)):
            if given.keys() >= set(names):
                return [given[name] for name in names]
        if names == [str(i) for i in range(count)]:
            return list(range(count))
        if known:
            raise BuildError(
                f"{source} has the classes {', '.join(known)}, but the texts have the labels {', '.join(names)}; "
                f"label them by its names or by all the numbers from 0 to {count - 1}, in its order"
            )
        if len(names) != count:
            raise BuildError(
                f"{source} has {count} classes, but the texts have {len(names)} labels: {', '.join(names)}"
            )
        return None


def _plain_names(count: int) -> dict[str, int]:
    """The default names that transformers gives to classes."""
    return {f"LABEL_{i}": i for i in range(count)}


def _own_tokenizer(source: str, folder: Path, base: Checkpoint) -> Any:
    """The tokenizer in the folder of an adapter. Raises CheckpointError where it has other tokens than the base's."""
    rows = len(base.embedding("input")[0])
    own, bases = (read_vocabulary(*each, rows).name for each in ((source, folder), (base.source, base.folder)))
    if own != bases:
        raise CheckpointError(
            f"{source}: its tokenizer has other tokens than that of {base.source}; "
            "remove its tokenizer files to use the base's"
        )
    return load_tokenizer(source, folder)


def adapted(origin: Origin, base: Checkpoint) -> Any:
    """transformers' model of ``base`` with an adapter's products added to its weights. Raises CheckpointError."""
    source, files = origin.source, AdaptedFiles.open(origin, base)
    model = load(base)
    parameters = dict(model.named_parameters())
    for name in {*files.factors, *files.replaced}:
        found = [each for each in parameters if same_name(each, name)]
        if len(found) != 1:
            raise CheckpointError(f"{source}: transformers' model of {base.source} has no {name}")
        with torch.no_grad():
            parameters[found[0]].copy_(files.tensor(name))
    return model


def _weights(origin: Origin, d: int) -> torch.Tensor:
    """The classifier (classes x d, float32); one of a single vector, positive for the second class, as two rows.

    Raises CheckpointError.
    """
    source, files = origin.source, TensorFiles.open(origin, (CLASSIFIER,))
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


def read_labelled(path: str | PathLike[str], *, words: int | None = None, limit: int | None = None) -> Labelled:
    """Labelled texts of a file of JSON lines with ``text`` and ``label``, plain or compressed with xz.

    Keeps the last ``words`` words of each text, and ``limit`` texts spread evenly over the file. A label is a name or a
    whole number. Raises BuildError if it is not such a file, or a line lacks something.
    """
    path = given_path(path, "the file of texts", BuildError)
    texts, labels = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        with reading(f"{where}:", BuildError, "not a JSON object with text and label"):
            entry = json.loads(line)
            given, label = entry["text"], entry["label"]
        if not isinstance(given, str) or not given.strip() or not isinstance(label, (str, int)):
            raise BuildError(f"{where}: text must be a text that is not empty, label a name or a number")
        for each in (given, str(label)):
            check_text(each, BuildError(f"{where}: {each[:60]!r} is not valid UTF-8 text"))
        texts.append(" ".join(given.split()[-words:]) if words else given)
        labels.append(str(label))
    if limit is not None and limit < len(texts):
        chosen = [i * len(texts) // limit for i in range(limit)]
        texts, labels = [texts[i] for i in chosen], [labels[i] for i in chosen]
    return labelled(texts, labels, str(path))


def labelled(texts: Sequence[str], labels: Sequence[str | int], where: str) -> Labelled:
    """Labelled texts; 1 and "1" are one label. Raises BuildError where there are not two labels."""
    written = [str(label) for label in labels]
    names = sorted(set(written), key=_by_value)
    if len(names) < 2:
        raise BuildError(f"{where} has {len(names)} labels; a classifier is judged on texts of two or more")
    numbers = torch.tensor([names.index(label) for label in written])
    return Labelled(list(texts), numbers, names)


def _by_value(label: str) -> tuple[bool, int, str]:
    """Orders labels: whole numbers by their value, then names by the alphabet.

    >>> sorted(["10", "b", "2", "a"], key=_by_value)
    ['2', '10', 'a', 'b']
    """
    number = re.fullmatch(r"-?[0-9]{1,18}", label)
    return number is None, int(label) if number else 0, label
