// Show the request of a form as code, in the language that the user chose, with a button to copy it.

import { V1_URL } from "./api.js";
import { writeCode } from "./code.js";
import { element } from "./dom.js";
import { getKey } from "./keys.js";

const LANGUAGES = { curl: "curl", python: "Python", openai: "OpenAI client" };

/** Add the panel to a view; the function it returns draws the code of these requests, one after the other. */
export function addCodePanel(view, name) {
  const place = element("div", { class: "code" });
  const code = element("code", {});
  const copied = element("span", { role: "status", class: "hint" });
  const radios = Object.entries(LANGUAGES).map(([language, title]) =>
    element("label", {}, element("input", { type: "radio", name: `${name}-language`, value: language, checked: language === "curl", onchange: show }), title),
  );
  const copy = element("button", { type: "button", class: "quiet", onclick: copyCode }, "Copy");
  let requests = [];

  function show() {
    const language = place.querySelector("input:checked").value;
    const hasKey = Boolean(getKey("api"));
    code.textContent = requests.map((request) => writeCode({ url: V1_URL, hasKey, ...request })[language]).join("\n\n");
    copied.textContent = "";
  }

  async function copyCode() {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied.textContent = "Copied";
    } catch {
      // Browsers give the clipboard to pages over HTTPS and on localhost only.
      getSelection().selectAllChildren(code);
      copied.textContent = "Selected: press Ctrl+C or ⌘C";
    }
  }

  view.append(place);
  place.append(
    element(
      "div",
      { class: "panel" },
      element("h2", {}, "The same request as code"),
      element("div", { class: "code-bar" }, element("fieldset", { class: "segments" }, element("legend", { class: "unseen" }, "Language"), ...radios), copy, copied),
      element("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, code),
    ),
  );
  return (next) => {
    requests = next;
    show();
  };
}
