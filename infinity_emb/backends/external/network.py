"""Define a network that another library computes, to replace a model's own.

The Transformer module of sentence-transformers calls its network with tensors and reads one output.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.torch.input_layout import get_first_position
from infinity_emb.types import Dtype

NUMBER_FORMATS = {
    Dtype.float32: torch.float32,
    Dtype.float16: torch.float16,
    Dtype.bfloat16: torch.bfloat16,
    Dtype.int16: torch.int16,
    Dtype.int8: torch.int8,
}


class ExternalNetwork(torch.nn.Module):
    """A network that another library computes; safe to call from several threads.

    transformer: the module whose network it replaces, still with that network.
    device: of its input and output tensors.
    number_format: the dtype of the computation, which limits how far rows of a batch may differ from those of
        single texts.
    """

    # Why batches are padded, for the log: torch cannot replace this network's attention.
    padding_reason: str
    # File of the repository that is computed; empty if the graph was exported from torch's network.
    graph: str = ""

    def __init__(self, transformer: Transformer, device: torch.device, number_format: torch.dtype) -> None:
        super().__init__()
        self.config = transformer.config
        self.device = device
        self.number_format = number_format
        self.output_name = read_output_name(transformer)
        table: Any = transformer.model.get_input_embeddings()
        self.vocab_size = int(table.weight.shape[0])
        self.first_position = get_first_position(transformer.model)

    def is_backend_compatible(self) -> bool:
        """Return false: transformers cannot replace its attention."""
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return an embedding table of the right size without memory."""
        return torch.nn.Embedding(self.vocab_size, 1, device="meta")

    def forward(self, **features: Any) -> dict[str, Tensor]:
        """Return the one output that the module reads, under its name in transformers.

        features: input_ids and attention_mask, (B, S) int64 on `device`, and perhaps token_type_ids.
        """
        return {self.output_name: self.compute(features)}

    @abstractmethod
    def compute(self, features: dict[str, Any]) -> Tensor:
        """Compute the output: (B, S, H) token vectors or (B, L) scores, float32 on `device`.

        Vectors of masked tokens may hold any finite values. Raises torch.OutOfMemoryError, which leads to
        smaller batches.
        """


@contextlib.contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Translate a library's out-of-memory errors to torch's, which lead to smaller batches."""
    try:
        yield
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        raise torch.OutOfMemoryError(str(exc)) from exc


def check_ids(ids: Tensor, limit: int, kind: str) -> None:
    """Raise IndexError for ids outside the table, for libraries that read out of bounds.

    kind: `token` or `segment`, for the message.
    """
    lowest, highest = (int(each) for each in ids.aminmax())
    if lowest < 0 or highest >= limit:
        raise IndexError(f"{kind} ids from {lowest} to {highest}, the network knows 0 to {limit - 1}")


def read_output_name(transformer: Transformer) -> str:
    """Return the name of the output that the module reads: `last_hidden_state` or `logits`."""
    name: Any = transformer.modality_config["text"]["method_output_name"]
    return str(name if isinstance(name, str) else name[0])
