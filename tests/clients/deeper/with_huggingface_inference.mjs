// @huggingface/inference for Node, which posts to exactly the URL that it is given.

import { InferenceClient } from "@huggingface/inference";
import { errorOf, key, keyed_url, query, tell, texts, url } from "./question.mjs";

const at = (address, token) => new InferenceClient(token, { endpointUrl: address });
const client = at(`${url}/embed`);
await at(`${keyed_url}/embed`, key).featureExtraction({ inputs: "a" });

tell({
  vectors: { batch: await client.featureExtraction({ inputs: texts }) },
  similarities: await at(`${url}/similarity`).sentenceSimilarity({
    inputs: { source_sentence: query, sentences: texts },
  }),
  errors: {
    dimensions: await errorOf(() => client.featureExtraction({ inputs: "a", dimensions: 5000 })),
    "wrong key": await errorOf(() => at(`${keyed_url}/embed`, "other").featureExtraction({ inputs: "a" })),
  },
});
