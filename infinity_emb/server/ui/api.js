// Call the public API: with the key, with a time limit, and with errors in the server's own words.

import { askForKey, getKey } from "./keys.js";

export const server = JSON.parse(document.documentElement.dataset.server);

// This file is at {root}{prefix}/ui/api.js, wherever a proxy serves the server.
const API_URL = new URL("..", import.meta.url).href.replace(/\/$/, "");
const ROOT_URL = API_URL.slice(0, API_URL.length - server.prefix.length);
/** The base URL that clients of OpenAI take. */
export const V1_URL = API_URL.endsWith("/v1") ? API_URL : `${API_URL}/v1`;

/** Where the operator can look further. */
export const DOCS_URL = `${API_URL}/docs`;

/** A request that got no good response; the message is for people. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * Call a route below the prefix, or `/metrics`; return the parsed JSON, or the text of another response.
 *
 * kind: the key to send, `api` or `admin`.
 * isQuiet: do not ask for a key; for what runs in the background.
 */
export async function call(path, { method = "GET", body, signal, timeoutS = 120, kind = "api", isQuiet = false } = {}) {
  const options = { method, body, signal, timeoutS, kind };
  try {
    return await send(path, options);
  } catch (error) {
    const canAsk = error.status === 401 && !isQuiet;
    const reason = getKey(kind) ? "The server refused this key." : `The server asks for ${kind === "admin" ? "the admin" : "an API"} key.`;
    if (!canAsk || !(await askForKey(kind, reason))) throw error;
    return await call(path, options); // a wrong key is asked for again, until the user gives up
  }
}

async function send(path, { method, body, signal, timeoutS, kind }) {
  const url = (path === "/metrics" ? ROOT_URL : API_URL) + path;
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), timeoutS * 1000);
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (getKey(kind)) headers.Authorization = `Bearer ${getKey(kind)}`;
  try {
    const response = await fetch(url, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit.signal]) : limit.signal,
      cache: "no-store",
    });
    // The time limit covers the body as well.
    const text = await response.text();
    if (!response.ok) throw describeFailure(response, text);
    return response.headers.get("content-type")?.includes("json") ? JSON.parse(text) : text;
  } catch (error) {
    if (error instanceof ApiError) throw error;
    if (signal?.aborted) throw new ApiError("Cancelled.");
    if (limit.signal.aborted) throw new ApiError(`No response within ${timeoutS} seconds. Try again, or send less.`);
    throw new ApiError(`The server cannot be reached (${error.message}).`);
  } finally {
    clearTimeout(timer);
  }
}

function describeFailure(response, text) {
  let message = text.trim().slice(0, 500);
  try {
    const content = JSON.parse(text);
    message = content.error?.message ?? content.message ?? message;
  } catch {
    // A proxy may answer with something else than JSON.
  }
  return new ApiError(message || response.statusText || `status ${response.status}`, response.status);
}

/** Write an error for people: the server's words, and the status that it gave. */
export function explain(error) {
  return error.status ? `${error.message} (status ${error.status})` : error.message;
}
