"""Check the packed path on a GPU against a CPU, then measure it beside sentence-transformers.

python -m benchmarks.gpu [--device cuda|cpu] [--small] [--models NAME,…] [--json-only]

Exit code 1 if a check fails, 2 if there is no such device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

import torch
import transformers

from benchmarks.gpu.checks import (
    Check,
    check_full_precision,
    check_kernel,
    check_model,
    check_scorer,
    list_kernels,
)
from benchmarks.gpu.models import build_pipeline, build_scorer, compute_rows_one_by_one, draw_sequences
from benchmarks.gpu.report import (
    TABLE_HEAD,
    describe_machine,
    format_check,
    format_matmul,
    format_speed,
    summarize,
)
from benchmarks.gpu.shapes import HEAD_SHAPES, PLANS, SPEED_SHAPES, WINDOW_SHAPES, Plan
from benchmarks.gpu.speeds import MatrixProduct, Speed, measure_shape


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong or there is no such device."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n\n")[0]
    )
    names = [shape.name for shape in SPEED_SHAPES]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--small", action="store_true", help="tiny models, seconds in all: tries the script out"
    )
    parser.add_argument("--models", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--json-only", action="store_true", help="print the last line only")
    arguments = parser.parse_args(argv)
    arguments.models = arguments.models.split(",")
    if unknown := set(arguments.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device; --device cpu --small tries this out")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the JSON line; return the exit code, 1 if a check failed."""
    arguments = parse_arguments(argv)
    device = torch.device(arguments.device)
    plan = PLANS["small" if arguments.small else device.type]
    say = (lambda line: None) if arguments.json_only else (lambda line: print(line, flush=True))
    transformers.utils.logging.disable_progress_bar()
    if arguments.small:
        torch.set_num_threads(1)  # on tiny matrices several threads mostly wait for each other

    machine = describe_machine(device)
    say(", ".join(f"{key} {value}" for key, value in machine.items()))
    say(TABLE_HEAD)
    results: list[Check | Speed] = []
    for result in run_all(arguments.models, plan, device, is_small=arguments.small):
        results.append(result)
        say(format_check(result) if isinstance(result, Check) else format_speed(result))
    checks = [result for result in results if isinstance(result, Check)]
    speeds = [result for result in results if isinstance(result, Speed)]
    say(format_matmul(speeds, plan))
    summary = summarize(checks, speeds, plan, machine, is_small=arguments.small)
    print(json.dumps(summary))
    return 0 if summary["is_passed"] else 1


def run_all(
    names: Sequence[str], plan: Plan, device: torch.device, *, is_small: bool
) -> Iterator[Check | Speed]:
    """Check the kernels alone, then check and measure model by model."""
    for kernel, dtype in list_kernels(device):
        yield check_kernel(kernel, device, dtype)
    for shape in HEAD_SHAPES:
        scorer = build_scorer(shape, is_small=is_small)
        for kernel, dtype in list_kernels(device):
            yield check_scorer(shape, scorer, kernel, device, dtype, plan)
    product = MatrixProduct(plan.matmul_size, device, plan.dtype)
    for shape in (*WINDOW_SHAPES, *SPEED_SHAPES):
        if shape in SPEED_SHAPES and shape.name not in names:
            continue
        model = build_pipeline(shape, is_small=is_small)
        sequences = draw_sequences(plan.checked_lengths)
        expected = compute_rows_one_by_one(model, sequences)
        for kernel, dtype in list_kernels(device):
            yield check_model(shape.name, model, sequences, expected, kernel, device, dtype)
        if shape in WINDOW_SHAPES:
            yield check_full_precision(shape.name, model, sequences, expected, device)
        if shape in SPEED_SHAPES:
            yield from measure_shape(shape, model, plan, device, product)


if __name__ == "__main__":
    sys.exit(main())
