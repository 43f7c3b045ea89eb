"""mteb's wrappers for servers with OpenAI's routes. They first ask for the models, without a key."""

import mteb
from mteb.models import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper
from question import KEYED_URL, QUERY, TEXTS, URL, error_of, tell

TASK = {
    "task_metadata": mteb.get_task("STSBenchmark").metadata,
    "hf_split": "test",
    "hf_subset": "default",
    "show_progress_bar": False,
}


def batches(texts: list[str], num_texts: int = 32) -> list[dict[str, list[str]]]:
    return [{"text": texts[start : start + num_texts]} for start in range(0, len(texts), num_texts)]


def encoder(model: str = "minilm", url: str = URL) -> OpenAIAPIEncodeWrapper:
    return OpenAIAPIEncodeWrapper(url, model, use_chat_template=False, modalities=["text"], max_retries=1)


reranker = OpenAIAPIRerankWrapper(URL, "reranker", modalities=["text"])
scores = reranker.predict(batches([QUERY] * len(TEXTS)), batches(TEXTS), **TASK).tolist()

tell(
    vectors={"encode": encoder().encode(batches(TEXTS), **TASK).tolist()},
    rankings={"predict": sorted(enumerate(scores), key=lambda each: -each[1])},
    errors={
        "unknown model": error_of(lambda: encoder("other").encode(batches(["a"]), **TASK)),
        "a server with a key": error_of(lambda: encoder(url=KEYED_URL)),
    },
)
