"""Add the most likely label of each row of a CSV file, and its probability.

infinity_emb v2 --model-id SamLowe/roberta-base-go_emotions &
python examples/classify_csv.py reviews.csv labelled.csv --column text [--url http://localhost:7997]
"""

import argparse
import csv
import itertools

import httpx

ROWS_PER_REQUEST = 256


def main() -> None:
    """Read and write row by row, so that the file may be larger than the memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--column", default="text")
    parser.add_argument("--url", default="http://localhost:7997")
    options = parser.parse_args()
    with (
        open(options.source, newline="", encoding="utf-8") as source,
        open(options.target, "w", newline="", encoding="utf-8") as target,
        httpx.Client(base_url=options.url, timeout=600) as client,
    ):
        rows = csv.DictReader(source)
        writer = csv.DictWriter(target, [*(rows.fieldnames or []), "label", "score"])
        writer.writeheader()
        while part := list(itertools.islice(rows, ROWS_PER_REQUEST)):
            body = {"input": [row[options.column] for row in part]}
            answer = client.post("/classify", json=body).raise_for_status().json()
            for row, (best, *_) in zip(part, answer["data"], strict=True):
                writer.writerow(row | {"label": best["label"], "score": f"{best['score']:.4f}"})


if __name__ == "__main__":
    main()
