// The example with @microsoft/fetch-event-source in Node.js; prints what it is told as lines of JSON.
// node fetch-event-source.mjs FOLDER URL TOKEN
import { copyFileSync, rmSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, url, token] = process.argv.slice(2);
// The package is written for browsers: it takes its timers from `window`.
globalThis.window = globalThis;
globalThis.document = { removeEventListener() {} };
// Beside node_modules, where `import` finds the package.
const copy = `${folder}/example-${process.pid}.mjs`;
copyFileSync(new URL("../../examples/browser/fetch-event-source.js", import.meta.url), copy);
const { listen } = await import(pathToFileURL(copy));
rmSync(copy);

const tell = (name, data = {}) => console.log(JSON.stringify({ name, data }));
await listen(url, {
  token: () => token,
  onEvent: (event) => tell("event", event),
  onGap: () => tell("gap"),
  onEnd: (why) => tell("end", { why }),
});
