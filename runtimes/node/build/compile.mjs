// Fills /build with the code of a function in compiled form, by loading it once. A build step.
// Argument: the handler's file. What the function prints is not shown: its first real start does that.
import { spawnSync } from "node:child_process";
import { readdirSync, renameSync, rmSync, statSync } from "node:fs";

const WITHIN = 20_000; // ms; a function may wait for what is not there in a build, such as its data
const LEAST = 32 << 10; // bytes; looking for a smaller cache takes longer than compiling does

const [file] = process.argv.slice(2);
const loading = spawnSync(process.execPath, ["/tools/node-build/loading.mjs", file], {
  cwd: "/function",
  stdio: "ignore",
  timeout: WITHIN,
  killSignal: "SIGKILL",
});
const made = readdirSync("/build");
for (const name of made) {
  const place = `/build/${name}`;
  const size = readdirSync(place).reduce((sum, entry) => sum + statSync(`${place}/${entry}`).size, 0);
  if (size < LEAST) rmSync(place, { recursive: true });
  // Node appends the user's number, and sandboxes each have a user of their own
  else renameSync(place, place.replace(new RegExp(`-${process.getuid()}$`), ""));
}
if (loading.error !== undefined) {
  console.log(`It was not loaded within ${WITHIN / 1000} s.`);
  process.exitCode = 1;
}
