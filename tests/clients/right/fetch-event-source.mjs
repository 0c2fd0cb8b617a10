// @microsoft/fetch-event-source with the lines of examples/browser/fetch-event-source.js, in Node.js.
import { readFileSync } from "node:fs";
import { listen } from "../browser/fetch-event-source.js";

// The package is written for browsers.
globalThis.window = globalThis;
globalThis.document = { addEventListener() {}, removeEventListener() {} };
const tell = (event, data = {}) => console.log(JSON.stringify({ event, data }));
await listen(process.argv[2], {
  token: () => readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8").trim(),
  onOpen: (ready) => tell("ready", ready),
  onEvent: (event) => tell("message", event),
  onGap: () => tell("gap"),
  onEnd: (why) => tell("ended", { why }),
});
