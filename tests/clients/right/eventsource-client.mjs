// The npm package `eventsource-client`, which reconnects and resumes by itself, also after a clean end.
import { readFileSync } from "node:fs";
import { createEventSource } from "eventsource-client";

const token = () => readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8").trim();
const seen = new Set();
let client, used, watch;
let lastId = "";
let silence = 45_000;
let failures = 0;

// Called for each connection: the token is always the newest. The package would knock for ever on any status.
async function authorized(url, init) {
  used = token();
  const response = await fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${used}` } });
  if ([400, 401, 403].includes(response.status)) refused(`status ${response.status}`);
  else if (response.status !== 200) again();
  return response;
}

function open() {
  client = createEventSource({
    url: process.argv[2],
    fetch: authorized,
    initialLastEventId: lastId || undefined,
    onMessage: ({ id, event = "message", data }) => {
      listening();
      hear(event, JSON.parse(data));
      lastId = id; // only after the event was handled: an event that wasn't handled is sent again
    },
  });
  listening();
}

function hear(event, data) {
  if (event === "ready") {
    failures = 0;
    silence = 3 * data.heartbeat_s * 1000;
    if (data.resume === "gap") console.error("some events were missed: reload what you show");
  }
  if (!("message" in data) || isNew(data.id)) console.log(JSON.stringify({ event, data }));
  // Before such an end the service sends `retry: 300000`, which the package would heed.
  if (event === "exception" && !data.retry) refused(data.code);
}

// After three silent heartbeats the connection is dead.
function listening() {
  clearTimeout(watch);
  watch = setTimeout(again, silence);
}

function again() {
  client.close();
  clearTimeout(watch);
  const wait = Math.min(60_000, 3000 * 1.5 ** Math.min(failures++, 8));
  watch = setTimeout(open, wait * (0.8 + 0.4 * Math.random()));
}

function refused(why) {
  // The same call can never succeed; with another token it may.
  if (token() !== used) return again();
  client.close();
  clearTimeout(watch);
  console.error(`the stream has ended: ${why}`);
  process.exitCode = 1;
}

function isNew(id) {
  if (seen.has(id)) return false;
  seen.add(id);
  if (seen.size > 1000) seen.delete(seen.values().next().value);
  return true;
}

open();
