"""Stitch the demo models to ones of them tuned on film reviews, as Dar et al. stitch GPT-2: no training in between.

A demo model is tuned on film reviews with several seeds: its last layers, and a bias-free classifier on the mean of its
last hidden states. Then the first layers of another demo model, the kernel E_A E_B^+, and the last layers and
classifier of each tuned model judge the held-out reviews, at every stitch point: any number of first layers, and of
last ones none to all that were tuned. Beside it stand the tuned models by themselves, their base under their
classifier, and what a classifier alone reaches that is trained on the other model.

    python data/stitch_reviews.py --corpus FOLDER                       # prints the tables, draws docs/stitch.png
    python data/stitch_reviews.py --corpus FOLDER --tune tiny-c --onto tiny-wide --seeds 3 --state scaled

FOLDER holds ``movie_reviews.jsonl``, plain or ``.xz``, as ``data/README.md`` tells. Tuned models go to ``--work``, by
default a temporary folder; those that stand there already are not tuned again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import tune_reviews
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import logging as transformers_logging

from paramdex.measures import stitching
from paramdex_builder import StitchOptions, TerminalProgress, stitch
from paramdex_builder.measure.classifier import Classifier, labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Batch, Runner

MODELS = Path(__file__).parent / "models"
WORDS = 120
"""Of a review the last words: the demo models read 128 tokens."""
LAST = 3
"""Layers that are tuned, as in the paper (of 12 there, of 4 here)."""
BATCH = 16
EPOCHS = 2
RATE = 5e-4
CLASSIFIER_RATE = 1e-2
WARMUP_SHARE = 0.1

Reviews = list[tuple[str, int]]


def shuffled(runner: Runner, reviews: Reviews) -> Iterator[tuple[Batch, torch.Tensor]]:
    """The reviews once in random order, in batches, with their labels."""
    order = torch.randperm(len(reviews)).tolist()
    ids = runner.tokenizer([text for text, _ in reviews], truncation=True, max_length=runner.longest)["input_ids"]
    for start in range(0, len(order) // BATCH * BATCH, BATCH):
        chosen = order[start : start + BATCH]
        yield runner.batch([ids[i] for i in chosen]), torch.tensor([reviews[i][1] for i in chosen]).float()


def mean_state(runner: Runner, batch: Batch) -> torch.Tensor:
    """The mean of the last hidden states of each text (batch x d)."""
    mask = batch.mask[:, :, None].float()
    return (runner.model(**batch.inputs).last_hidden_state * mask).sum(1) / mask.sum(1)


def tune(base: Path, seed: int, reviews: Reviews, layers: int) -> tuple[Runner, torch.Tensor]:
    """The model with its last ``layers`` layers tuned, and its classifier (d); with none, the classifier alone."""
    torch.manual_seed(seed)
    runner = Runner.open(Checkpoint.open(str(base)))
    runner.model.requires_grad_(requires_grad=False)
    tuned = [p for block in runner.blocks[len(runner.blocks) - layers :] for p in block.parameters()]
    for parameter in tuned:
        parameter.requires_grad_()
    classifier = torch.nn.Parameter(torch.zeros(runner.checkpoint.d_model))
    groups = [{"params": tuned, "lr": RATE}] if tuned else []
    optimizer = torch.optim.AdamW([*groups, {"params": [classifier], "lr": CLASSIFIER_RATE}])
    steps = EPOCHS * (len(reviews) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP_SHARE * steps), (steps - step) / (steps * (1 - WARMUP_SHARE)))
    )
    for _ in range(EPOCHS):
        for batch, labels in shuffled(runner, reviews):
            loss = binary_cross_entropy_with_logits(mean_state(runner, batch) @ classifier, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*tuned, classifier], 1.0)
            optimizer.step()
            schedule.step()
    return runner, classifier.detach()


def tuned_folder(base: Path, seed: int, reviews: Reviews, layers: int, work: Path) -> Path:
    """A folder of the tuned model with its tokenizer and classifier; made where it is not there."""
    out = work / f"{base.name}-{layers}-{seed}"
    if not (out / "classifier.safetensors").exists():
        started = time.time()
        runner, classifier = tune(base, seed, reviews, layers)
        runner.model.save_pretrained(out)
        runner.tokenizer.save_pretrained(out)
        seconds = round(time.time() - started, 1)
        (out / "training.jsonl").write_text(json.dumps({"seed": seed, "layers": layers, "seconds": seconds}) + "\n")
        save_file({"classifier": classifier}, out / "classifier.safetensors")  # last: what has it is whole
        print(f"{out.name}: tuned in {seconds} s", file=sys.stderr, flush=True)
    return out


def accuracy(classifier: Classifier, held_out: Reviews) -> float:
    """The share of reviews that are judged right."""
    right = 0
    for numbers, batch in classifier.runner.batches([text for text, _ in held_out], classifier.runner.longest, BATCH):
        truth = torch.tensor([held_out[i][1] for i in numbers])
        right += int((classifier.logits(batch).argmax(1) == truth).sum())
    return right / len(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of movie_reviews.jsonl, plain or .xz")
    parser.add_argument("--tune", default="tiny-a", help="the demo model whose last layers are tuned")
    parser.add_argument("--onto", nargs="+", default=["tiny-b"], help="whose first layers to take")
    parser.add_argument("--seeds", type=int, default=5, help="how many times it is tuned (the paper: 11)")
    parser.add_argument("--layers", type=int, default=LAST, help="last layers that are tuned")
    parser.add_argument("--state", nargs="+", default=["raw", "scaled"], help="as in paramdex stitch")
    parser.add_argument("--work", type=Path, help="folder for tuned models, kept (default: a temporary one)")
    parser.add_argument("--plot", type=Path, default=Path("docs/stitch.png"), help="the picture of the first table")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds otherwise")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    tune_reviews.WORDS = WORDS
    training, held_out = tune_reviews.read_reviews(args.corpus)
    labels = [("neg", "pos")[label] for _, label in held_out]
    texts = labelled([text for text, _ in held_out], labels, "the held-out reviews")
    base = MODELS / args.tune
    started = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        tuned = [str(tuned_folder(base, seed, training, args.layers, work)) for seed in range(args.seeds)]
        print(f"# {args.tune}: last {args.layers} layers tuned on {len(training)} reviews, seeds 0 to {args.seeds - 1}")
        for name in dict.fromkeys([args.tune, *args.onto]):
            alone = Classifier.open(str(tuned_folder(MODELS / name, 0, training, 0, work)))
            print(f"# {name}, pre-trained, under a classifier trained on it: {accuracy(alone, held_out):.3f}")
        # What stands before the tuned layers is the same in every tuned model, so they are kept from there on.
        lasts = tuple(range(args.layers + 1))
        for onto, state in itertools.product(args.onto, args.state):
            began = time.time()
            options = StitchOptions(lasts, state, base=str(base))
            result = stitching(stitch(str(MODELS / onto), tuned, texts, options, TerminalProgress()))
            if (onto, state) == (args.onto[0], args.state[0]):
                print(f"# {result.plot(args.plot)}")
            print(f"\n{result}\n# {time.time() - began:.0f} s", flush=True)
    print(f"\n# {time.time() - started:.0f} s in all, threads: {args.threads}")


if __name__ == "__main__":
    main()
