// The npm package `eventsource-client` with a header, and nothing around it.
import { readFileSync } from "node:fs";
import { createEventSource } from "eventsource-client";

createEventSource({
  url: process.argv[2],
  headers: { Authorization: `Bearer ${readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8")}` },
  onMessage: ({ event, data }) => console.log(JSON.stringify({ event: event ?? "message", data: JSON.parse(data) })),
});
