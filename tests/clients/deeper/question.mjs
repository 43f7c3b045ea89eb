// What every script here is asked, and how it tells what it found; `question.py` for Node.

export const { url, keyed_url, key, texts, query } = JSON.parse(process.env.QUESTION);

/** Class and text of what the user sees of a failure. */
export async function errorOf(call) {
  try {
    return ["no error", JSON.stringify(await call()).slice(0, 500)];
  } catch (error) {
    return [error.constructor.name, error.message];
  }
}

/** Print one JSON object: vectors, rankings, labels and errors, each by the way they came. */
export function tell(found) {
  console.log(JSON.stringify(found));
}
