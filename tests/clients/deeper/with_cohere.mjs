// cohere-ai for Node, both of its interfaces.

import { CohereClient, CohereClientV2 } from "cohere-ai";
import { errorOf, key, keyed_url, query, tell, texts, url } from "./question.mjs";

const client = new CohereClient({ environment: url, token: "any" });
const client2 = new CohereClientV2({ environment: url, token: "any" });
const keyed = (token) => new CohereClientV2({ environment: keyed_url, token });
const input = { model: "minilm", inputType: "search_document", embeddingTypes: ["float"] };
const rank = { model: "reranker", query, documents: texts };
const pairs = (answer) => answer.results.map((each) => [each.index, each.relevanceScore]);

await keyed(key).embed({ ...input, texts: ["a"] });
const parts = await Promise.all(
  [texts.slice(0, 96), texts.slice(96)].map((part) => client2.embed({ ...input, texts: part })),
);
const first = await client.embed({ ...input, embeddingTypes: undefined, texts: texts.slice(0, 96) });
const second = await client.embed({ ...input, embeddingTypes: undefined, texts: texts.slice(96) });

tell({
  vectors: {
    "version 1": [...first.embeddings, ...second.embeddings],
    "version 2": parts.flatMap((each) => each.embeddings.float),
  },
  rankings: {
    "version 1": pairs(await client.rerank(rank)),
    "version 2": pairs(await client2.rerank(rank)),
  },
  errors: {
    "unknown model": await errorOf(() => client2.embed({ ...input, model: "other", texts: ["a"] })),
    "wrong key": await errorOf(() => keyed("other").embed({ ...input, texts: ["a"] })),
  },
});
