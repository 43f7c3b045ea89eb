"""What stands in for a model's network where another library computes it; the modules around do not notice.

sentence-transformers' Transformer module calls its network with tensors and reads one output. Knows nothing
of the libraries, nor of files.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.torch_inputs import first_position
from infinity_emb.primitives import Dtype

NUMBER_FORMATS = {
    Dtype.float32: torch.float32,
    Dtype.float16: torch.float16,
    Dtype.bfloat16: torch.bfloat16,
    Dtype.int16: torch.int16,
    Dtype.int8: torch.int8,
}


class StandIn(torch.nn.Module):
    """A network that is computed elsewhere; safe to call from several threads.

    transformer: the module whose network it stands in for, with that network still in it.
    device: where the tensors lie that it takes and answers.
    number_format: that it computes in; it says how far rows of a batch may be from those of single texts.
    """

    # For the log: attention is not torch's to exchange.
    why_padded: str
    # The repository's file that is computed; empty of what was made of torch's network.
    graph: str = ""

    def __init__(self, transformer: Transformer, device: torch.device, number_format: torch.dtype) -> None:
        super().__init__()
        self.config = transformer.config
        self.device = device
        self.number_format = number_format
        self.output_name = output_name_of(transformer)
        table: Any = transformer.model.get_input_embeddings()
        self.num_words = int(table.weight.shape[0])
        self.first_position = first_position(transformer.model)

    def is_backend_compatible(self) -> bool:
        """Whether its attention can be exchanged, as transformers asks."""
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """A table with a row for each word that the network knows, and nothing in it."""
        return torch.nn.Embedding(self.num_words, 1, device="meta")

    def forward(self, **features: Any) -> dict[str, Tensor]:
        """The one output that the module reads, by the name that it has in transformers.

        features: input_ids and attention_mask, (B, S) int64 on `device`, and perhaps token_type_ids.
        """
        return {self.output_name: self.compute(features)}

    @abstractmethod
    def compute(self, features: dict[str, Any]) -> Tensor:
        """`forward`'s output: (B, S, H), or (B, L) scores; float32 on `device`.

        Rows of tokens that the mask leaves out may hold anything finite. Raises torch.OutOfMemoryError for
        lack of memory, which leads to smaller batches.
        """


def check_ids(ids: Tensor, limit: int, kind: str) -> None:
    """For libraries that read whatever lies beside their table. Raises IndexError for ids without a row.

    kind: `token` or `segment`, for the message.
    """
    lowest, highest = (int(each) for each in ids.aminmax())
    if lowest < 0 or highest >= limit:
        raise IndexError(f"{kind} ids from {lowest} to {highest}, the network knows 0 to {limit - 1}")


def output_name_of(transformer: Transformer) -> str:
    """What the module reads of its network's answer to a text: `last_hidden_state`, `logits`."""
    name: Any = transformer.modality_config["text"]["method_output_name"]
    return str(name if isinstance(name, str) else name[0])
