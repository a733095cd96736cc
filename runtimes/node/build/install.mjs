// Installs packages into /build/node_modules with npm. A build step.
// Arguments: npm's program, its command (ci or install), and the files of /source that it goes by.
import { spawnSync } from "node:child_process";
import { copyFileSync, realpathSync, rmSync } from "node:fs";

const [npm, command, ...files] = process.argv.slice(2);
for (const file of files) copyFileSync(`/source/${file}`, `/build/${file}`);
const cache = "/build/.npm-cache"; // beside the result: /tmp is small
const { status } = spawnSync(
  process.execPath,
  [realpathSync(npm), command, "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", `--cache=${cache}`],
  { cwd: "/build", stdio: "inherit" },
);
rmSync(cache, { recursive: true, force: true });
process.exitCode = status ?? 1;
