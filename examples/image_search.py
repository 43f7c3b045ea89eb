"""Find pictures by a description, with a model that embeds texts and images into one space.

infinity_emb v2 --model-id sentence-transformers/clip-ViT-B-32 &
python examples/image_search.py "a dog on a beach" photos/*.jpg [--url http://localhost:7997]
"""

import argparse
import base64
import mimetypes
from pathlib import Path

import httpx
import numpy as np

NUM_FILES = 16  # in a request; the server takes 32


def main() -> None:
    """Rank the pictures by the cosine of their vectors and the description's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("description")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", help="needed where the server has several")
    parser.add_argument("--url", default="http://localhost:7997")
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=60) as client:

        def embed(inputs: list[str], modality: str) -> np.ndarray:
            body = {"model": options.model, "input": inputs, "modality": modality, "normalized": True}
            response = client.post("/embeddings", json=body).raise_for_status()
            return np.array([item["embedding"] for item in response.json()["data"]])

        wanted = embed([options.description], "text")[0]
        files = [as_data_uri(path) for path in options.pictures]
        starts = range(0, len(files), NUM_FILES)
        vectors = np.concatenate([embed(files[start : start + NUM_FILES], "image") for start in starts])
    scores = vectors @ wanted
    for index in np.argsort(scores)[::-1]:
        print(f"{scores[index]:6.3f}  {options.pictures[index]}")


def as_data_uri(path: Path) -> str:
    """Return the file as part of the request; an http(s) URL of a public host would do as well."""
    kind = mimetypes.guess_type(path)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


if __name__ == "__main__":
    main()
