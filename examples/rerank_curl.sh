#!/usr/bin/env bash
# Rank documents by relevance to a query with curl and a running server.
#
#   infinity_emb v2 --model-id BAAI/bge-reranker-base &
#   examples/rerank_curl.sh [http://localhost:7997]
set -euo pipefail
url=${1:-http://localhost:7997}

curl --fail-with-body --silent --show-error "$url/rerank" -H 'Content-Type: application/json' -d '{
  "query": "Where is Munich?",
  "documents": ["A cat sleeps on the sofa.", "Munich is a city in Bavaria."],
  "return_documents": true
}'
echo
