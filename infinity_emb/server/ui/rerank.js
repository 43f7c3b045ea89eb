// Rerank documents, and let people see them move to their places.

import { ApiError, call } from "./api.js";
import { drawBar } from "./charts.js";
import { count, element, formatNumber, readLines } from "./dom.js";
import { startTask } from "./task.js";

/** Start the view. */
export function startRerank() {
  const form = document.querySelector("#view-rerank form");
  const makeBody = (model) => ({ model: model.id, query: form.query.value, documents: readLines(form.documents.value) });

  startTask("rerank", {
    verb: "reranks",
    capabilities: ["rerank"],
    listRequests: (model) => [{ path: "/rerank", body: makeBody(model) }],
    async compute(model, showResults, signal) {
      const body = makeBody(model);
      if (!body.documents.length) throw new ApiError("Enter at least one document.");
      const response = await call("/rerank", { method: "POST", body, signal });
      draw(showResults, body.documents, response.results);
      return `${count(body.documents.length, "document")}, ${count(response.usage.total_tokens, "token")}`;
    },
  });
}

function draw(showResults, documents, ranking) {
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
  showResults(element("div", { class: "panel" }, element("h2", {}, "Ranking"), list));
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
