// The npm package `eventsource`, with a token; prints each event as a line of JSON.
// node eventsource.mjs FOLDER URL TOKEN
import { createRequire } from "node:module";

const [folder, url, token] = process.argv.slice(2);
const { EventSource } = createRequire(`${folder}/`)("eventsource");
const authorized = (input, init) =>
  fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
const source = new EventSource(url, { fetch: authorized });

for (const name of ["ready", "exception", "number"]) {
  source.addEventListener(name, (event) => console.log(JSON.stringify({ name, data: JSON.parse(event.data) })));
}
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) console.log(JSON.stringify({ name: "gave up", data: {} }));
});
