// The npm package `eventsource` with a header, and nothing around it.
import { readFileSync } from "node:fs";
import { EventSource } from "eventsource";

const Authorization = `Bearer ${readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8")}`;
const source = new EventSource(process.argv[2], {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization } }),
});
for (const name of ["message", "ready", "ping", "exception"]) {
  source.addEventListener(name, (event) => console.log(JSON.stringify({ event: name, data: JSON.parse(event.data) })));
}
