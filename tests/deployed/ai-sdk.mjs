// The AI SDK's chat, as useChat drives it, in several versions; prints what each case came to, as lines of JSON.
// node ai-sdk.mjs URL FOLDER=VERSION…
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { command, eventually, tell } from "./case.mjs";

const [url, ...folders] = process.argv.slice(2);

// The least that a chat needs of a page; @ai-sdk/react keeps the same in React's state.
class State {
  status = "ready";
  error = undefined;
  constructor(messages) { this.messages = messages; }
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => {
    this.messages = [...this.messages.slice(0, index), structuredClone(message), ...this.messages.slice(index + 1)];
  };
  snapshot = (value) => structuredClone(value);
}

async function cases(version, ai) {
  const [major, minor, patch] = version.split(".").map(Number);
  // The first releases go on with the message that they have, whatever comes.
  const resumesInPlace = minor + patch > 0;
  const heard = [];

  class Chat extends ai.AbstractChat {
    constructor(id, messages = [], query = "") {
      // The identity of development; the first releases can't have it in `api`.
      const counting = async (address, options) => {
        const response = await fetch(`${address}?user=ann${query}`, options);
        this.replies += 1;
        return response;
      };
      const transport = new ai.DefaultChatTransport({ api: `${url}/v1/chat`, fetch: counting });
      super({ id, transport, state: new State(messages), onData: (part) => heard.push(part.type) });
      this.replies = 0;
    }
    // Resumes, and opens a gate once the server has answered that.
    async resumeAndOpen(gate) {
      const before = this.replies;
      const resuming = this.resumeStream();
      await eventually(() => this.replies > before, `${version}: ${this.id} resumes`);
      await command("open", gate);
      await resuming;
    }
    get text() {
      const parts = this.messages.filter(({ role }) => role === "assistant").flatMap(({ parts }) => parts);
      return parts.filter(({ type }) => type === "text").map(({ text }) => text).join("|");
    }
    get told() {
      const roles = this.messages.map(({ role }) => role).join(" ");
      return { status: this.status, error: this.error?.message ?? "", text: this.text, roles, id: this.lastMessage?.id };
    }
    shows = (text) => eventually(() => this.text === text, `${version}: ${this.id} shows ${text}, has ${this.text}`);
  }

  const load = async (id) => (await (await fetch(`${url}/v1/chat/${id}/messages?user=ann`)).json()).messages;
  const all = {
    async answer(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} ~looking @${id}-2 #order +two +rich` });
      // A status lasts until something else comes, and isn't kept.
      await chat.shows("one ");
      await command("open", id);
      await eventually(() => heard.includes("data-status"), `${version}: a status`);
      await command("open", `${id}-2`);
      await sending;
      return { ...chat.told, parts: chat.lastMessage.parts.map(({ type }) => type), loaded: (await load(id)).length };
    },
    async reload(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} +two` });
      await chat.shows("one ");
      const page = new Chat(id, await load(id));
      const resuming = page.resumeStream();
      await page.shows("one ");
      await command("open", id);
      await Promise.all([sending, resuming]);
      return { ...page.told, same: page.lastMessage.id === chat.lastMessage.id, first: chat.text };
    },
    async nothing(id) {
      const chat = new Chat(id);
      await chat.resumeStream();
      return { status: chat.status === "submitted" ? "ready" : chat.status, messages: chat.messages.length };
    },
    async stop(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: "+one @never" });
      await chat.shows("one ");
      const page = new Chat(id, await load(id));
      const resuming = page.resumeStream();
      await page.shows("one ");
      await fetch(`${url}/v1/chat/${id}/stop?user=ann`, { method: "POST" });
      await Promise.all([sending, resuming]);
      return { ...page.told, first: chat.told.status };
    },
    async leave(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} +two` });
      await chat.shows("one ");
      await chat.stop();
      await sending;
      const page = new Chat(id, await load(id));
      const resuming = page.resumeStream();
      await page.shows("one ");
      await command("open", id);
      await resuming;
      return page.told;
    },
    async failure(id) {
      const chat = new Chat(id);
      await chat.sendMessage({ text: "+one !broken" });
      return chat.told;
    },
    async refusal(id) {
      const chat = new Chat(id);
      const file = { type: "file", mediaType: "text/plain", url: "data:text/plain,x" };
      await chat.sendMessage({ role: "user", parts: [file, { type: "text", text: "+one" }] });
      return { status: chat.status, problem: JSON.parse(chat.error.message) };
    },
    async again(id) {
      const chat = new Chat(id);
      await chat.sendMessage({ text: "+one || +anew" });
      const before = chat.lastMessage.id;
      await chat.regenerate();
      return { ...chat.told, same: before === chat.lastMessage.id };
    },
    async cut(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} +two` });
      await chat.shows("one ");
      await command("cut", 0);
      await sending;
      const lost = chat.status;
      const page = resumesInPlace ? chat : new Chat(id, await load(id));
      await page.resumeAndOpen(id);
      return { ...page.told, lost };
    },
    async drain(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} +two` });
      await chat.shows("one ");
      await command("drain", 0);
      await sending;
      const lost = chat.error?.message;
      await command("undrain", 0);
      const page = resumesInPlace ? chat : new Chat(id, await load(id));
      await page.resumeAndOpen(id);
      return { ...page.told, lost };
    },
    async takenOver(id) {
      const chat = new Chat(id);
      const sending = chat.sendMessage({ text: `+one @${id} +two` });
      await chat.shows("one ");
      await command("give-up", 0);
      await command("open", id);
      await sending;
      await command("revive", 0);
      return chat.told;
    },
    async takenOverInOtherWords(id) {
      const chat = new Chat(id, [], major === 7 ? "&reset=1" : "");
      const sending = chat.sendMessage({ text: `+one @never || +uno @${id} +dos` });
      await chat.shows("one ");
      await command("give-up", 0);
      if (major === 7) await chat.shows("uno ");
      else await eventually(() => chat.status === "error", "an error");
      const lost = chat.error?.message ?? "";
      await command("revive", 0);
      const page = resumesInPlace || major === 7 ? chat : new Chat(id, await load(id));
      const resuming = major === 7 ? sending : page.resumeStream();
      await page.shows("uno ");
      await command("open", id);
      await resuming;
      return { ...page.told, lost };
    },
  };
  for (const [name, run] of Object.entries(all)) tell(name, { version, ...(await run(`${name}-${version}`)) });
  tell("heard", { version, heard });
}

for (const each of folders) {
  const [folder, version] = each.split("=");
  const ai = await import(pathToFileURL(createRequire(`${folder}/`).resolve("ai")));
  await cases(version, ai);
}
tell("end", {});
