// The served models, which all views share.

import { call } from "./api.js";
import { element } from "./dom.js";

let models = [];
const listeners = [];

/** Read the models from the server. */
export async function refreshModels(options = {}) {
  models = (await call("/models", { timeoutS: 15, ...options })).data;
  listeners.forEach((listener) => listener(models));
  return models;
}

/** Call `listener` whenever the models have been read. */
export function onModels(listener) {
  listeners.push(listener);
}

/** Return the model of this name. */
export function findModel(name) {
  return models.find((model) => model.id === name);
}

/** Keep a select filled with the models that can do one of these tasks; the choice stays if it can. */
export function bindModelSelect(view, capabilities, onChange) {
  const select = view.querySelector("select[name=model]");
  select.addEventListener("change", onChange);
  onModels((all) => {
    const able = all.filter((model) => model.capabilities.some((each) => capabilities.includes(each)));
    // Models that are made for the task come first.
    able.sort((one, other) => rank(one, capabilities) - rank(other, capabilities));
    const chosen = select.value;
    select.replaceChildren(...able.map((model) => element("option", { value: model.id }, model.id)));
    if (able.some((model) => model.id === chosen)) select.value = chosen;
    view.querySelector(".no-model").hidden = able.length > 0;
    view.querySelector("form").hidden = able.length === 0;
    view.querySelector(".code").hidden = able.length === 0;
    onChange();
  });
}

function rank(model, capabilities) {
  return capabilities.includes(model.capabilities[0]) ? 0 : 1;
}
