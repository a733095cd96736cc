// Loads a function, and has Node write what it has compiled for that to /build. See compile.mjs.
// An error does not matter here: if it is there at the first real start too, that tells it.
import module from "node:module";
import { pathToFileURL } from "node:url";

const [file] = process.argv.slice(2);
module.enableCompileCache?.("/build");
try {
  await import(pathToFileURL(`/function/${file}`).href);
} finally {
  module.flushCompileCache?.();
  process.exit();
}
