// The Node shim: serves a function's default export over HTTP/1.1, as contract.md has it.
//
// It boots with a listener on descriptor 3 and a control socket on 4, answers requests to itself so that
// everything is warm, and then waits for the function. Node's own modules are all that it needs.

import { writeSync } from "node:fs";
import { connect, Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { useCompiled } from "./compiling.mjs";
import { LoadError, load } from "./loading.mjs";
import { mark } from "./output.mjs";
import { listen } from "./serving.mjs";

const LISTENER = 3;
const CONTROL = 4;
const HEAD = "HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nX-Forwarded-Proto: http\r\nConnection: close\r\n";
const TIMES = 20; // after which the first real request takes little longer than the next ones
const REHEARSED = [
  `POST /a?b=c ${HEAD}Content-Length: 2\r\n\r\n{}`,
  `GET /a?b=c ${HEAD}\r\n`,
];

/** Load a function of our own and have it answer on a socket of our own: a real one finds all paths warm then. */
async function rehearse() {
  const path = `${tmpdir()}/.pilotlight-rehearsal-${process.pid}`;
  const { emitWarning } = process;
  process.emitWarning = () => undefined; // what Node says once of how modules are loaded is not the function's
  const handle = await load("rehearsal.mjs", dirname(fileURLToPath(import.meta.url)));
  process.emitWarning = emitWarning;
  const { server, begin } = await listen({ path });
  begin(handle, 1);
  for (const request of Array(TIMES).fill(REHEARSED).flat()) {
    await new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.on("error", reject);
      socket.on("close", resolve);
      socket.resume();
      socket.write(request);
    });
  }
  await new Promise((resolve) => server.close(resolve));
}

/** Return the first line that comes over the control socket, as JSON; null when it is closed before. */
function receive(control) {
  return new Promise((resolve, reject) => {
    let received = "";
    control.setEncoding("utf8");
    control.on("data", (data) => {
      received += data;
      const end = received.indexOf("\n");
      if (end >= 0) resolve(JSON.parse(received.slice(0, end)));
    });
    control.on("end", () => resolve(null));
    control.on("error", reject);
  });
}

function send(control, message) {
  return new Promise((resolve) => control.write(`${JSON.stringify(message)}\n`, resolve));
}

async function main() {
  const control = new Socket({ fd: CONTROL, readable: true, writable: true });
  mark();
  await rehearse();
  const { begin } = await listen({ fd: LISTENER });
  await send(control, { booted: true });
  const message = await receive(control);
  if (message === null) process.exit(0);
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, message.env);
  process.chdir(message.folder);
  useCompiled(message.folder);
  if (message.debug) (await import("node:inspector")).open(message.debug, "127.0.0.1");

  const exited = (code) => {
    const error = `The function ends the process while it is imported, with code ${code}.`;
    writeSync(CONTROL, `${JSON.stringify({ error })}\n`);
  };
  process.once("exit", exited);
  let handle;
  try {
    handle = await load(message.handler, message.folder);
  } catch (error) {
    process.removeListener("exit", exited);
    if (!(error instanceof LoadError)) throw error;
    console.error(error.message);
    await send(control, { error: error.message });
    process.exit(1);
  }
  process.removeListener("exit", exited);
  begin(handle, message.concurrency);
  await send(control, { ready: true });
  control.destroy();
}

await main();
