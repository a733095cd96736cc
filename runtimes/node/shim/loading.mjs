// Finds a function's handler: the default export of its file, or the export that the handler names.

import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { inspect, types } from "node:util";

const require = createRequire(import.meta.url);

const AGAIN = "?again";
const SHAPES = "It must be a function (Request) => Response, or an object with such a function named fetch";

/** A function that can't be loaded; the message is what its author must know. */
export class LoadError extends Error {}

/** Import the handler ("file.mjs" or "file.mjs:export") from a folder. Throws LoadError. */
export async function load(handler, folder) {
  const [file, name = "default"] = handler.split(":");
  if (!readdirSync(folder, { recursive: false }).includes(file.split("/")[0])) {
    throw new LoadError(
      `There is no ${file} in the function's folder, which holds ${listed(readdirSync(folder))}. ` +
        'Name the right one with handler = "FILE" in pilotlight.toml.',
    );
  }
  let module;
  try {
    module = await imported(`${folder}/${file}`);
  } catch (error) {
    throw new LoadError(explain(error, folder));
  }
  return callable(find(module, name, file), handler);
}

/** Import a file: without waiting for Node's threads where it can do that, which from 20.19 and 22.12 on it can. */
async function imported(path) {
  const { href } = pathToFileURL(path);
  if (path.endsWith(".mjs") && process.features.require_module) {
    try {
      const module = require(path);
      if (types.isModuleNamespaceObject(module)) return module;
    } catch (error) {
      if (error instanceof SyntaxError) return misspelt(href, error);
      if (error?.code !== "ERR_REQUIRE_ASYNC_MODULE") throw error; // else it waits for something at its top
    }
  }
  return import(href);
}

/**
 * Have import() say what does not parse, or is imported and not there, as it names the place. Nothing runs twice: Node
 * keeps what has failed while it ran, and what could not be linked has not run.
 */
async function misspelt(href, error) {
  try {
    await import(href);
  } catch (again) {
    if (again instanceof SyntaxError) throw again;
    return import(`${href}${AGAIN}`); // under its own name, Node blames itself for what it could not link
  }
  throw error; // Node 20.19 gives what has failed while it ran as if it were there
}

function find(module, name, file) {
  if (name !== "default") {
    const found = module[name] ?? module.default?.[name];
    if (found !== undefined) return found;
  } else if (module.default !== undefined) {
    return module.default?.default ?? module.default; // what TypeScript makes of a default export for CommonJS
  }
  const exports = Object.keys(module).filter((key) => !["default", "module.exports", "__esModule"].includes(key));
  throw new LoadError(
    `${file} has no ${name === "default" ? "default export" : `export named ${name}`}; it exports ${listed(exports)}. ` +
      `${SHAPES}.`,
  );
}

function callable(found, handler) {
  if (typeof found === "function") return found;
  if (typeof found?.fetch === "function") return found.fetch.bind(found);
  throw new LoadError(`The handler ${handler} is ${kind(found)}, which can't be called. ${SHAPES}.`);
}

function explain(error, folder) {
  const text = error instanceof Error ? error.message : inspect(error);
  const missing = /^Cannot find (?:package|module) '([^']+)'/.exec(text);
  if (missing !== null && (error.code === "ERR_MODULE_NOT_FOUND" || error.code === "MODULE_NOT_FOUND")) {
    const wanted = missing[1].startsWith(`${folder}/`) ? missing[1].slice(folder.length + 1) : missing[1];
    return (
      `The function imports '${wanted}', which is not there. If it is a package, add it to dependencies in ` +
      `package.json; if it is a file of the function, commit it.\n${where(error, folder)}`
    );
  }
  return `The function can't be imported: ${error?.name ?? "Error"}: ${text}\n${where(error, folder)}`;
}

/** The lines of a trace that lie in the function's own files, at most three. */
function where(error, folder) {
  const lines = (error?.stack ?? "").split("\n").filter((line) => line.includes(`${folder}/`));
  return lines
    .slice(0, 3)
    .map((line) => line.trim().replaceAll(`file://${folder}/`, "").replaceAll(`${folder}/`, "").replaceAll(AGAIN, ""))
    .map((line) => `  ${line}`)
    .join("\n");
}

function listed(names) {
  const shown = names.filter((name) => !name.startsWith(".")).sort();
  if (shown.length === 0) return "nothing";
  return shown.slice(0, 12).join(", ") + (shown.length > 12 ? " and more" : "");
}

/** Say what a value is, for a message. */
export function kind(value) {
  if (value === null || value === undefined) return String(value);
  const name = typeof value === "object" ? (value.constructor?.name ?? "object") : typeof value;
  return `${/^[aeio]/i.test(name) ? "an" : "a"} ${name}`;
}
