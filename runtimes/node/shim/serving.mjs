// Serves a handler on web-standard Request and Response: at most so many calls at a time.

import { createServer } from "node:http";

import { kind } from "./loading.mjs";
import { answering } from "./output.mjs";

const MAX_HEAD = 64 << 10;
const DISCARD = 1 << 20; // bytes of a body that nobody read, which are taken so that the connection can go on
const DISCARD_MS = 1000;

/**
 * Listen on what `where` names until the process ends. Requests wait until `begin(handle, concurrency)` is called
 * on what is returned; `server` is Node's own.
 */
export function listen(where) {
  const waiting = [];
  let handle;
  let concurrency;
  let free = 0;

  async function next(request, response) {
    free -= 1;
    // Of several calls at once nobody can tell which one prints
    if (concurrency === 1) answering(request.headers["x-request-id"] ?? "");
    try {
      if (!response.destroyed) await answer(handle, request, response);
    } finally {
      if (concurrency === 1) answering("");
      free += 1;
      go();
    }
  }

  function go() {
    while (free > 0 && waiting.length > 0) next(...waiting.shift());
  }

  function begin(serving, atOnce) {
    handle = serving;
    free = concurrency = atOnce;
    go();
  }

  const server = createServer({ maxHeaderSize: MAX_HEAD, keepAliveTimeout: 0, requestTimeout: 0 }, (...call) => {
    if (free > 0) next(...call);
    else waiting.push(call);
  });
  server.headersTimeout = 0; // the gateway's deadlines are the only ones
  server.timeout = 0;
  server.on("clientError", refuse);
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(where, () => resolve({ server, begin }));
  });
}

/** Answer one request. Does not throw: whatever the handler does ends in an answer or a broken connection. */
async function answer(handle, incoming, outgoing) {
  const gone = new AbortController();
  const body = new Body(incoming);
  outgoing.on("close", () => {
    if (outgoing.writableFinished) body.discard();
    else gone.abort(new DOMException("The caller went away", "AbortError"));
  });
  let result;
  try {
    const request = requestOf(incoming, body, gone.signal);
    result = await handle(request);
    if (!isResponse(result)) {
      console.error(`The function returned ${kind(result)}, but it must return a Response.`);
      problem(
        outgoing,
        500,
        "The function returned what can't be sent",
        `The function returned ${kind(result)}. A handler must return a Response, such as ` +
          "new Response(\"text\") or Response.json({}).",
      );
      return;
    }
    await send(result, outgoing, gone.signal);
  } catch (error) {
    if (gone.signal.aborted) return; // nobody is there to tell
    console.error(error);
    if (outgoing.headersSent) outgoing.destroy();
    else {
      const type = error instanceof Error ? error.name : kind(error);
      problem(
        outgoing,
        500,
        "The function raised an error",
        `The function raised ${type}. The trace is in the function's log.`,
      );
    }
  }
}

function isResponse(value) {
  return value instanceof Response || (typeof value?.status === "number" && typeof value.headers?.forEach === "function");
}

function requestOf(incoming, body, signal) {
  const headers = new Headers();
  const raw = incoming.rawHeaders;
  for (let i = 0; i < raw.length; i += 2) headers.append(raw[i], raw[i + 1]);
  const scheme = incoming.headers["x-forwarded-proto"] ?? "http";
  let url = `${scheme}://${incoming.headers.host || "localhost"}${incoming.url}`;
  if (!URL.canParse?.(url)) url = new URL(incoming.url, "http://localhost").href;
  const { method } = incoming;
  const init = { method, headers, signal };
  if (method !== "GET" && method !== "HEAD" && body.exists) {
    init.body = body.stream();
    init.duplex = "half";
  }
  return new Request(url, init);
}

/** A request's body: read from the connection when the handler asks for it, thrown away when it did not. */
class Body {
  #incoming;
  #controller = null;
  #discarded = -1;

  constructor(incoming) {
    this.#incoming = incoming;
  }

  get exists() {
    const { headers } = this.#incoming;
    return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
  }

  stream() {
    return new ReadableStream({ pull: (controller) => this.#pull(controller) }, { highWaterMark: 0 });
  }

  #pull(controller) {
    if (this.#controller === null) {
      this.#controller = controller;
      this.#incoming.on("data", (data) => this.#received(data));
      this.#incoming.on("end", () => this.#discarded < 0 && controller.close());
      this.#incoming.on("error", (error) => this.#discarded < 0 && controller.error(error));
    }
    this.#incoming.resume();
  }

  #received(data) {
    if (this.#discarded >= 0) {
      this.#discarded += data.length;
      if (this.#discarded > DISCARD) this.#incoming.destroy();
      return;
    }
    this.#incoming.pause();
    this.#controller.enqueue(new Uint8Array(data.buffer, data.byteOffset, data.length));
  }

  /** Take what was not read, within bounds, so that the next request can come. */
  discard() {
    if (this.#incoming.complete || this.#discarded >= 0) return;
    this.#discarded = 0;
    if (this.#controller === null) this.#incoming.on("data", (data) => this.#received(data));
    const patience = setTimeout(() => this.#incoming.destroy(), DISCARD_MS);
    this.#incoming.once("end", () => clearTimeout(patience));
    this.#incoming.once("close", () => clearTimeout(patience));
    this.#incoming.resume();
  }
}

async function send(response, outgoing, signal) {
  const headers = [];
  for (const [name, value] of response.headers) {
    // what belongs to the connection is ours
    if (!/^(connection|keep-alive|transfer-encoding|upgrade|content-length|trailer)$/i.test(name)) headers.push(name, value);
  }
  const promised = response.headers.get("content-length");
  const bodiless = outgoing.req.method === "HEAD" || response.status === 204 || response.status === 304;
  if (response.body === null || response.body === undefined) {
    if (promised !== null && bodiless) headers.push("content-length", promised);
    else if (!bodiless) headers.push("content-length", "0");
    outgoing.writeHead(response.status, headers).end();
    return;
  }
  const reader = response.body.getReader();
  signal.addEventListener("abort", () => reader.cancel(signal.reason).catch(() => undefined), { once: true });
  const first = await reader.read();
  if (first.done) {
    if (response.status !== 204 && response.status !== 304) headers.push("content-length", promised ?? "0");
    outgoing.writeHead(response.status, headers).end();
    return;
  }
  // A body that is there as a whole ends within this turn of the event loop: then its length is known.
  const second = reader.read();
  const ended = await Promise.race([second, new Promise((resolve) => setImmediate(resolve, null))]);
  if (ended?.done) headers.push("content-length", promised ?? String(bytes(first.value).length));
  else if (promised !== null) headers.push("content-length", promised);
  outgoing.writeHead(response.status, headers);
  if (bodiless) {
    await reader.cancel();
    outgoing.end();
    return;
  }
  let piece = first;
  while (!piece.done) {
    if (!outgoing.write(bytes(piece.value))) await writable(outgoing);
    piece = await (piece === first ? second : reader.read());
  }
  outgoing.end();
}

function bytes(chunk) {
  if (chunk instanceof Uint8Array) return chunk;
  if (typeof chunk === "string") return Buffer.from(chunk);
  throw new TypeError(`A response's stream must give Uint8Array or string, not ${kind(chunk)}`);
}

function writable(outgoing) {
  if (outgoing.destroyed) return undefined;
  return new Promise((resolve) => {
    const done = () => {
      outgoing.off("drain", done);
      outgoing.off("close", done);
      resolve();
    };
    outgoing.on("drain", done);
    outgoing.on("close", done);
  });
}

function problem(outgoing, status, title, detail) {
  const body = JSON.stringify({ type: "about:blank", title, status, detail });
  outgoing.writeHead(status, ["content-type", "application/problem+json", "content-length", Buffer.byteLength(body)]);
  outgoing.end(outgoing.req.method === "HEAD" ? undefined : body);
}

function refuse(error, socket) {
  if (!socket.writable || error.code === "ECONNRESET") {
    socket.destroy();
    return;
  }
  const detail = "The request line, a header field or the body's framing is malformed.";
  const body = JSON.stringify({ type: "about:blank", title: "The request is malformed", status: 400, detail });
  socket.end(
    "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n" +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
