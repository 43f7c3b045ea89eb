// The view of a task: a form with the model to use, its results, and its requests as code.

import { explain } from "./api.js";
import { bindModelSelect, findModel } from "./catalog.js";
import { addCodePanel } from "./code_panel.js";
import { element, formatSeconds } from "./dom.js";

/**
 * Complete the view of a task, and return the function to call when its requests have changed.
 *
 * verb: of a model that has one of the capabilities.
 * fields: shown beside the model.
 * listRequests: takes the model; returns the requests that the form stands for.
 * onModel: takes the model when another one is chosen.
 * compute: takes the model, a function that shows elements as the results, and an AbortSignal; returns a
 *   sentence about the results.
 */
export function startTask(name, { verb, capabilities, fields = [], listRequests, onModel = () => {}, compute }) {
  const view = document.getElementById(`view-${name}`);
  const form = view.querySelector("form");
  const select = element("select", { name: "model" });
  const results = element("div", { class: "results", hidden: true });
  const link = element("a", { href: "#models" }, "Models");
  form.before(element("p", { class: "notice no-model", hidden: true }, `No served model ${verb}. An operator can load one under `, link, "."));
  form.prepend(element("div", { class: "fields" }, element("label", {}, "Model ", select), ...fields));
  view.append(results);
  const showCode = addCodePanel(view, name);
  let shownModel = null;

  function update() {
    const model = findModel(select.value);
    if (!model) return;
    // Not on every reading of the models, which would undo what the user chose.
    if (model.id !== shownModel) onModel(model);
    shownModel = model.id;
    showCode(listRequests(model));
  }

  function showResults(...children) {
    results.replaceChildren(...children);
    results.hidden = false;
  }

  form.addEventListener("input", update);
  bindModelSelect(view, capabilities, update);
  bindRun(view, view.querySelector("h1").textContent, (signal) => compute(findModel(select.value), showResults, signal));
  return update;
}

/**
 * Give a form its buttons and its status: one request runs at a time, and can be cancelled.
 *
 * action: takes an AbortSignal, draws the results, and returns a sentence about them.
 */
function bindRun(view, label, action) {
  const form = view.querySelector("form");
  const run = element("button", { type: "submit" }, label);
  const cancel = element("button", { type: "button", class: "quiet", hidden: true }, "Cancel");
  const status = element("span", { role: "status", class: "status" });
  const error = element("div", { role: "alert", class: "error" });
  form.append(element("div", { class: "actions" }, run, cancel, status), error);
  let running = null;

  async function start() {
    running?.abort();
    const mine = (running = new AbortController());
    const startedAt = performance.now();
    const elapsed = () => formatSeconds((performance.now() - startedAt) / 1000);
    error.textContent = "";
    status.textContent = "Waiting for the server…";
    cancel.hidden = false;
    view.setAttribute("aria-busy", "true");
    try {
      const summary = await action(mine.signal);
      if (running === mine) status.textContent = `${summary}, ${elapsed()}`;
    } catch (failure) {
      if (running !== mine) return; // a later request has taken over
      status.textContent = "";
      error.textContent = explain(failure);
    } finally {
      if (running === mine) {
        running = null;
        cancel.hidden = true;
        view.removeAttribute("aria-busy");
      }
    }
  }

  cancel.addEventListener("click", () => {
    running?.abort();
    run.focus(); // the button that had the focus disappears
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}
