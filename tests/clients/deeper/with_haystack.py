"""haystack's embedders for OpenAI, of documents and of one text."""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from question import KEY, KEYED_URL, TEXTS, URL, error_of, tell


def options(model: str = "minilm", url: str = URL, key: str = "any") -> dict[str, object]:
    return {
        "model": model,
        "api_base_url": f"{url}/v1",
        "api_key": Secret.from_token(key),
        "max_retries": 0,
    }


documents = [Document(content=each) for each in TEXTS]
embedded = OpenAIDocumentEmbedder(**options(), progress_bar=False).run(documents)
assert embedded["meta"]["usage"]["total_tokens"] > len(TEXTS)
assert OpenAITextEmbedder(**options(url=KEYED_URL, key=KEY)).run("a")["embedding"]

tell(
    vectors={
        "documents": [each.embedding for each in embedded["documents"]],
        "texts": [OpenAITextEmbedder(**options()).run(each)["embedding"] for each in TEXTS],
    },
    errors={
        "unknown model": error_of(lambda: OpenAITextEmbedder(**options("other")).run("a")),
        "wrong key": error_of(lambda: OpenAITextEmbedder(**options(url=KEYED_URL)).run("a")),
    },
)
