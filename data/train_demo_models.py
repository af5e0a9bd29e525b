"""Train the demo models in ``data/models/``: small GPT-2-shaped models that share one word-level vocabulary.

Three seeds of one architecture (the paper's MultiBERTs experiment in small) and one of another width. What the
text hardly uses is kept out of the vocabulary: an entry that is never trained keeps its initial embedding, and under
tied embeddings all such entries point one way and crowd every top list. So the vocabulary is word-level, lower-cased
and pruned by count in the *training* part; held-out documents are drawn at random over all sources.

    python data/train_demo_models.py --corpus FOLDER --out data/models            # all four
    python data/train_demo_models.py --corpus FOLDER --out data/models --only tiny-a tiny-b

FOLDER holds the texts that ``data/README.md`` names, each ``.txt``/``.jsonl``, plain or ``.xz``.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY_SIZE = 6144
CONTEXT = 128
BATCH = 32
EPOCHS = 3
PEAK_RATE = 2e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1
SPLIT_SEED = 0
HELD_OUT_SHARE = 0.02
UNKNOWN, END = "[UNK]", "[END]"

# name -> (seed, width, heads); four layers each, head width 32.
MODELS = {
    "tiny-a": (1, 128, 4),
    "tiny-b": (2, 128, 4),
    "tiny-c": (3, 128, 4),
    "tiny-wide": (4, 192, 6),
}
SOURCES = ["wikitext2.txt", "state_union.txt", "inaugural.txt", "tinyshakespeare.txt", "movie_reviews.jsonl"]


def read_source(folder: Path, name: str) -> str:
    """The text of one source, plain or xz-compressed."""
    for path in (folder / name, folder / f"{name}.xz"):
        if path.exists():
            raw = path.read_bytes()
            return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8")
    raise SystemExit(f"error: {folder} has neither {name} nor {name}.xz; data/README.md says where the texts come from")


def blocks(text: str, words: int = 500) -> list[str]:
    """Cut a long text at blank lines into blocks of at least ``words`` words."""
    out: list[str] = []
    current: list[str] = []
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        current.append(paragraph)
        count += len(paragraph.split())
        if count >= words:
            out.append("\n\n".join(current))
            current, count = [], 0
    if current:
        out.append("\n\n".join(current))
    return out


def documents(folder: Path) -> list[str]:
    """Every document of every source, in a fixed order."""
    out: list[str] = []
    for name in SOURCES:
        text = read_source(folder, name)
        if name.endswith(".jsonl"):
            out += [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
        else:
            out += blocks(text)
    return out


def make_tokenizer(texts: list[str]) -> tuple[PreTrainedTokenizerFast, int]:
    """A lower-cased word-level tokenizer over the most frequent words of ``texts``; also the rarest entry's count."""
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: VOCABULARY_SIZE - 2]
    vocabulary = {token: i for i, token in enumerate([UNKNOWN, END, *(word for word, _ in ranked)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, bos_token=END)
    return fast, ranked[-1][1]


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one stream of ids, each followed by END."""
    end = tokenizer.convert_tokens_to_ids(END)
    ids: list[int] = []
    for encoded in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += encoded.ids
        ids.append(end)
    return torch.tensor(ids)


def unigram_loss(train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Nats a token on ``held_out`` of the unigram distribution of ``train`` (add-one smoothed): the baseline."""
    counts = torch.bincount(train, minlength=VOCABULARY_SIZE).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, stream: torch.Tensor) -> float:
    """Nats a token over consecutive windows of the held-out stream."""
    model.eval()
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [float(model(input_ids=w, labels=w).loss) * len(w) for w in windows.split(BATCH)]
    model.train()
    return sum(losses) / len(windows)


def train(
    name: str, tokenizer: PreTrainedTokenizerFast, streams: tuple[torch.Tensor, torch.Tensor], out: Path, facts: dict
) -> None:
    """Train one model and write it, in float16, with its log beside it."""
    seed, width, heads = MODELS[name]
    stream, held_out = streams
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=4,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one fused kernel
        attn_implementation="eager",  # at 128 positions faster on a CPU than the flash kernel's backward pass
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    steps_an_epoch = (len(stream) - CONTEXT) // (BATCH * CONTEXT)
    steps = EPOCHS * steps_an_epoch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    held_out = held_out.to(device)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    step = 0
    with (folder / "training.jsonl").open("w") as log:
        log.write(
            json.dumps({"model": name, "seed": seed, "width": width, "heads": heads, "steps": steps, **facts}) + "\n"
        )
        for _ in range(EPOCHS):
            # A random offset each epoch, so that windows do not always begin at the same words.
            offset = int(torch.randint(CONTEXT, ()))
            n = (len(stream) - offset) // CONTEXT
            windows = stream[offset : offset + n * CONTEXT].view(n, CONTEXT)[torch.randperm(n)]
            for windows_of_step in windows[: steps_an_epoch * BATCH].split(BATCH):
                if len(windows_of_step) < BATCH:
                    continue
                cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * cosine)
                batch = windows_of_step.to(device)
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = model(input_ids=batch, labels=batch).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if step % 100 == 0:
                    entry = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - started, 1)}
                    if step % 500 == 0:
                        entry["held_out_loss"] = round(held_out_loss(model, held_out), 4)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    left = (time.time() - started) / (step + 1) * (steps - step - 1)
                    print(f"{name} {entry} of {steps} steps, {left / 60:.0f} min left", file=sys.stderr, flush=True)
                step += 1
        final = {
            "step": step,
            "held_out_loss": round(held_out_loss(model, held_out), 4),
            "unigram_loss": facts["unigram_loss"],
            "seconds": round(time.time() - started, 1),
        }
        log.write(json.dumps(final) + "\n")
    model.to("cpu").to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{name}: {final}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the texts that data/README.md names")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the models to")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="train these alone")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    texts = documents(args.corpus)
    random.Random(SPLIT_SEED).shuffle(texts)
    cut = int(len(texts) * HELD_OUT_SHARE)
    held_out, training = texts[:cut], texts[cut:]
    tokenizer, rarest = make_tokenizer(training)
    streams = encode(tokenizer, training), encode(tokenizer, held_out)
    facts = {
        "documents": len(training),
        "held_out_documents": len(held_out),
        "tokens": len(streams[0]),
        "held_out_tokens": len(streams[1]),
        "rarest_entry_count": rarest,
        "unknown_share": round(float((streams[0] == 0).double().mean()), 4),
        "unigram_loss": round(unigram_loss(*streams), 4),
        "epochs": EPOCHS,
        "batch": BATCH,
        "context": CONTEXT,
        "peak_rate": PEAK_RATE,
        "torch": torch.__version__,
    }
    print(facts, file=sys.stderr)
    for name in args.only:
        train(name, tokenizer, streams, args.out, facts)


if __name__ == "__main__":
    main()
