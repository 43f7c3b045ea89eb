"""Compute a model's network with OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.external.graph_io import check_inputs, find_output, make_inputs
from infinity_emb.backends.external.network import ExternalNetwork, check_ids, translate_out_of_memory
from infinity_emb.backends.openvino.runtime import openvino

_TORCH_TYPES = {"i64": torch.int64, "i32": torch.int32}


class OpenVinoNetwork(ExternalNetwork):
    """One compiled graph; its inputs and outputs are in host memory.

    compile_graph: called now, and again after the compiled graph has failed.
    Raises StartupError for a graph with inputs or outputs that the module does not have.
    """

    padding_reason = "a graph of OpenVINO takes padded batches"

    def __init__(
        self,
        compile_graph: Callable[[], openvino.CompiledModel],
        transformer: Transformer,
        number_format: torch.dtype,
    ) -> None:
        super().__init__(transformer, torch.device("cpu"), number_format)
        # 0 if the network has no such table, or does not tell its size.
        self._num_segments = int(getattr(transformer.config, "type_vocab_size", None) or 0)
        self._compile_graph = compile_graph
        self._lock = threading.Lock()
        self._compiled: openvino.CompiledModel | None = None
        compiled = self._current_graph()
        self._input_types = {
            each.get_any_name(): each.get_element_type().get_type_name() for each in compiled.inputs
        }
        check_inputs(self._input_types)
        names = [sorted(each.get_names()) for each in compiled.outputs]
        wanted = find_output([name for group in names for name in group], wanted=self.output_name)
        self._output_number = next(number for number, group in enumerate(names) if wanted in group)

    def compute(self, features: dict[str, Any]) -> Tensor:
        """Compute without copies: each batch has its own inference request, which the output keeps alive.

        Creating one takes a tenth of a millisecond, and threads must not share requests.
        """
        check_ids(features["input_ids"], self.vocab_size, "token")
        inputs = make_inputs(self._input_types, _TORCH_TYPES, features, first_position=self.first_position)
        if self._num_segments and "token_type_ids" in inputs and "token_type_ids" in features:
            check_ids(features["token_type_ids"], self._num_segments, "segment")
        feeds = {name: each.numpy() for name, each in inputs.items()}
        compiled = self._current_graph()
        request = compiled.create_infer_request()
        try:
            with translate_out_of_memory():
                # Not `infer`: with one thread it returns an empty array after a failure (2026.4).
                request.start_async(feeds, share_inputs=True)
                request.wait()
        except RuntimeError:
            self._drop(compiled)
            raise
        return torch.from_numpy(request.get_output_tensor(self._output_number).data).float()

    def _current_graph(self) -> openvino.CompiledModel:
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile_graph()
            return self._compiled

    def _drop(self, compiled: openvino.CompiledModel) -> None:
        """Drop a compiled graph: once it has failed on the CPU, it fails with every later batch (2026.4).

        Batches in flight keep it alive until they end.
        """
        with self._lock:
            if self._compiled is compiled:
                self._compiled = None
