"""An ONNX graph in the place of a model's network: the modules around it do not notice.

sentence-transformers' Transformer module calls its network with tensors and reads one output; this one asks
onnxruntime for it. Knows nothing of files, or of how a graph came about.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.errors import StartupError

# What a graph may ask for; all are made from the tokens alone.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Other names for the row of each token, as sentence-transformers and optimum export it.
_NAMES_OF_ROWS = ("last_hidden_state", "token_embeddings")
# What its allocators say, on a CPU and on a GPU.
_OUT_OF_MEMORY = re.compile(r"Failed to allocate memory|Available memory of \d+ is smaller|bad_?\s?alloc")
_NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TORCH_TYPES = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32}


class OnnxNetwork(torch.nn.Module):
    """One session of onnxruntime; safe to call from several threads.

    transformer: the module whose network it stands in for, with that network still in it.
    device: where the tensors lie that it takes and answers: the session's own memory, or the CPU's.
    number_format: of the graph; how far rows of a batch may be from those of single texts depends on it.
    Raises StartupError for a graph with inputs or outputs that this module does not have.
    """

    why_padded = "an ONNX graph takes padded batches"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        transformer: Transformer,
        device: torch.device,
        number_format: torch.dtype,
    ) -> None:
        super().__init__()
        self.number_format = number_format
        self.config = transformer.config
        self.device = device
        self._session = session
        table: Any = transformer.model.get_input_embeddings()
        self._num_words = int(table.weight.shape[0])
        self._input_types = {each.name: each.type for each in session.get_inputs()}
        self.output_name = output_name_of(transformer)
        self._graph_output = self._find_output([each.name for each in session.get_outputs()])
        if unknown := sorted(self._input_types.keys() - set(INPUT_NAMES)):
            raise StartupError(f"the graph asks for {', '.join(unknown)}, which texts do not have")

    def _find_output(self, names: list[str]) -> str:
        wanted = _NAMES_OF_ROWS if self.output_name in _NAMES_OF_ROWS else (self.output_name,)
        for name in wanted:
            if name in names:
                return name
        raise StartupError(f"the graph answers {', '.join(names)}, and the model needs {' or '.join(wanted)}")

    def is_backend_compatible(self) -> bool:
        """Whether its attention can be exchanged, as transformers asks; a graph's cannot."""
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """A table with a row for each word that the graph knows, and nothing in it."""
        return torch.nn.Embedding(self._num_words, 1, device="meta")

    def forward(self, **features: Any) -> dict[str, Tensor]:
        """The one output that the module reads, by the name that it has in transformers.

        features: input_ids and attention_mask, (B, S) int64 on `device`, and perhaps token_type_ids.
        """
        feeds = {
            name: _as_feed(name, features).to(_TORCH_TYPES[kind]).contiguous()
            for name, kind in self._input_types.items()
        }
        return {self.output_name: self._run(feeds)}

    def _run(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Inputs and output stay where they are: nothing is copied from or to a GPU's memory."""
        kind, number = self.device.type, self.device.index or 0
        binding = self._session.io_binding()
        for name, tensor in feeds.items():
            numpy_type = _NUMPY_TYPES[self._input_types[name]]
            binding.bind_input(name, kind, number, numpy_type, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(self._graph_output, kind, number)
        if kind == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # onnxruntime has a stream of its own
        with _naming_lack_of_memory():
            self._session.run_with_iobinding(binding)
        return _as_tensor(binding.get_outputs()[0]).float()


@contextlib.contextmanager
def _naming_lack_of_memory() -> Iterator[None]:
    """onnxruntime has no class for it; torch's leads to smaller batches."""
    try:
        yield
    except Exception as exc:
        if _OUT_OF_MEMORY.search(str(exc)) is None:
            raise
        raise torch.OutOfMemoryError(str(exc)) from exc


def _as_tensor(value: onnxruntime.OrtValue) -> Tensor:
    """The same memory, which lives as long as the tensor."""
    # onnxruntime 1.23, the last for Python 3.10, has the method on the inside only.
    given = value if hasattr(value, "__dlpack__") else value._ortvalue.to_dlpack()
    tensor: Tensor = torch.utils.dlpack.from_dlpack(given)
    return tensor


def output_name_of(transformer: Transformer) -> str:
    """What the module reads of its network's answer to a text: `last_hidden_state`, `logits`."""
    name: Any = transformer.modality_config["text"]["method_output_name"]
    return str(name if isinstance(name, str) else name[0])


def _as_feed(name: str, features: Mapping[str, Any]) -> Tensor:
    """An input of the graph, made from the tokens where the tokenizer does not make it."""
    given = features.get(name)
    if given is None and name == "token_type_ids":
        given = torch.zeros_like(features["input_ids"])
    if given is None and name == "position_ids":
        given = (features["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    assert isinstance(given, Tensor), f"the pipeline gives no {name}"
    return given
