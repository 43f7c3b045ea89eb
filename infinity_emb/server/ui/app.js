// The entry: start the views, and show the one that the address names.

import { DOCS_URL, explain, server } from "./api.js";
import { refreshModels } from "./catalog.js";
import { startClassify } from "./classify.js";
import { startEmbed } from "./embed.js";
import { askForKey, loadKeys } from "./keys.js";
import { showLive, startLive } from "./live.js";
import { startModels } from "./models.js";
import { startRerank } from "./rerank.js";

const VIEWS = ["embed", "rerank", "classify", "models", "live"];
const TASKS = { embed: ["embed", "embed_sparse", "image_embed"], rerank: ["rerank"], classify: ["classify"] };
const catalogError = document.getElementById("catalog-error");

function show(name) {
  for (const each of VIEWS) {
    document.getElementById(`view-${each}`).hidden = each !== name;
    const link = document.querySelector(`nav a[href="#${each}"]`);
    if (each === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · Infinity`;
  showLive(name === "live");
}

function follow() {
  const name = location.hash.slice(1);
  if (VIEWS.includes(name)) show(name);
}

async function load() {
  catalogError.textContent = "";
  try {
    const models = await refreshModels();
    // Without a view in the address: the one for what the first model was made for.
    const task = VIEWS.find((name) => TASKS[name]?.includes(models[0]?.capabilities[0]));
    if (!VIEWS.includes(location.hash.slice(1))) show(task ?? "models");
  } catch (error) {
    const again = document.createElement("button");
    again.textContent = "Try again";
    again.addEventListener("click", load);
    catalogError.replaceChildren(`The models could not be read: ${explain(error)} `, again);
  }
}

const keyButton = document.getElementById("key-button");
keyButton.addEventListener("click", async () => {
  if (await askForKey("api", "Sent with every request from this page.")) load();
});
const docsLink = document.getElementById("docs-link");
docsLink.href = DOCS_URL;
docsLink.hidden = !server.hasDocs;
addEventListener("hashchange", () => {
  follow();
  document.getElementById("main").focus({ preventScroll: true });
});

loadKeys();
startEmbed();
startRerank();
startClassify();
startModels();
startLive();
if (VIEWS.includes(location.hash.slice(1))) follow();
else show("embed");
load();
