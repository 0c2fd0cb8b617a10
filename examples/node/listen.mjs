// A person's stream in Node.js, with the package `eventsource`: prints each event as a line of JSON.
//   node listen.mjs "http://127.0.0.1:8000/v1/stream?user=ann"
import { readFileSync } from "node:fs";
import { EventSource } from "eventsource";

const REMEMBERED = 1000;
const MOST_WAIT_MS = 60_000;
const EVENTS = [
  "message", "ping", "preferences", "ack", "question", "answer", "answer.delta", "answer.error", "pushsse.withdraw",
];

const url = new URL(process.argv[2] ?? "http://127.0.0.1:8000/v1/stream?user=ann");
url.searchParams.set("named", "0");
const { PUSHSSE_TOKEN_FILE: file, PUSHSSE_TOKEN: fixed = "" } = process.env;
const token = () => (file ? readFileSync(file, "utf8").trim() : fixed);
const seen = new Set();
let source, watch, used;
let lastId = "";
let silence = 45_000; // three heartbeats of 15 s, until `ready` says more
let failures = 0;

// Called for each connection, also when the package reconnects by itself: the token is always the newest.
function authorized(input, init) {
  used = token();
  return fetch(input, { ...init, headers: { ...init.headers, ...(used && { Authorization: `Bearer ${used}` }) } });
}

function open() {
  if (lastId) url.searchParams.set("last_event_id", lastId);
  source = new EventSource(url, { fetch: authorized });
  for (const name of EVENTS) source.addEventListener(name, hear);
  source.addEventListener("ready", (event) => {
    const ready = JSON.parse(event.data);
    failures = 0;
    silence = 3 * ready.heartbeat_s * 1000;
    if (ready.resume === "gap") console.error("some events were missed: reload what you show");
    hear(event);
  });
  source.addEventListener("exception", (event) => {
    const { code, retry } = JSON.parse(event.data);
    hear(event);
    if (!retry) refused(code);
  });
  // The package reconnects by itself, but not after a status that isn't 200.
  source.addEventListener("error", ({ code }) => {
    if (source.readyState !== EventSource.CLOSED) return;
    if ([400, 401, 403].includes(code)) refused(`status ${code}`);
    else again();
  });
  listening();
}

// The service sends something at least once a heartbeat. After three silent ones the connection is dead.
function listening() {
  clearTimeout(watch);
  watch = setTimeout(again, silence);
}

function again() {
  clearTimeout(watch);
  source.close();
  const wait = Math.min(MOST_WAIT_MS, 3000 * 1.5 ** Math.min(failures++, 8));
  setTimeout(open, wait * (0.8 + 0.4 * Math.random()));
}

function refused(why) {
  // The same call can never succeed; with another token it may.
  if (token() !== used) return again();
  source.close();
  clearTimeout(watch);
  console.error(`the stream has ended: ${why}`);
  process.exitCode = 1;
}

function hear({ type, data, lastEventId }) {
  listening();
  const event = JSON.parse(data);
  if (!("message" in event) || isNew(event.id)) console.log(JSON.stringify({ event: type, data: event }));
  lastId = lastEventId; // only after the event was handled: an event that wasn't handled is sent again
}

// The id in the data is the same in every replay.
function isNew(id) {
  if (seen.has(id)) return false;
  seen.add(id);
  if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
  return true;
}

open();
