"""Compute a model's network with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.external.graph_io import check_inputs, find_output, make_inputs
from infinity_emb.backends.external.network import ExternalNetwork, translate_out_of_memory

_NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TORCH_TYPES = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32}


class OnnxNetwork(ExternalNetwork):
    """One session of onnxruntime.

    device: of the tensors that the session reads and writes.
    max_items: the most texts that the session takes at once; None for any number.
    Raises StartupError for a graph with inputs or outputs that the module does not have.
    """

    padding_reason = "an ONNX graph takes padded batches"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        transformer: Transformer,
        device: torch.device,
        number_format: torch.dtype,
        *,
        max_items: int | None = None,
    ) -> None:
        super().__init__(transformer, device, number_format)
        self._session = session
        self.max_items = max_items
        self._input_types = {each.name: each.type for each in session.get_inputs()}
        self._graph_output = find_output(
            [each.name for each in session.get_outputs()], wanted=self.output_name
        )
        check_inputs(self._input_types)

    def compute(self, features: dict[str, Any]) -> Tensor:
        """Compute without copies between host and GPU memory."""
        feeds = make_inputs(self._input_types, _TORCH_TYPES, features, first_position=self.first_position)
        num_items = len(features["input_ids"])
        if self.max_items is None or num_items <= self.max_items:
            return self._run(feeds)
        cuts = range(0, num_items, self.max_items)
        parts = [{name: each[cut : cut + self.max_items] for name, each in feeds.items()} for cut in cuts]
        return torch.cat([self._run(part) for part in parts])

    def _run(self, feeds: dict[str, Tensor]) -> Tensor:
        kind, number = self.device.type, self.device.index or 0
        binding = self._session.io_binding()
        for name, tensor in feeds.items():
            numpy_type = _NUMPY_TYPES[self._input_types[name]]
            binding.bind_input(name, kind, number, numpy_type, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(self._graph_output, kind, number)
        if kind == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # onnxruntime uses another stream
        with translate_out_of_memory():
            self._session.run_with_iobinding(binding)
        return _as_tensor(binding.get_outputs()[0]).float()


def _as_tensor(value: onnxruntime.OrtValue) -> Tensor:
    """Return a tensor that shares the memory."""
    # onnxruntime 1.23, the last for Python 3.10, has the method on its private object only.
    given = value if hasattr(value, "__dlpack__") else value._ortvalue.to_dlpack()
    tensor: Tensor = torch.utils.dlpack.from_dlpack(given)
    return tensor
