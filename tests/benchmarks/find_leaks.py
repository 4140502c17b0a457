"""How fast text of validation sets is found in training text, beside tokenising it, and the memory.

    python -m tests.benchmarks.find_leaks [megabytes]

Random words stand for text. Every thousandth document holds a passage of a set.
"""

import random
import resource
import sys
import time
from collections.abc import Iterator

import tokenizers

from training.data import leaks

SET_MEGABYTES, BATCH = 50, 1_000  # documents read at once
WORDS, LENGTH, EVERY = 50_000, 400, 1_000
TOKENISED = 20  # megabytes


def vocabulary(rng: random.Random) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    return ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(WORDS)]


def batches(rng: random.Random, words: list[str], megabytes: float) -> Iterator[list[str]]:
    left = megabytes * 1e6
    while left > 0:
        texts = [" ".join(rng.choices(words, k=LENGTH)) for _ in range(BATCH)]
        left -= sum(map(len, texts))
        yield texts


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1000.0
    rng = random.Random(0)
    words = vocabulary(rng)
    held = next(batches(rng, words, 1))
    began = time.process_time()
    texts_of_set = (held, *batches(rng, words, SET_MEGABYTES))
    index = leaks.Index(("set", texts) for texts in texts_of_set)
    print(f"index of {SET_MEGABYTES} MB: {time.process_time() - began:.1f} CPU s, made too")
    read, found, planted, seconds = 0, 0, 0, 0.0
    for texts in batches(rng, words, megabytes):
        texts[::EVERY] = [f"{text} {rng.choice(held)[100:300]}" for text in texts[::EVERY]]
        planted += len(texts[::EVERY])
        began = time.process_time()
        found += sum(map(bool, index.find(texts)))
        seconds += time.process_time() - began
        read += sum(map(len, texts))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"searched {read / 1e6:,.0f} MB: {read / 1e6 / seconds:.1f} MB per CPU second")
    print(f"found {found} of {planted} documents; largest memory {memory:.2f} GB")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [text for batch in batches(rng, words, TOKENISED) for text in batch]
    bpe.train_from_iterator(texts[:2000], tokenizers.trainers.BpeTrainer(vocab_size=8192))
    began = time.process_time()
    bpe.encode_batch_fast(texts)
    speed = sum(map(len, texts)) / 1e6 / (time.process_time() - began)
    print(f"tokenising {TOKENISED} MB: {speed:.1f} MB per CPU second")


if __name__ == "__main__":
    main()
