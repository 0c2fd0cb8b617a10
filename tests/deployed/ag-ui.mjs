// AG-UI's HttpAgent; prints what each case came to, as lines of JSON.
// node ag-ui.mjs URL FOLDER
import { createRequire } from "node:module";
import { command, eventually, tell } from "./case.mjs";

const [url, folder] = process.argv.slice(2);
const { HttpAgent } = createRequire(`${folder}/`)("@ag-ui/client");
// It prints errors that it also throws, and cancels a reader whose connection is lost without hearing the answer.
console.error = () => {};
process.on("unhandledRejection", (error) => { if (error.message !== "terminated") throw error; });

class Thread {
  events = [];
  constructor(threadId, question, initialMessages) {
    const messages = initialMessages ?? [{ id: "m-1", role: "user", content: question }];
    this.agent = new HttpAgent({ url: `${url}/v1/agui?user=ann`, threadId, initialMessages: messages });
    this.agent.subscribe({ onEvent: ({ event }) => { this.events.push(event); } });
  }
  get text() {
    return this.agent.messages.filter(({ role }) => role === "assistant").map(({ content }) => content).join("|");
  }
  get told() {
    const kinds = this.events.map(({ type, name }) => name ?? type).filter((kind) => kind !== "TEXT_MESSAGE_CONTENT");
    const last = this.events.at(-1);
    return { text: this.text, roles: this.agent.messages.map(({ role }) => role).join(" "), kinds, last };
  }
  shows = (text) => eventually(() => this.text === text, `${this.agent.threadId} shows ${text}, has ${this.text}`);
  async run(runId) {
    this.events = [];
    try {
      await this.agent.runAgent({ runId });
      return "";
    } catch (error) {
      return { status: error.status, payload: error.payload, message: error.message };
    }
  }
}

const all = {
  async answer(id) {
    const thread = new Thread(id, `+one @${id} ~looking @${id}-2 #order +two +rich`);
    const running = thread.run("run");
    // A status lasts until something else comes, and isn't kept.
    await thread.shows("one ");
    await command("open", id);
    await eventually(() => thread.events.some(({ name }) => name === "status"), "a status");
    await command("open", `${id}-2`);
    await running;
    return thread.told;
  },
  async again(id) {
    const thread = new Thread(id, `+one @${id} +two`);
    const running = thread.run("run");
    await thread.shows("one ");
    await command("cut", 0);
    const lost = await running;
    const resuming = thread.run("run");
    await eventually(() => thread.events.length > 2, "it runs again");
    await command("open", id);
    await resuming;
    return { ...thread.told, lost: Boolean(lost.message) };
  },
  async leave(id) {
    const thread = new Thread(id, `+one @${id} +two`);
    const running = thread.run("run");
    await thread.shows("one ");
    thread.agent.abortRun();
    await running;
    const page = new Thread(id, `+one @${id} +two`);
    const resuming = page.run("run");
    await page.shows("one ");
    await command("open", id);
    await resuming;
    return page.told;
  },
  async stop(id) {
    const thread = new Thread(id, "+one @never");
    const running = thread.run("run");
    await thread.shows("one ");
    await fetch(`${url}/v1/agui/${id}/stop?user=ann`, { method: "POST" });
    await running;
    return thread.told;
  },
  async cancel(id) {
    const thread = new Thread(id, "+one @never");
    const running = thread.run("run");
    await thread.shows("one ");
    const question = thread.events.find(({ name }) => name === "question").value.id;
    await fetch(`${url}/v1/questions/${question}/cancel?user=ann`, { method: "POST" });
    await running;
    return thread.told;
  },
  async failure(id) {
    const thread = new Thread(id, "+one !broken");
    await thread.run("run");
    return thread.told;
  },
  async refusal(id) {
    const image = { type: "image", source: { type: "url", value: "https://example.com/x.png" } };
    const thread = new Thread(id, "", [{ id: "m-1", role: "user", content: [image] }]);
    return { error: await thread.run("run") };
  },
  async drain(id) {
    const thread = new Thread(id, `+one @${id} +two`);
    const running = thread.run("run");
    await thread.shows("one ");
    await command("drain", 0);
    await running;
    const lost = thread.events.at(-1);
    await command("undrain", 0);
    const resuming = thread.run("run");
    await eventually(() => thread.events.length > 2, "it runs again");
    await command("open", id);
    await resuming;
    return { ...thread.told, lost };
  },
  async takenOver(id) {
    const thread = new Thread(id, `+one @${id} +two`);
    const running = thread.run("run");
    await thread.shows("one ");
    await command("give-up", 0);
    await command("open", id);
    await running;
    await command("revive", 0);
    return thread.told;
  },
  async takenOverInOtherWords(id) {
    const thread = new Thread(id, `+one @never || +uno @${id} +dos`);
    const running = thread.run("run");
    await thread.shows("one ");
    await command("give-up", 0);
    await thread.shows("uno ");
    await command("revive", 0);
    await command("open", id);
    await running;
    return thread.told;
  },
};
for (const [name, run] of Object.entries(all)) tell(name, await run(`ag-ui-${name}`));
tell("end", {});
// Its connections that were left open.
process.exit(0);
