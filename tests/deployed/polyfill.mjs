// The npm package event-source-polyfill, which sends its place as `lastEventId` in the query; prints lines of JSON.
// node polyfill.mjs FOLDER URL TOKEN
import { createRequire } from "node:module";

const [folder, url, token] = process.argv.slice(2);
const { EventSourcePolyfill } = createRequire(`${folder}/`)("event-source-polyfill");
const source = new EventSourcePolyfill(url, { headers: { Authorization: `Bearer ${token}` }, heartbeatTimeout: 45_000 });
const tell = (name, data = {}) => console.log(JSON.stringify({ name, data }));

source.addEventListener("message", (event) => tell("event", JSON.parse(event.data)));
source.addEventListener("ready", (event) => {
  const data = JSON.parse(event.data);
  tell("ready", data);
  if (data.resume === "gap") tell("gap");
});
source.addEventListener("error", () => { if (source.readyState === 2) tell("end"); });
