// The HTTP API as the page uses it. Nothing here knows the document.

const BASE = new URL("../v1/", import.meta.url);
export const STREAM = new URL("stream", BASE);
const POLL_GAP_MS = 200; // Between two receipt polls, should the server answer without waiting.
const FOLLOW_LIMIT_MS = 300_000; // A paused trainer keeps a receipt open; stop asking after 5 minutes.

/** An answer that is not a success; `status` 0 means that no answer came. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const words = [body.title, body.detail].filter((word) => typeof word === "string");
  const [first] = Array.isArray(body.errors) ? body.errors : [];
  if (first?.detail) words.push(first.detail);
  return new ApiError(response.status, `${response.status}: ${words.join("; ") || response.statusText}`);
}

async function call(method, path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const options = { method, headers, body: JSON.stringify(body), signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer.");
  }
  if (!response.ok) throw await problemOf(response);
  return response.json();
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The request as a command for a POSIX shell. */
export function asCurl(method, path, body) {
  const url = quoted(new URL(path, BASE).href);
  if (body === undefined) return `curl -sX ${method} ${url}`;
  return `curl -sX ${method} ${url} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
}

/** Calls of the page; `onRequest(method, path, body)` hears of each that the visitor caused. */
export function createApi(onRequest) {
  const told = (method, path, body) => {
    onRequest(method, path, body);
    return call(method, path, body);
  };
  return {
    stats: () => call("GET", "stats"),
    schema: () => call("GET", "schema"),
    rank: (user, items) => told("POST", "rank", { user, candidates: items.map((item) => ({ item })) }),
    click: (requestId, item) => told("POST", "feedback", { request_id: requestId, item, event: "click" }),
    setPaused: (paused) => told("POST", `admin/trainer/${paused ? "pause" : "resume"}`, {}),
    snapshots: () => call("GET", "admin/snapshots"),
    rollback: (to, isDry) => told("POST", "admin/rollback", { to, reason: "from the page", dry_run: isDry }),
    drift: () => told("POST", "demo/drift", {}),
    embedding: (slot, key, other, isTold) => {
      const query = other === null ? "" : `?with=${encodeURIComponent(other)}`;
      const path = `embeddings/${encodeURIComponent(slot)}/${encodeURIComponent(key)}${query}`;
      return isTold ? told("GET", path) : call("GET", path);
    },
    follow,
  };
}

/** Asks for a receipt until its event is servable or never will be, passing each answer on. */
async function follow(receipt, onAnswer, signal) {
  const end = Date.now() + FOLLOW_LIMIT_MS;
  for (;;) {
    const answer = await call("GET", `events/${encodeURIComponent(receipt)}?wait=5s`, undefined, signal);
    onAnswer(answer);
    if (answer.state === "servable" || Date.now() > end) return answer;
    await new Promise((resolve) => setTimeout(resolve, POLL_GAP_MS));
  }
}

/** Seconds from queued to trained and to servable, each null while unknown. */
export function receiptTimes({ queued_at, trained_at, event_to_servable_seconds }) {
  const trained = trained_at && Math.max(0, Date.parse(trained_at) - Date.parse(queued_at)) / 1000;
  return { trained, servable: event_to_servable_seconds };
}
