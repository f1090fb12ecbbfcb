// Requests to the service: JSON, and server-sent events over fetch, which unlike EventSource can send a key.

const KEY = "ragherd-key";

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";
export const saveKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

// An RFC 9457 problem document.
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? body?.title ?? `The service answered ${status}.`);
    this.status = status;
    this.body = body;
  }
}

const headers = (extra) => ({ ...(savedKey() ? { Authorization: `Bearer ${savedKey()}` } : {}), ...extra });

async function checked(response) {
  if (response.ok) return response;
  throw new Problem(response.status, await response.json().catch(() => null));
}

export async function get(path, signal) {
  return (await checked(await fetch(path, { headers: headers(), signal }))).json();
}

export async function send(method, path, body, signal) {
  const content = body === undefined ? {} : { "Content-Type": "application/json" };
  const init = { method, headers: headers(content), body: body === undefined ? undefined : JSON.stringify(body), signal };
  return (await checked(await fetch(path, init))).json();
}

// Yields {event, data} until the stream ends. Raises `Problem` if the service refuses it.
export async function* events(path, { method = "GET", body, extra = {}, signal } = {}) {
  const content = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await checked(await fetch(path, {
    method, signal, headers: headers({ Accept: "text/event-stream", ...content, ...extra }),
    body: body === undefined ? undefined : JSON.stringify(body),
  }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const message = parsed(block);
        if (message) yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection if the caller stops early
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}
