// Write the request of a form as code to copy. Keys never stand in it: it reads them from the environment.

/**
 * Return the same request for curl, Python and OpenAI's client.
 *
 * body: the JSON body; where `files` are given, its input comes from these image files.
 */
export function writeCode({ url, path, body, files = [], hasKey }) {
  const request = { url, path, body, files, hasKey };
  return { curl: writeCurl(request), python: writePython(request), openai: writeOpenai(request) };
}

/** Quote a text for a POSIX shell. */
export function quoteShell(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function writeCurl({ url, path, body, files, hasKey }) {
  const lines = [`curl ${quoteShell(url + path)}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $INFINITY_API_KEY"');
  if (!files.length) return [...lines, `-d ${quoteShell(JSON.stringify(body, null, 2))}`].join(" \\\n  ");
  // printf puts each file where a %s stands; its format needs \ and % twice.
  const format = JSON.stringify({ ...body, input: files.map(() => "data:;base64,\0") });
  const escaped = format.replaceAll("\\u0000", "\0").replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("\0", "%s");
  const contents = files.map((file) => `"$(base64 < ${quoteShell(file.startsWith("-") ? `./${file}` : file)} | tr -d '\\n')"`);
  return `printf ${quoteShell(escaped)} \\\n  ${contents.join(" \\\n  ")} |\n${[...lines, "-d @-"].join(" \\\n  ")}`;
}

function writePython({ url, path, body, files, hasKey }) {
  return [
    ...writeImports(files, hasKey, "import requests"),
    "response = requests.post(",
    `    ${JSON.stringify(url + path)},`,
    ...(hasKey ? ['    headers={"Authorization": "Bearer " + os.environ["INFINITY_API_KEY"]},'] : []),
    `    json=${indent(writeBody(body, files))},`,
    "    timeout=120,",
    ")",
    "response.raise_for_status()",
    "print(response.json())",
  ].join("\n");
}

function writeOpenai({ url, path, body, files, hasKey }) {
  return [
    ...writeImports(files, hasKey, "from openai import OpenAI"),
    // The client insists on a key.
    `client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${hasKey ? 'os.environ["INFINITY_API_KEY"]' : '"none"'})`,
    ...(path === "/embeddings" && !body.outputs ? callEmbeddings(body, files) : callPost(path, body, files)),
  ].join("\n");
}

function writeImports(files, hasKey, last) {
  const standard = [files.length && "import base64", hasKey && "import os", files.length && "from pathlib import Path"].filter(Boolean);
  const reader = [
    "",
    "",
    "def read_image(path):",
    '    return "data:;base64," + base64.b64encode(Path(path).read_bytes()).decode()',
    "",
  ];
  return [...standard, ...(standard.length ? [""] : []), last, ...(files.length ? reader : []), ""];
}

function callEmbeddings({ model, input, ...extra }, files) {
  const { encoding_format: encoding, ...rest } = extra;
  return [
    "response = client.embeddings.create(",
    `    model=${JSON.stringify(model)},`,
    `    input=${indent(files.length ? writeFiles(files) : JSON.stringify(input, null, 4))},`,
    ...(encoding ? [`    encoding_format=${JSON.stringify(encoding)},`] : []),
    ...(Object.keys(rest).length ? [`    extra_body=${JSON.stringify(rest)},`] : []),
    ")",
    "print([item.embedding for item in response.data])",
  ];
}

function callPost(path, body, files) {
  // OpenAI's API has no such route; its client sends the request all the same.
  return [
    "response = client.post(",
    `    ${JSON.stringify(path)},`,
    `    body=${indent(writeBody(body, files))},`,
    "    cast_to=object,",
    ")",
    "print(response)",
  ];
}

// The bodies hold texts, numbers and lists only, whose JSON is Python as well.
function writeBody(body, files) {
  const text = JSON.stringify(files.length ? { ...body, input: "\0" } : body, null, 4);
  return text.replace('"\\u0000"', () => indent(writeFiles(files)));
}

function writeFiles(files) {
  return `[read_image(path) for path in ${JSON.stringify(files)}]`;
}

function indent(text) {
  return text.replaceAll("\n", "\n    ");
}
