// Has Node use the compiled code that the function's build has left in its layer (see ../build/compile.mjs).

import { existsSync, mkdtempSync, readdirSync, symlinkSync } from "node:fs";
import module from "node:module";
import { tmpdir } from "node:os";

const FOLDER = ".compile-cache";

/**
 * Look into folder's cache from now on, if it has one. Node itself refuses what another version has made, or
 * from another source.
 *
 * Node wants a folder of this user's that it can write to, while the layer is read-only and was made by the user
 * of another sandbox. So it gets one with a link to the layer under the name that it looks for.
 */
export function useCompiled(folder) {
  if (module.enableCompileCache === undefined || !existsSync(`${folder}/${FOLDER}`)) return;
  const own = mkdtempSync(`${tmpdir()}/.compile-cache-`);
  for (const version of readdirSync(`${folder}/${FOLDER}`)) {
    symlinkSync(`${folder}/${FOLDER}/${version}`, `${own}/${version}-${process.getuid()}`);
  }
  module.enableCompileCache(own);
}
