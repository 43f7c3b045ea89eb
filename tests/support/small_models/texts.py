"""Random texts of the words that the small models know."""

from __future__ import annotations

import torch

# yes and no are what rerankers on language models answer.
WORDS = [*(f"word{number}" for number in range(505)), "yes", "no"]


def random_texts(count: int, *, max_words: int = 120, seed: int = 0) -> list[str]:
    """Texts of the small models' words, most of them short, some of them long."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        num_words = 1 + int(torch.rand(1, generator=generator).item() ** 3 * max_words) + number % 3
        choice = torch.randint(len(WORDS), (num_words,), generator=generator)
        texts.append(" ".join(WORDS[index] for index in choice))
    return texts
