// The AI SDK, AG-UI and OpenAI's client, each with an answer that is on its way when a node dies. It says `shown` when all
// of them show the beginning, and what each shows in the end, as lines of JSON.
// node dead-node.mjs URL TOKEN TOKEN AI_7 AI_6 AG_UI OPENAI
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, ann, bo, ai7, ai6, agui, openai] = process.argv.slice(2);
const bearer = (token) => ({ Authorization: `Bearer ${token}` });
const tell = (name, data = {}) => console.log(JSON.stringify({ name, data }));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
console.error = () => {};
process.on("unhandledRejection", (error) => { if (error.message !== "terminated") throw error; });

async function eventually(check, what) {
  for (const end = Date.now() + 90_000; Date.now() < end; await pause(20)) if (check()) return;
  throw new Error(`not within 90 s: ${what()}`);
}

// As the page in examples/chat goes on after an error.
async function chatting(folder, token, question, { query = "", device = null } = {}) {
  const ai = await import(pathToFileURL(createRequire(`${folder}/`).resolve("ai")));
  const [api, headers] = [`${url}/v1/chat`, bearer(token)];
  const id = device?.id ?? crypto.randomUUID();
  const load = async () => (await (await fetch(`${api}/${id}/messages`, { headers })).json()).messages;
  const state = {
    status: "ready",
    messages: [],
    pushMessage(message) { this.messages = [...this.messages, message]; },
    popMessage() { this.messages = this.messages.slice(0, -1); },
    replaceMessage(index, message) { this.messages = this.messages.with(index, structuredClone(message)); },
    snapshot: (value) => structuredClone(value),
  };
  class Chat extends ai.AbstractChat {
    errors = [];
    get text() {
      const parts = this.messages.filter(({ role }) => role === "assistant").flatMap(({ parts }) => parts);
      return parts.filter(({ type }) => type === "text").map(({ text }) => text).join("|");
    }
    async goOn() {
      await pause(300);
      if (this.lastMessage?.role === "user") return this.sendMessage();
      await this.resumeStream();
      if (this.status === "ready") this.messages = await load();
    }
  }
  const transport = new ai.DefaultChatTransport({ api: `${api}${query}`, headers });
  const chat = new Chat({
    id, transport, state,
    onError: (error) => { chat.errors.push(error.message.slice(0, 80)); chat.goOn(); },
  });
  if (device) {
    state.messages = await load();
    chat.resumeStream();
  } else chat.sendMessage({ text: question });
  return chat;
}

class Thread {
  constructor(token, question) {
    const { HttpAgent } = createRequire(`${agui}/`)("@ag-ui/client");
    const initialMessages = [{ id: "m-1", role: "user", content: question }];
    this.agent = new HttpAgent({ url: `${url}/v1/agui`, headers: bearer(token), threadId: crypto.randomUUID(), initialMessages });
    this.agent.subscribe({ onRunFinishedEvent: () => { this.status = "ready"; } });
    this.errors = [];
    this.run();
  }
  get text() {
    return this.agent.messages.filter(({ role }) => role === "assistant").map(({ content }) => content).join("|");
  }
  async run() {
    while (this.status !== "ready") {
      try {
        await this.agent.runAgent({ runId: "one-run" });
      } catch (error) {
        this.errors.push(error.message.slice(0, 80));
      }
      await pause(300);
    }
  }
}

class Completion {
  text = "";
  errors = [];
  constructor(token, question) {
    const { OpenAI } = createRequire(`${openai}/`)("openai");
    this.client = new OpenAI({ apiKey: token, baseURL: `${url}/v1` });
    this.body = { model: "pushsse", messages: [{ role: "user", content: question }], stream: true };
    this.options = { headers: { "Idempotency-Key": crypto.randomUUID() } };
    this.run();
  }
  async run() {
    for (;;) {
      try {
        const chunks = await this.client.chat.completions.create(this.body, this.options);
        let text = "";
        for await (const { choices: [choice] } of chunks) {
          text += choice?.delta.content ?? "";
          this.text = text;
          if (choice?.finish_reason) this.status = "ready";
        }
        if (this.status === "ready") return;
      } catch (error) {
        this.errors.push(error.message.slice(0, 80));
      }
      await pause(300);
    }
  }
}

// In the answer that another node begins anew, what comes is the same, or something else.
const clients = {};
for (const [how, token] of [["same", ann], ["other", bo]]) {
  clients[`ai-7 ${how}`] = await chatting(ai7, token, `${how} ai-7`, { query: "?reset=1" });
  clients[`ai-6 ${how}`] = await chatting(ai6, token, `${how} ai-6`);
  clients[`ag-ui ${how}`] = new Thread(token, `${how} ag-ui`);
  clients[`openai ${how}`] = new Completion(token, `${how} openai`);
}
for (const [name, client] of Object.entries(clients)) await eventually(() => client.text === "one ", () => `${name}: ${client.text} ${client.errors}`);
for (const [how, token] of [["same", ann], ["other", bo]]) {
  const device = await chatting(ai7, token, "", { query: "?reset=1", device: clients[`ai-7 ${how}`] });
  await eventually(() => device.text === "one ", () => `device: ${device.text}`);
  clients[`device ${how}`] = device;
}
tell("shown");
for (const [name, client] of Object.entries(clients)) {
  const whole = name.endsWith("same") ? "one two " : "uno dos ";
  await eventually(() => client.status === "ready" && client.text === whole, () => `${name}: ${client.status} ${client.text} ${client.errors}`);
  tell(name, { text: client.text, errors: client.errors });
}
tell("end");
process.exit(0);
