// Run one request of a form at a time: show that it runs, let the user cancel it, and show how it ended.

import { explain } from "./api.js";
import { element, formatSeconds } from "./dom.js";

/**
 * Give a form its buttons and its status.
 *
 * action: takes an AbortSignal, draws the results, and returns a sentence about them.
 */
export function bindTask(view, label, action) {
  const form = view.querySelector("form");
  const run = element("button", { type: "submit" }, label);
  const cancel = element("button", { type: "button", class: "quiet", hidden: true }, "Cancel");
  const status = element("span", { role: "status", class: "status" });
  const error = element("div", { role: "alert", class: "error" });
  form.querySelector(".actions").append(run, cancel, status);
  form.append(error);
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
