// Rerank documents, and let people see them move to their places.

import { ApiError, call } from "./api.js";
import { bindModelSelect, findModel } from "./catalog.js";
import { drawBar } from "./charts.js";
import { addCodePanel } from "./code_panel.js";
import { count, element, formatNumber, readLines } from "./dom.js";
import { bindTask } from "./task.js";

/** Start the view. */
export function startRerank() {
  const view = document.getElementById("view-rerank");
  const form = view.querySelector("form");
  const showCode = addCodePanel(view, "rerank");
  const makeBody = () => ({ model: form.model.value, query: form.query.value, documents: readLines(form.documents.value) });
  const update = () => findModel(form.model.value) && showCode([{ path: "/rerank", body: makeBody() }]);

  form.addEventListener("input", update);
  bindModelSelect(view, ["rerank"], update);
  bindTask(view, "Rerank", async (signal) => {
    const body = makeBody();
    if (!body.documents.length) throw new ApiError("Enter at least one document.");
    const response = await call("/rerank", { method: "POST", body, signal });
    draw(view.querySelector(".results"), body.documents, response.results);
    return `${count(body.documents.length, "document")}, ${count(response.usage.total_tokens, "token")}`;
  });
}

function draw(results, documents, ranking) {
  const scores = ranking.map((each) => each.relevance_score);
  const [lowest, highest] = [Math.min(0, ...scores), Math.max(...scores)];
  const items = ranking.map(({ index, relevance_score: score }, place) =>
    element(
      "li",
      {},
      element("p", {}, documents[index]),
      drawBar(describeMove(index, place), formatNumber(score), (score - lowest) / (highest - lowest || 1)),
    ),
  );
  // They start in the order of the form and move from there.
  const list = element("ol", { class: "ranking" });
  ranking.forEach(({ index }, place) => (items[place].dataset.index = index));
  list.append(...[...items].sort((one, other) => one.dataset.index - other.dataset.index));
  results.replaceChildren(element("div", { class: "panel" }, element("h2", {}, "Ranking"), list));
  results.hidden = false;
  reorder(list, items);
}

function describeMove(index, place) {
  if (index === place) return `stays at ${place + 1}`;
  return `${index > place ? "↑" : "↓"} from ${index + 1} to ${place + 1}`;
}

function reorder(list, items) {
  const before = new Map(items.map((item) => [item, item.getBoundingClientRect().top]));
  list.replaceChildren(...items);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const item of items) {
    const distance = before.get(item) - item.getBoundingClientRect().top;
    item.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: 450, easing: "ease-in-out" });
  }
}
