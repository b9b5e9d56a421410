// Builds the page into the Python package: `npm ci && npm run build`, or `make page`.
import { createHash } from "node:crypto";
import { copyFile, readdir, readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const SOURCE = new URL("src/", import.meta.url);
const TARGET = new URL(process.argv[2] ?? "../pipecat_personaplex/talk/static/", import.meta.url);

await build({
  entryPoints: ["main.ts", "tap.ts", "line.ts", "style.css"].map((name) => new URL(name, SOURCE).pathname),
  outdir: TARGET.pathname,
  bundle: true,
  minify: true,
  charset: "utf8",
  target: ["es2022", "chrome110", "firefox115", "safari16.4"],
  legalComments: "none",
});
await copyFile(new URL("icon.svg", SOURCE), new URL("icon.svg", TARGET));
const html = await readFile(new URL("index.html", SOURCE), "utf8");
await writeFile(new URL("index.html", TARGET), html.replace(/\n\s+/g, "\n")); // no indentation

// A test compares this with the source, so that a checkout without Node notices a stale build.
const hash = createHash("sha256");
for (const name of (await readdir(SOURCE)).sort()) {
  hash.update(name).update("\0").update(await readFile(new URL(name, SOURCE))).update("\0");
}
await writeFile(new URL("source.sha256", TARGET), `${hash.digest("hex")}\n`);
