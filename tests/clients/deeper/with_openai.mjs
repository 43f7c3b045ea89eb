// openai for Node. Version 6.49.0 turns a float list that answers its base64 request into [] without a word.

import OpenAI from "openai";
import OpenAI6 from "openai-6";
import { errorOf, key, keyed_url, tell, texts, url } from "./question.mjs";

const vectors = {};
for (const [name, Client] of Object.entries({ newest: OpenAI, "version 6": OpenAI6 })) {
  const client = new Client({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
  for (const options of [{}, { encoding_format: "float" }]) {
    const answer = await client.embeddings.create({ model: "minilm", input: texts, ...options });
    vectors[`${name} ${JSON.stringify(options)}`] = answer.data.map((each) => each.embedding);
  }
}

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const keyed = (apiKey) => new OpenAI({ baseURL: `${keyed_url}/v1`, apiKey, maxRetries: 0 });
await keyed(key).embeddings.create({ model: "minilm", input: "a" });
tell({
  vectors,
  errors: {
    "unknown model": await errorOf(() => client.embeddings.create({ model: "other", input: "a" })),
    "wrong key": await errorOf(() => keyed("other").embeddings.create({ model: "minilm", input: "a" })),
    "wrong type": await errorOf(() => client.embeddings.create({ model: "minilm", input: { a: 1 } })),
  },
});
