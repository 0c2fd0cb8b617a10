// Tells how the parser of pushsse.js reads streams: one JSON array of events for each of the streams on standard input,
// which has JSON lines: the pieces of a stream as lists of bytes.
import { createInterface } from "node:readline";

const { parser } = await import(process.argv[2]);

for await (const line of createInterface({ input: process.stdin })) {
  const told = [];
  const read = parser((event) => told.push(event), (ms) => told.push(ms));
  for (const piece of JSON.parse(line)) read(Uint8Array.from(piece));
  console.log(JSON.stringify(told));
}
