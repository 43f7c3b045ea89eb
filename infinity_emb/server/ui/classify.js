// Classify texts, and show the labels of each as bars.

import { ApiError, call } from "./api.js";
import { bindModelSelect, findModel } from "./catalog.js";
import { drawBar } from "./charts.js";
import { addCodePanel } from "./code_panel.js";
import { count, element, readLines } from "./dom.js";
import { bindTask } from "./task.js";

// Some classifiers have hundreds of labels; the first ones are the most likely.
const MAX_LABELS = 8;

/** Start the view. */
export function startClassify() {
  const view = document.getElementById("view-classify");
  const form = view.querySelector("form");
  const showCode = addCodePanel(view, "classify");
  const makeBody = () => ({ model: form.model.value, input: readLines(form.texts.value) });
  const update = () => findModel(form.model.value) && showCode([{ path: "/classify", body: makeBody() }]);

  form.addEventListener("input", update);
  bindModelSelect(view, ["classify"], update);
  bindTask(view, "Classify", async (signal) => {
    const body = makeBody();
    if (!body.input.length) throw new ApiError("Enter at least one text.");
    const response = await call("/classify", { method: "POST", body, signal });
    const results = view.querySelector(".results");
    results.replaceChildren(...body.input.map((text, i) => drawLabels(text, response.data[i])));
    results.hidden = false;
    return `${count(body.input.length, "text")}, ${count(response.usage.total_tokens, "token")}`;
  });
}

function drawLabels(text, labels) {
  // Not every activation gives probabilities.
  const highest = Math.max(1, ...labels.map(({ score }) => score));
  const numHidden = labels.length - MAX_LABELS;
  return element(
    "div",
    { class: "panel" },
    element("h2", { class: "quote" }, text),
    ...labels.slice(0, MAX_LABELS).map(({ label, score }) => drawBar(label, score.toFixed(3), score / highest)),
    numHidden > 0 && element("p", { class: "hint" }, `and ${count(numHidden, "less likely label")}`),
  );
}
