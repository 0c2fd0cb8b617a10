// OpenAI's client for Node.js; prints what each case came to, as lines of JSON.
// node openai-node.mjs URL FOLDER
import { createRequire } from "node:module";
import { command, tell } from "./case.mjs";

const [url, folder] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ apiKey: "a token", baseURL: `${url}/v1`, defaultQuery: { user: "ann" } });
const asked = (content, more = {}) => ({ model: "pushsse", messages: [{ role: "user", content }], ...more });

// Streams; calls `then` with the id once there is text.
async function stream(body, options, then = async () => {}) {
  const found = { text: "", reason: null, usage: null, error: null, id: "" };
  try {
    const chunks = await client.chat.completions.create({ ...body, stream: true }, options);
    for await (const chunk of chunks) {
      found.id = chunk.id;
      found.usage = chunk.usage ?? found.usage;
      const [choice] = chunk.choices;
      found.reason = choice?.finish_reason ?? found.reason;
      if (choice?.delta.content && !found.text) {
        found.text += choice.delta.content;
        await then(found.id.replace("chatcmpl-", ""));
      } else found.text += choice?.delta.content ?? "";
    }
  } catch (error) {
    found.error = { name: error.constructor.name, status: error.status, code: error.code, param: error.param, message: error.message };
  }
  return found;
}

async function refused(body, more = {}) {
  try {
    await new OpenAI({ apiKey: "a token", baseURL: `${url}/v1`, defaultQuery: { user: "ann" }, ...more }).chat.completions.create(body);
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

const all = {
  answer: async () => {
    const found = await client.chat.completions.create(asked("~looking +one #order +two +rich"));
    const [{ message, finish_reason }] = found.choices;
    return { text: message.content, reason: finish_reason, usage: found.usage, urls: message.annotations.map((each) => each.url_citation.url) };
  },
  streamed: () => stream(asked("+one +two", { stream_options: { include_usage: true } })),
  stop: () => stream(asked("+one @never"), {}, (id) => fetch(`${url}/v1/questions/${id}/cancel?user=ann`, { method: "POST" })),
  failure: () => stream(asked("+one !broken")),
  cut: () => stream(asked("+one @never"), {}, () => command("cut", 0)),
  reconnect: async () => {
    const options = { headers: { "Idempotency-Key": "node-1" } };
    const lost = await stream(asked("+one @node-1 +two"), options, () => command("cut", 0));
    const found = await stream(asked("+one @node-1 +two"), options, () => command("open", "node-1"));
    return { ...found, lost: lost.error?.name, same: lost.id === found.id };
  },
  drain: async () => {
    const found = await stream(asked("+one @never"), {}, () => command("drain", 0));
    await command("undrain", 0);
    return found;
  },
  takenOver: async () => {
    const found = await stream(asked("+one @node-2 +two"), {}, async () => {
      await command("give-up", 0);
      await command("open", "node-2");
    });
    await command("revive", 0);
    return found;
  },
  takenOverInOtherWords: async () => {
    const found = await stream(asked("+one @never || +uno +dos"), {}, () => command("give-up", 0));
    await command("revive", 0);
    return found;
  },
  refusal: () => refused(asked([{ type: "image_url", image_url: { url: "data:," } }])),
  failed: () => refused(asked("!broken")),
  nobody: () => refused(asked("+one"), { defaultQuery: { user: "two words" }, maxRetries: 0 }),
  models: async () => ({ models: (await client.models.list()).data.map(({ id }) => id) }),
};
for (const [name, run] of Object.entries(all)) tell(name, await run());
tell("end", {});
process.exit(0);
