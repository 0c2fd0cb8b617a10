// pushsse.js in Node.js: prints what it hears as JSON lines, and does what it is told on standard input, a line each.
// `fast` makes its waits that many times as short, and tells them; limits of time stay as they are.
import { createInterface } from "node:readline";

const [, , module, url, fast = "1"] = process.argv;
const rate = Number(fast);
const tell = (name, data) => console.log(JSON.stringify([name, data]));
const LIMITS = [5_000, 45_000];
if (rate > 1) {
  const { setTimeout: real } = globalThis;
  globalThis.setTimeout = (act, ms, ...more) => {
    // Those of Node.js itself stay as they are, too.
    if (!new Error().stack.includes("/pushsse") || LIMITS.includes(ms)) return real(act, ms, ...more);
    tell("wait", ms);
    return real(act, ms / rate);
  };
}
const { connect } = await import(module);
tell("imported", Object.keys(globalThis).filter((name) => name.startsWith("push")));
const push = url && connect({ url });
for (const name of url ? ["event", "state", "ready", "gap", "answer"] : []) push.on(name, (data) => tell(name, data));
const run = (text) => Object.getPrototypeOf(async () => {}).constructor("push", "tell", "connect", text)(push, tell, connect);
for await (const line of createInterface({ input: process.stdin })) await run(line);
push?.close?.();
tell("closed", null);
