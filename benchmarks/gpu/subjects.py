"""Time our backend, and sentence-transformers in two ways, on the same token ids.

Each rate includes:
    packed   token ids in host memory → layout, copy to the device, model, pooling, copy back, rows in order,
             with as many batches in flight as the worker thread has. No tokenizer.
    encode   `SentenceTransformer.encode`: a tokenizer of one look-up per word, and all of the above.
    forward  sentence-transformers' modules alone, on padded batches that are on the device already; rows stay
             there. No tokenizer and no copies: an upper bound for anything built around these modules.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.gpu.models import make_random_ids, to_batch
from infinity_emb.backends.base import InFlightBatch
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.items import Encoded, TokenIds


@dataclass(frozen=True, slots=True)
class Subject:
    """Embed a fixed set of texts, to be timed."""

    setting: int  # tokens or texts per batch
    num_tokens: int
    run: Callable[[], None]

    def rate(self, device: torch.device) -> float:
        """Run once and return tokens per second."""
        return self.num_tokens / time_run(self.run, device)


_MIN_BATCHES = 4
_MAX_DISTINCT_BATCHES = 8  # enough that no cache holds them all
_MAX_ENCODED_TOKENS = 200_000


def make_packed_subject(
    backend: TorchBackend, lengths: Sequence[int], batch_tokens: int, num_tokens: int
) -> Subject:
    """Run our backend as the worker thread does."""
    sequence_lengths = take_tokens(lengths, batch_tokens)
    num_batches = max(_MIN_BATCHES, num_tokens // sum(sequence_lengths))
    distinct = [
        to_batch([make_random_ids(length) for length in sequence_lengths])
        for _ in range(min(num_batches, _MAX_DISTINCT_BATCHES))
    ]
    batches = [distinct[number % len(distinct)] for number in range(num_batches)]
    return Subject(batch_tokens, num_batches * sum(sequence_lengths), lambda: pump(backend, batches))


def pump(backend: TorchBackend, batches: Sequence[list[Encoded]]) -> None:
    """Launch the next batch before collecting the one before, as many in flight as the backend allows."""
    in_flight: deque[InFlightBatch] = deque()
    for batch in batches:
        in_flight.append(backend.launch(batch))
        if len(in_flight) >= backend.num_in_flight:
            in_flight.popleft().result()
    while in_flight:
        in_flight.popleft().result()


def make_encode_subject(
    model: SentenceTransformer, lengths: Sequence[int], batch_size: int, num_tokens: int
) -> Subject:
    """Call sentence-transformers as its users do."""
    batch_tokens = batch_size * sum(lengths) // len(lengths)
    wanted = max(2 * batch_tokens, min(num_tokens, _MAX_ENCODED_TOKENS))
    sequences = [make_random_ids(length) for length in take_tokens(lengths, wanted)]
    texts = [" ".join(f"w{token_id}" for token_id in sequence) for sequence in sequences]

    def encode() -> None:
        model.encode(texts, batch_size=batch_size, show_progress_bar=False)

    return Subject(batch_size, sum(len(sequence) for sequence in sequences), encode)


def make_forward_subject(
    model: SentenceTransformer, lengths: Sequence[int], batch_size: int, num_tokens: int
) -> Subject:
    """Run sentence-transformers' modules on batches that were sorted, padded and copied beforehand."""
    batch_tokens = batch_size * sum(lengths) // len(lengths)
    num_distinct = min(max(_MIN_BATCHES, num_tokens // batch_tokens), _MAX_DISTINCT_BATCHES)
    num_texts = num_distinct * batch_size
    sequences = [make_random_ids(length) for length in itertools.islice(itertools.cycle(lengths), num_texts)]
    sequences.sort(key=len, reverse=True)  # as `encode` sorts
    tokenizer: Any = model[0].tokenizer
    distinct = [
        make_padded_batch(
            sequences[start : start + batch_size], tokenizer.padding_side == "left", model.device
        )
        for start in range(0, num_texts, batch_size)
    ]
    distinct_tokens = sum(len(sequence) for sequence in sequences)
    num_rounds = max(1, num_tokens // distinct_tokens)

    def forward() -> None:
        with torch.inference_mode():
            for features in distinct * num_rounds:
                model(dict(features))  # a copy: the modules write into it

    return Subject(batch_size, num_rounds * distinct_tokens, forward)


def make_padded_batch(sequences: list[TokenIds], pads_left: bool, device: torch.device) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, each (B, S) int64 on the device."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), None) if pads_left else slice(len(sequence))
        input_ids[row, columns] = torch.from_numpy(sequence.astype(np.int64))
        attention_mask[row, columns] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def take_tokens(lengths: Sequence[int], num_tokens: int) -> list[int]:
    """Repeat `lengths` up to `num_tokens` in all; return at least one."""
    taken: list[int] = []
    total = 0
    for length in itertools.cycle(lengths):
        if taken and total + length > num_tokens:
            return taken
        taken.append(length)
        total += length
    raise ValueError("no lengths")


def choose_fastest(candidates: Sequence[Callable[[], Subject]], device: torch.device) -> Subject:
    """Run each twice, the first time as a warm-up; skip sizes that do not fit into memory."""
    best: tuple[float, Subject] | None = None
    for make in candidates:
        try:
            subject = make()
            subject.rate(device)
            rate = subject.rate(device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        if best is None or rate > best[0]:
            best = rate, subject
    if best is None:
        raise RuntimeError("the device has no memory for any batch size")
    return best[1]


def time_run(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds from an idle device to an idle device."""
    synchronize(device)
    started_s = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started_s


def synchronize(device: torch.device) -> None:
    """Wait for the device; on a CPU nothing is pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
