// What TypeScript makes of the client's types. Compiled by test_types.py; never run.
import { connect, PushError, type Answer, type State } from "pushsse";

type Types = { alarm: { level: number }; news: string };
const push = connect<Types>({ url: "/push/", token: async () => "a token", types: ["alarm"], since: "30m" });

push.on("event", (event) => {
  if (event.type === "alarm") event.message.level.toFixed();
  else event.message.trim();
  // @ts-expect-error: nobody sends such a type
  event.type === "other";
});
const off: () => void = push.on("event:alarm", ({ message }) => message.level.toFixed());
off();
push.on("state", ({ state }) => ({ connecting: 1, live: 2, polling: 3, signed_out: 4, ended: 5, closed: 6 })[state]);
push.on("gap", ({ position }) => position.length);
push.on("ready", ({ user, resume }) => `${user} ${resume}`);
push.on("ack", ({ ids, up_to }) => ids?.length ?? up_to);
push.on("pushsse.withdraw", ({ withdraw }) => withdraw);
// @ts-expect-error: no such event
push.on("events", () => {});
// @ts-expect-error: no such type
push.on("event:other", () => {});

const state: State = push.state;
// @ts-expect-error: only the client says how it stands
push.state = state;

const asked = push.ask("Where?", { conversation: "one" });
for await (const answer of asked) {
  const { text, doing, parts }: Answer = answer;
  const sources = parts.map((part) => (part.type === "source" ? part.url : part.name));
  console.log(text, doing, sources, answer.by?.name);
}
await asked.stop();
const id: string = await asked.id;
await push.preferences.set({ types: { news: false, alarm: null }, paused_until: null });
// @ts-expect-error: no such type
await push.preferences.set({ types: { other: false } });
const names: string[] = (await push.preferences.get()).types.map(({ name }) => name);
await push.acks.read([id, ...names]);
await push.acks.readUpTo();
push.reconnect();
push.close();

// Without types of its own an app gets any event.
connect({ ticket: () => ({ ticket: "…" }) }).on("event", ({ type, message }) => console.log(type.length, message));
connect({ credentials: "include", position: push.position, share: false });
// @ts-expect-error: neither a token nor a way to one
connect({ token: 7 });

try {
  await push.preferences.get();
} catch (error) {
  if (error instanceof PushError) console.log(error.status, error.code, error.errors.map(({ at }) => at));
}
