// Requests to the server that this page comes from, and the streams that it answers with.

const KEY = "edgekit.key";
const TIMEOUT_MS = 8000;

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";

export function saveKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

// An answer that is an error, in the server's words. `status` is null for errors in the middle of a stream.
export class ServerError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers(extra = {}) {
  const key = savedKey();
  // A header holds bytes; keys are compared as UTF-8.
  const encoded = Array.from(new TextEncoder().encode(key), (byte) => String.fromCharCode(byte)).join("");
  return key ? { ...extra, Authorization: `Bearer ${encoded}` } : extra;
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Not JSON: a proxy's page, or no more than a word.
    if (text.length < 200) error = { message: text.trim() };
  }
  const said = error?.message || response.statusText;
  const wait = response.status === 429 && response.headers.get("Retry-After");
  const message = wait ? `${said} (try again in ${wait} s)` : said;
  throw new ServerError(response.status, message || `HTTP ${response.status}`, error?.code ?? null);
}

export async function get(path) {
  const options = { headers: headers(), cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) };
  return checked(await fetch(path, options));
}

// The chunks of a streamed chat completion, parsed. Ends early, with AbortError, when the signal says so.
export async function* streamChat(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  await checked(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(null, chunk.error.message, chunk.error.code);
    yield chunk;
  }
  throw new ServerError(null, "The connection ended in the middle of the answer.");
}

// The data of server-sent events (WHATWG HTML, 9.2.6). Comments and other fields are passed over.
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A carriage return at the end may be half of a line's end.
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
