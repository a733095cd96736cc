// Fills /build with a function's own files from /source, and checks that its handler can be parsed.
// A build step. Argument: the handler's file, if it is known.
import { spawnSync } from "node:child_process";
import { cpSync } from "node:fs";
import { basename } from "node:path";

cpSync("/source", "/build", {
  recursive: true,
  verbatimSymlinks: true,
  filter: (path) => basename(path) !== ".git" && path !== "/source/.compile-cache",
});
const handler = process.argv[2];
if (handler !== undefined) {
  const { status } = spawnSync(process.execPath, ["--check", handler], { cwd: "/build", stdio: "inherit" });
  process.exitCode = status ?? 1;
}
