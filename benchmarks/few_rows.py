"""Measure the linear layers of short texts in turn: weights stored as in files, by input, and with oneDNN.

    python -m benchmarks.few_rows --rounds 9                              # all-MiniLM-L6
    python -m benchmarks.few_rows --hidden-size 768 --num-layers 12       # BERT-base

Each ratio is the time of torch on one core with weights as in files over the time of its row; above 1 is
faster. oneDNN multiplies by weights that are stored by input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.rounds import Row, report
from infinity_emb.backends.torch.cpu_weights import to_input_major
from infinity_emb.backends.torch.onednn_products import onednn_linear

NUM_TOKENS = (6, 17, 32, 64, 256, 1024)
_AS_IN_FILES = "weights as in files"
# The cores of a server have been idle before a lone query comes.
_PAUSE_S = 0.003


class FewRows:
    """Compute all products of a network in each way, on one core and on all."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        shapes = [(hidden_size, hidden_size)] * 4
        shapes += [(4 * hidden_size, hidden_size), (hidden_size, 4 * hidden_size)]
        as_in_files = [torch.randn(shape) for shape in shapes * num_layers]
        by_input = list(map(to_input_major, as_in_files))
        self._ways: dict[str, tuple[list[Tensor], Callable[..., Tensor]]] = {
            _AS_IN_FILES: (as_in_files, linear),
            "weights by input": (by_input, linear),
            "oneDNN": (by_input, onednn_linear),
        }
        self._num_cores = torch.get_num_threads()
        self._cases = [(way, num_cores) for way in self._ways for num_cores in (1, self._num_cores)][1:]
        self.rows = {
            _name(num_tokens, way, num_cores): Row(_name(num_tokens, way, num_cores), "")
            for num_tokens in NUM_TOKENS
            for way, num_cores in self._cases
        }

    def measure(self) -> dict[str, float]:
        """Return the speed of each case as a ratio to torch with weights as in files on one core."""
        figures = {}
        for num_tokens in NUM_TOKENS:
            base_s = self._time(num_tokens, _AS_IN_FILES, 1)
            for way, num_cores in self._cases:
                took_s = self._time(num_tokens, way, num_cores)
                figures[_name(num_tokens, way, num_cores)] = base_s / took_s
        return figures

    def close(self) -> None:
        """Let torch use all cores again."""
        torch.set_num_threads(self._num_cores)

    def _time(self, num_tokens: int, way: str, num_cores: int) -> float:
        torch.set_num_threads(num_cores)
        weights, compute = self._ways[way]
        inputs = {weight.shape[1]: torch.randn(num_tokens, weight.shape[1]) for weight in weights}
        _multiply(inputs, weights, compute)
        return min(_multiply(inputs, weights, compute) for _ in range(6))


def _name(num_tokens: int, way: str, num_cores: int) -> str:
    return f"{num_tokens} tokens, {way}, cores: {num_cores}"


def _multiply(inputs: dict[int, Tensor], weights: Sequence[Tensor], compute: Callable[..., Tensor]) -> float:
    time.sleep(_PAUSE_S)
    with torch.inference_mode():
        started_s = time.perf_counter()
        for weight in weights:
            compute(inputs[weight.shape[1]], weight, None)
        return time.perf_counter() - started_s


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--num-layers", type=int, default=6)
    options = parser.parse_args()
    bench = FewRows(options.hidden_size, options.num_layers)
    report(bench, options.rounds, about=f"{options.num_layers} layers of size {options.hidden_size}")


if __name__ == "__main__":
    main()
