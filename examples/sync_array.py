"""Embed texts from code without an event loop, with two models side by side.

    python examples/sync_array.py

Methods return futures, so several calls can be in flight. Runs offline: both entries are the bundled model,
and the second call truncates its vectors to 64 dimensions.
"""

import numpy as np

from infinity_emb import EngineArgs, SyncEngineArray

TEXTS = ["Paris is the capital of France.", "France's capital is Paris.", "A cat sleeps."]
MODELS = [EngineArgs(served_model_name="first"), EngineArgs(served_model_name="second")]


def main() -> None:
    """The loader blocks; the `with` block stops the worker threads."""
    with SyncEngineArray(MODELS) as array:
        full = array.embed(model="first", sentences=TEXTS)
        short = array.embed(model="second", sentences=TEXTS, matryoshka_dim=64)
        for name, future in {"first": full, "second": short}.items():
            vectors, _ = future.result()
            rows = np.stack(vectors)  # (3, dim), unit length
            similarity = rows @ rows.T
            print(
                f"{name}: {rows.shape[1]} dimensions, similarity to the first text {similarity[0].round(2)}"
            )


if __name__ == "__main__":
    main()
