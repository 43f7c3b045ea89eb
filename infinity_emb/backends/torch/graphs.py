"""Replay captured forward passes of small packed batches, whose kernels take longer to launch than to run.

A graph has a fixed number of tokens and texts. Static tables on the device hold its input, and dummy texts
fill what a batch leaves free; their outputs are dropped. All graphs of a replica share one pool of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from infinity_emb.backends.torch.blocks import Block
from infinity_emb.backends.torch.device import capture_graph
from infinity_emb.backends.torch.forward import TorchModel, compute_block
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.outputs import DenseOutput
from infinity_emb.backends.torch.packed_features import PackedTables, fill_tables, make_features
from infinity_emb.items import Encoded, ForwardSpec

TOKEN_BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024)
_MIN_TEXTS = 8
_TOKENS_PER_TEXT = 16
# Any token; its outputs are dropped.
_DUMMY_TOKEN_ID = 0


class GraphShape(NamedTuple):
    """Size of a graph; at least one of its texts is a dummy."""

    num_tokens: int
    num_texts: int

    def fits(self, num_tokens: int, num_texts: int) -> bool:
        """Return whether texts fit, with a token for each dummy."""
        num_dummies = self.num_texts - num_texts
        return num_dummies >= 1 and num_tokens + num_dummies <= self.num_tokens

    def fill(self, items: Sequence[Encoded]) -> list[Encoded]:
        """Return the items, and dummies that share the tokens that are left."""
        num_dummies = self.num_texts - len(items)
        free = self.num_tokens - sum(len(item.token_ids) for item in items)
        shares = [free // num_dummies + (number < free % num_dummies) for number in range(num_dummies)]
        return [*items, *(Encoded(np.full(share, _DUMMY_TOKEN_ID, dtype=np.int32)) for share in shares)]


def list_shapes() -> list[GraphShape]:
    """Return the shapes to capture, smallest first: each number of tokens in one text and in many."""
    return [
        GraphShape(num_tokens, 1 + num_texts)
        for num_tokens in TOKEN_BUCKETS
        for num_texts in (1, max(_MIN_TEXTS, num_tokens // _TOKENS_PER_TEXT))
    ]


class CapturedForward:
    """One captured forward pass. The constructor raises what the model raises if it waits for the device."""

    def __init__(
        self, torch_model: TorchModel, spec: ForwardSpec, shape: GraphShape, pool: tuple[int, int]
    ) -> None:
        self.shape = shape
        self._layout = torch_model.get_layout(spec)
        self._device = torch_model.model.device
        items = shape.fill(())
        with torch.inference_mode():
            self._tables = self._fill_tables(()).copy_to(self._device)

            def compute() -> DenseOutput:
                features = make_features(self._tables, self._layout, None, shape.num_tokens)
                block = Block(list(range(shape.num_texts)), features)
                output = compute_block(torch_model, block, items, spec)["dense"]
                assert isinstance(output, DenseOutput)
                return output

            compute()  # lets libraries allocate their permanent buffers before the capture
            self._graph, self._output = capture_graph(compute, self._device, pool)

    def replay(self, items: Sequence[Encoded]) -> DenseOutput:
        """Compute items that fit the shape. The output is valid until the next replay on the device."""
        for static, values in zip(self._tables, self._fill_tables(items), strict=True):
            if static is not None and values is not None:
                static.copy_(values, non_blocking=True)
        self._graph.replay()
        return DenseOutput(self._output.vectors[: len(items)])

    def _fill_tables(self, items: Sequence[Encoded]) -> PackedTables:
        host = fill_tables(self.shape.fill(items), self._layout, self._device)
        # A dummy may be longer than the model's table of positions.
        host.tokens[1, sum(len(item.token_ids) for item in items) :] = self._layout.position_offset
        return host


class ForwardGraphs:
    """The graphs of one replica, by spec."""

    def __init__(self) -> None:
        self._by_spec: dict[ForwardSpec, list[CapturedForward]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_spec.values()))

    def __iter__(self) -> Iterator[tuple[ForwardSpec, CapturedForward]]:
        for spec, captured in self._by_spec.items():
            for each in captured:
                yield spec, each

    def add(self, spec: ForwardSpec, captured: CapturedForward) -> None:
        """Add a graph; smaller ones come first."""
        self._by_spec.setdefault(spec, []).append(captured)

    def find(self, spec: ForwardSpec, items: Sequence[Encoded]) -> CapturedForward | None:
        """Return the smallest graph that computes the items; None if there is none."""
        candidates = self._by_spec.get(spec)
        if not candidates or not all(map(is_graphable, items)):
            return None
        num_tokens = sum(len(item.token_ids) for item in items)
        return next((each for each in candidates if each.shape.fits(num_tokens, len(items))), None)


def is_graphable(item: Encoded) -> bool:
    """Return whether an item is a text that can be packed."""
    return item.features is None and item.num_attended_tokens is None and len(item.token_ids) > 0


def can_be_captured(layout: InputLayout, spec: ForwardSpec) -> bool:
    """Return whether batches with this spec have one vector per text and tables of a fixed size."""
    return layout.form == "packed" and layout.reads != "all" and spec.outputs == ("dense",)
