// Embed texts and images; show how similar they are, and a map of them.

import { ApiError, call } from "./api.js";
import { drawHeatMap, drawProjection } from "./charts.js";
import { count, element, readLines } from "./dom.js";
import { bindImages } from "./images.js";
import { startTask } from "./task.js";
import { densify, flatten, project, similarities } from "./vectors.js";

// A table of more cells is no longer something to read.
const MAX_INPUTS = 50;

/** Start the view. */
export function startEmbed() {
  const view = document.getElementById("view-embed");
  const form = view.querySelector("form");
  const prompts = element("label", { hidden: true }, "Prompt ", element("select", { name: "prompt" }));
  const listImages = bindImages(view, () => update());

  const update = startTask("embed", {
    verb: "embeds",
    capabilities: ["embed", "embed_sparse", "image_embed"],
    fields: [prompts],
    listRequests: (model) => listRequests(model, form, listImages()),
    onModel(model) {
      showPrompts(prompts, model);
      view.querySelector(".image-field").hidden = !model.capabilities.includes("image_embed");
    },
    async compute(model, showResults, signal) {
      const texts = readLines(form.texts.value);
      const images = listImages();
      const names = [...texts, ...images.map((image) => image.name)];
      if (!names.length) throw new ApiError("Enter at least one text.");
      if (names.length > MAX_INPUTS) throw new ApiError(`This page compares up to ${MAX_INPUTS} inputs, not ${names.length}.`);
      const responses = await Promise.all(
        listRequests(model, form, images).map(({ path, body, files }) =>
          call(path, { method: "POST", body: files ? { ...body, input: images.map((image) => image.uri) } : body, signal }),
        ),
      );
      const vectors = readVectors(responses.flatMap((response) => response.data));
      draw(showResults, names, vectors);
      const numTokens = responses.reduce((sum, response) => sum + response.usage.total_tokens, 0);
      return `${count(names.length, "vector")} of ${count(flatten(vectors)[0].length, "dimension")}, ${count(numTokens, "token")}`;
    },
  });
}

function showPrompts(field, model) {
  const prompts = Object.keys(model.prompts).filter((name) => model.prompts[name]);
  field.hidden = prompts.length === 0;
  const standard = model.default_prompt_name ? `the model's (${model.default_prompt_name})` : "none";
  const options = prompts.map((name) => element("option", { value: name }, name));
  field.querySelector("select").replaceChildren(element("option", { value: "" }, standard), ...options);
}

/** List the requests that the form stands for: texts and images cannot be mixed in one. */
function listRequests(model, form, images) {
  const output = model.outputs[0];
  const options = {
    // A sparse vector has to be asked for.
    ...(output === "sparse" ? { outputs: ["sparse"] } : {}),
    // OpenAI's client asks for base64, which has no rows.
    ...(output === "multivector" ? { encoding_format: "float" } : {}),
  };
  const texts = readLines(form.texts.value);
  const prompt = form.prompt.value ? { prompt_name: form.prompt.value } : {};
  const requests = [];
  if (texts.length || !images.length) {
    requests.push({ path: "/embeddings", body: { model: model.id, input: texts, ...options, ...prompt } });
  }
  if (images.length) {
    const files = images.map((image) => image.name);
    requests.push({ path: "/embeddings", body: { model: model.id, modality: "image", input: [], ...options }, files });
  }
  return requests;
}

function readVectors(data) {
  const sparse = data.map((item) => item.sparse_embedding);
  return sparse[0] ? densify(sparse) : data.map((item) => item.embedding);
}

function draw(showResults, names, vectors) {
  const isPerToken = Array.isArray(vectors[0][0]);
  showResults(
    element("div", { class: "panel" }, drawHeatMap(names, similarities(vectors), isPerToken ? "MaxSim, averaged over tokens" : "Cosine similarity")),
    element("div", { class: "panel" }, names.length > 1 ? drawProjection(names, project(flatten(vectors))) : element("p", { class: "hint" }, "A projection needs two inputs.")),
  );
}
