// @microsoft/fetch-event-source with a header, and nothing around it, in Node.js.
import { readFileSync } from "node:fs";
import { fetchEventSource } from "@microsoft/fetch-event-source";

// The package is written for browsers.
globalThis.window = globalThis;
globalThis.document = { addEventListener() {}, removeEventListener() {} };
await fetchEventSource(process.argv[2], {
  headers: { Authorization: `Bearer ${readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8")}` },
  onmessage: ({ event, data }) => {
    if (data) console.log(JSON.stringify({ event: event || "message", data: JSON.parse(data) }));
  },
});
