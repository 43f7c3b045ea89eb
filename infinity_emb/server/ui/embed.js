// Embed texts and images; show how similar they are, and a map of them.

import { ApiError, call } from "./api.js";
import { bindModelSelect, findModel } from "./catalog.js";
import { drawHeatMap, drawProjection } from "./charts.js";
import { addCodePanel } from "./code_panel.js";
import { count, element, readLines } from "./dom.js";
import { bindImages } from "./images.js";
import { bindTask } from "./task.js";
import { densify, flatten, project, similarities } from "./vectors.js";

// A table of more cells is no longer something to read.
const MAX_INPUTS = 50;

/** Start the view. */
export function startEmbed() {
  const view = document.getElementById("view-embed");
  const form = view.querySelector("form");
  const showCode = addCodePanel(view, "embed");
  const listImages = bindImages(view, update);
  let shownModel = null;

  function update() {
    const model = findModel(form.model.value);
    if (!model) return;
    // Not on every reading of the models, which would undo what the user chose.
    if (model.id !== shownModel) showOptions(form, model);
    shownModel = model.id;
    showCode(listRequests(model, form, listImages()));
  }

  form.addEventListener("input", update);
  bindModelSelect(view, ["embed", "embed_sparse", "image_embed"], update);
  bindTask(view, "Embed", async (signal) => {
    const model = findModel(form.model.value);
    const texts = readLines(form.texts.value);
    const images = listImages();
    const names = [...texts, ...images.map((image) => image.name)];
    if (!names.length) throw new ApiError("Enter at least one text.");
    if (names.length > MAX_INPUTS) throw new ApiError(`This page compares up to ${MAX_INPUTS} inputs, not ${names.length}.`);
    const requests = listRequests(model, form, images);
    const responses = await Promise.all(
      requests.map(({ path, body, files }) =>
        call(path, { method: "POST", body: files ? { ...body, input: images.map((image) => image.uri) } : body, signal }),
      ),
    );
    const vectors = readVectors(responses.flatMap((response) => response.data));
    draw(view.querySelector(".results"), names, vectors);
    const numTokens = responses.reduce((sum, response) => sum + response.usage.total_tokens, 0);
    return `${count(names.length, "vector")} of ${count(flatten(vectors)[0].length, "dimension")}, ${count(numTokens, "token")}`;
  });
}

function showOptions(form, model) {
  const prompts = Object.keys(model.prompts).filter((name) => model.prompts[name]);
  form.querySelector(".prompt-field").hidden = prompts.length === 0;
  const standard = model.default_prompt_name ? `the model's (${model.default_prompt_name})` : "none";
  form.prompt.replaceChildren(element("option", { value: "" }, standard), ...prompts.map((name) => element("option", { value: name }, name)));
  form.querySelector(".image-field").hidden = !model.capabilities.includes("image_embed");
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

function draw(results, names, vectors) {
  const isPerToken = Array.isArray(vectors[0][0]);
  results.replaceChildren(
    element("div", { class: "panel" }, drawHeatMap(names, similarities(vectors), isPerToken ? "MaxSim, averaged over tokens" : "Cosine similarity")),
    element("div", { class: "panel" }, names.length > 1 ? drawProjection(names, project(flatten(vectors))) : element("p", { class: "hint" }, "A projection needs two inputs.")),
  );
  results.hidden = false;
}
