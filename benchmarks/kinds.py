"""Measure ratios for other kinds of model: a packed reranker to CrossEncoder, a static model over HTTP.

    python -m benchmarks.kinds [--rounds 5]

The reranker has the shape of ms-marco-MiniLM-L6: the bundled encoder with a random classification head. The
static model is a random table for the bundled tokenizer. The peers take turns within one run, as in
`benchmarks.serve`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from benchmarks.http_load import make_requests, run_load
from benchmarks.rounds import Row, report
from benchmarks.serve import PASSAGES_PER_REQUEST, Server
from benchmarks.subjects import Peer
from benchmarks.texts import bundled_model_folder, load_texts

NUM_QUERIES, NUM_DOCUMENTS = 2, 128
STATIC_DIMENSION = 256


def save_reranker(folder: Path) -> str:
    """Save the bundled encoder with a head for one label; return the folder."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = bundled_model_folder()
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, model_max_length=512).save_pretrained(folder)
    return str(folder)


def save_static(folder: Path) -> str:
    """Save a table of random vectors; return the folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(bundled_model_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    static = StaticEmbedding(tokenizer, embedding_dim=STATIC_DIMENSION)
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save_pretrained(str(folder))
    return str(folder)


class Bench:
    """Hold the peers and run the rounds."""

    def __init__(self, folder: Path) -> None:
        reranker, static = save_reranker(folder / "reranker"), save_static(folder / "static")
        self.short, passages = load_texts(num_short=1024, num_passages=256)
        # Documents of mixed length, as a first search returns them: sentences and passages.
        self.documents = [text for pair in zip(self.short, passages, strict=False) for text in pair]
        self.documents = self.documents[:NUM_DOCUMENTS]
        self.queries = self.short[-NUM_QUERIES:]
        # All different: the engine computes equal texts of one request once.
        self.many = [f"{text} {number}" for number in range(8) for text in self.short]
        self.cross_encoder = Peer("cross-encoder", reranker)
        self.reranker = Peer("engine", reranker)
        self.static_reference = Peer("sentence-transformers", static)
        self.static_engine = Peer("engine", static)
        self.static_server = Server(["--model-id", static])
        self.bare_server = Server(["--model-id", "debug", "--engine", "debugengine"])
        self.rows = {
            "rerank": Row("packed reranker / CrossEncoder.predict, mixed lengths", ">= 2.0"),
            "static_engine": Row("static engine / sentence-transformers, short queries", ""),
            "static_http": Row("static engine / its server, 32 queries per request, 4 clients", ""),
            "static_bare": Row("server with the static model / with the fake engine", "about 1"),
        }

    def close(self) -> None:
        """Stop all processes."""
        for peer in (self.cross_encoder, self.reranker, self.static_reference, self.static_engine):
            peer.close()
        self.static_server.close()
        self.bare_server.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        pairs = {"queries": self.queries, "documents": self.documents}
        reference_s = self.cross_encoder.ask("rerank", **pairs)["s"]
        reranker_s = self.reranker.ask("rerank", **pairs)["s"]
        static_st_s = self.static_reference.ask("embed", texts=self.many)["s"]
        static_s = self.static_engine.ask("embed", texts=self.many)["s"]
        static_http_s = self._load(self.static_server)
        bare_http_s = self._load(self.bare_server)
        return {
            "rerank": reference_s / reranker_s,
            "static_engine": static_st_s / static_s,
            "static_http": static_http_s / static_s,
            "static_bare": bare_http_s / static_http_s,
        }

    def _load(self, server: Server) -> float:
        requests = make_requests(
            self.many, per_request=PASSAGES_PER_REQUEST, port=server.port, encoding_format="base64"
        )
        return asyncio.run(run_load(requests, port=server.port, num_clients=4))[0]


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        report(bench, rounds, about=f"{NUM_QUERIES} queries with {len(bench.documents)} documents each")


if __name__ == "__main__":
    main()
