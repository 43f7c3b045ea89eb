// The API key and the admin key: in memory, and in the browser's storage only where the user asks for it.

import { openDialog } from "./dialogs.js";

const STORAGE = "infinity-keys";
const TITLES = { api: "API key", admin: "Admin key" };

const keys = { api: "", admin: "" };
const waiting = {}; // kind → promise of the dialog that is open for it
const dialog = document.getElementById("key-dialog");
const form = dialog.querySelector("form");
let previous = Promise.resolve(); // one dialog at a time

/** Read the keys that the user wanted to be remembered. */
export function loadKeys() {
  Object.assign(keys, readStorage());
  showState();
}

/** Return the key of a kind, `api` or `admin`; empty if there is none. */
export function getKey(kind) {
  return keys[kind];
}

/** Ask for a key; resolves with whether one was given. Requests that fail together share one dialog. */
export function askForKey(kind, message) {
  waiting[kind] ??= (previous = previous.then(() => showDialog(kind, message))).finally(() => delete waiting[kind]);
  return waiting[kind];
}

function showDialog(kind, message) {
  document.getElementById("key-title").textContent = TITLES[kind];
  document.getElementById("key-label").textContent = TITLES[kind];
  document.getElementById("key-message").textContent = message;
  form.key.value = "";
  form.remember.checked = kind in readStorage();
  form.forget.hidden = !keys[kind];
  form.forget.onclick = () => {
    setKey(kind, "", false);
    dialog.close();
  };
  return openDialog(dialog, () => setKey(kind, form.key.value.trim(), form.remember.checked)).finally(() => {
    form.key.value = "";
  });
}

function setKey(kind, value, isRemembered) {
  keys[kind] = value;
  const stored = readStorage();
  delete stored[kind];
  if (isRemembered && value) stored[kind] = value;
  writeStorage(stored);
  showState();
}

function showState() {
  document.getElementById("key-button").textContent = keys.api ? "API key ✓" : "API key";
}

// Browsers may refuse storage, for example in private windows: keys are then forgotten.
function readStorage() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE)) ?? {};
  } catch {
    return {};
  }
}

function writeStorage(stored) {
  try {
    if (Object.keys(stored).length) localStorage.setItem(STORAGE, JSON.stringify(stored));
    else localStorage.removeItem(STORAGE);
  } catch {
    // see readStorage
  }
}
