// Describe the served models; load, reload and unload them with the admin key.

import { ApiError, call, explain, server } from "./api.js";
import { onModels, refreshModels } from "./catalog.js";
import { openDialog } from "./dialogs.js";
import { element, readLines } from "./dom.js";

const CAPABILITIES = {
  embed: "embeds texts",
  embed_sparse: "sparse vectors",
  image_embed: "embeds images",
  audio_embed: "embeds audio",
  rerank: "reranks",
  classify: "classifies",
};
// Loading may download a model.
const LOAD_TIMEOUT_S = 3600;
const view = document.getElementById("view-models");

/** Start the view. */
export function startModels() {
  const form = view.querySelector("form.load");
  form.hidden = !server.hasAdmin;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change("Loading", form.model_id.value, async () => {
      await callAdmin("", { method: "POST", body: readOptions(form) });
      form.reset();
    });
  });
  onModels((models) => view.querySelector(".cards").replaceChildren(...models.map(drawModel)));
}

const writeCount = (value) => value.toLocaleString("en");

function drawModel(model) {
  const prompts = Object.keys(model.prompts).filter((name) => model.prompts[name]);
  const facts = {
    Kind: [model.kind],
    Dtype: [model.dtype, model.dtype_reason],
    Attention: [model.attention, model.attention_reason],
    Engine: [`${model.engine} on ${model.device}`, model.engine_reason],
    Vectors: model.embedding_dimension > 0 && [`${model.embedding_dimension} dimensions, ${model.embedding_dtype}, ${model.similarity}`, model.outputs.join(", ")],
    Labels: model.labels.length > 0 && [`${model.labels.length}`, model.labels.slice(0, 12).join(", ")],
    "Tokens per text": model.max_tokens && [writeCount(model.max_tokens), `cut at the ${model.truncation_side}`],
    "Tokens per batch": [writeCount(model.max_batch_tokens), `${writeCount(model.stats.batch_size)} inputs at most`],
    Prompts: prompts.length > 0 && [prompts.join(", "), model.default_prompt_name && `default: ${model.default_prompt_name}`],
    Aliases: model.aliases.length > 0 && [model.aliases.join(", ")],
    Weights: [model.origin, model.revision],
  };
  const rows = Object.entries(facts).filter(([, fact]) => fact);
  return element(
    "article",
    { class: "panel model", "aria-label": model.id },
    element("h2", {}, model.id, " ", element("span", { class: model.is_loaded ? "badge good" : "badge" }, model.is_loaded ? "loaded" : "loads at the next request")),
    element("ul", { class: "chips", "aria-label": "Can do" }, ...model.capabilities.map((each) => element("li", {}, CAPABILITIES[each] ?? each))),
    element("dl", {}, ...rows.map(([name, [value, reason]]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, reason && element("span", { class: "hint" }, reason))))),
    server.hasAdmin && drawActions(model.id),
  );
}

function drawActions(name) {
  const path = `/${encodeURI(name).replaceAll("?", "%3F").replaceAll("#", "%23")}`;
  const reload = () => change("Reloading", name, () => callAdmin(`${path}/reload`, { method: "POST" }));
  const unload = async () => {
    if (await confirm(`Unload ${name}?`, "It finishes the requests that it has accepted, and is no longer served.", "Unload")) {
      change("Unloading", name, () => callAdmin(path, { method: "DELETE" }));
    }
  };
  return element(
    "div",
    { class: "actions" },
    element("button", { type: "button", class: "quiet", "aria-label": `Reload ${name}`, onclick: reload }, "Reload"),
    element("button", { type: "button", class: "quiet danger", "aria-label": `Unload ${name}`, onclick: unload }, "Unload"),
  );
}

function callAdmin(path, options) {
  return call(`/admin/models${path}`, { kind: "admin", timeoutS: LOAD_TIMEOUT_S, ...options });
}

async function change(verb, name, action) {
  const [status, error] = [view.querySelector(".status"), view.querySelector(".error")];
  status.textContent = `${verb} ${name}…`;
  error.textContent = "";
  try {
    await action();
    status.textContent = `${verb} ${name}: done.`;
  } catch (failure) {
    status.textContent = "";
    error.textContent = explain(failure);
  }
  // Also after a failure, which may have changed what is loaded.
  await refreshModels().catch((failure) => (error.textContent ||= explain(failure)));
}

/** Read `name: value` and `--name value` lines as options of the command line. */
function readOptions(form) {
  const options = { model_id: form.model_id.value.trim() };
  if (form.served_model_name.value.trim()) options.served_model_name = form.served_model_name.value.trim();
  for (const line of readLines(form.options.value)) {
    const match = /^-*([\w-]+)(?:\s*[:=]\s*|\s+)(.+)$/.exec(line);
    if (!match) throw new ApiError(`"${line}" is not an option; write for example dtype: float16`);
    options[match[1].replaceAll("-", "_")] = match[2];
  }
  return options;
}

function confirm(title, message, action) {
  const dialog = document.getElementById("confirm-dialog");
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-message").textContent = message;
  dialog.querySelector("[type=submit]").textContent = action;
  return openDialog(dialog);
}
