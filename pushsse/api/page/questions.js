// Questions and answers as a conversation, in a dock that stays in reach. It shows what any device of the person asked.

import { announce, at, sendOnEnter, soon } from "./dom.js";
import { Exchange, fromCall, NO_ANSWER } from "./exchange.js";
import { t } from "./words.js";

const SHOWN = 50;
const LOADED = 20;
// Further up in the conversation somebody reads, and isn't moved.
const AT_END_PX = 60;

export class Questions {
  #session;
  #known = new Map();
  #conversation = "";
  #isHandedOver = false;
  #loaded = false;
  #dirty = new Set();

  constructor(session) {
    this.#session = session;
    session.on("state", ({ state }) => (state === "live" || state === "polling") && !this.#loaded && this.#load());
    session.on("gap", () => this.#load());
    session.on("question", (question) => this.#heardQuestion(question));
    session.on("answer.delta", (delta) => this.#heardDelta(delta));
    session.on("answer", ({ question, ...answer }) => {
      this.#change(question, { status: "answered", error: null, answer: { ...NO_ANSWER, ...answer } });
      if (answer.truncated) this.#loadWhole(question);
    });
    session.on("answer.error", ({ question, ...error }) =>
      this.#change(question, { status: error.code === "cancelled" ? "cancelled" : "failed", error }, { doing: "" }));
    this.#listen();
  }

  #listen() {
    const box = at("question");
    at("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(box.value);
    });
    sendOnEnter(box, at("ask"));
    at("talk-toggle").addEventListener("click", () => this.#show(at("talk").hidden));
    at("fresh").addEventListener("click", () => {
      this.#conversation = "";
      this.#isHandedOver = false;
      this.#show(true);
      at("exchanges").replaceChildren();
      this.#known.clear();
      this.#drawTools();
      box.focus();
    });
    at("hand-over").addEventListener("click", () => this.#call("POST", `v1/conversations/${this.#conversation}/handover`, {}));
    at("release").addEventListener("click", () => this.#call("POST", `v1/conversations/${this.#conversation}/release`, {}));
    this.#drawTools();
  }

  async #load() {
    this.#loaded = true;
    try {
      const { questions } = await this.#session.call("GET", "v1/questions", undefined, { limit: LOADED });
      for (const each of questions.reverse()) {
        const question = fromCall(each);
        // What has come by the stream meanwhile may be newer.
        if (!this.#known.has(question.id) || question.status === "answered") this.#change(question.id, question);
        if (question.answer.truncated) this.#loadWhole(question.id);
      }
      const newest = questions.at(-1);
      this.#conversation ||= newest?.conversation ?? "";
      this.#isHandedOver = newest?.status === "handed_over";
      this.#drawTools();
    } catch {
      this.#loaded = false;
    }
  }

  /** An event, and a list, have the beginning of a long answer. */
  async #loadWhole(id) {
    try {
      const { answer, status } = await this.#session.call("GET", `v1/questions/${id}`);
      if (status === "answered") this.#change(id, { answer: { ...NO_ANSWER, ...answer } });
    } catch {
      // It says that it is cut.
    }
  }

  #heardQuestion({ id, conversation, text, status }) {
    this.#conversation = conversation;
    if (status === "handed_over") this.#isHandedOver = true;
    // Asked, or asked anew.
    const fresh = status === "pending" ? { answer: NO_ANSWER, error: null, rating: "" } : {};
    this.#change(id, { conversation, text, status, ...fresh });
    this.#drawTools();
  }

  #heardDelta({ question: id, from, text, part }) {
    const answer = this.#known.get(id)?.question.answer ?? NO_ANSWER;
    // Its beginning isn't here: all of it comes at the end.
    if (from > answer.text.length) return;
    const isStatus = part?.type === "status";
    const isKnown = answer.parts.some((each) => JSON.stringify(each) === JSON.stringify(part));
    this.#change(id, { status: "answering" }, {
      text: answer.text.slice(0, from) + text,
      doing: isStatus ? part.text : "",
      parts: part && !isStatus && !isKnown ? [...answer.parts, part] : answer.parts,
    });
  }

  /** What is new of a question, and of its answer. */
  #change(id, more, moreOfAnswer = {}) {
    const known = this.#known.get(id) ?? this.#make(id);
    const question = { ...known.question, ...more };
    known.question = { ...question, answer: { ...question.answer, ...moreOfAnswer } };
    if (!this.#dirty.size) soon(() => this.#draw());
    this.#dirty.add(id);
  }

  #make(id) {
    const exchange = new Exchange({
      stop: (id) => this.#call("POST", `v1/questions/${id}/cancel`, {}),
      again: (id) => this.#call("POST", `v1/questions/${id}/regenerate`, {}),
      rate: (id, rating) => this.#rate(id, rating),
      ask: (text) => this.#ask(text),
    });
    const known = { exchange, question: { id, text: "", status: "pending", answer: NO_ANSWER, rating: "", error: null } };
    this.#known.set(id, known);
    at("exchanges").append(exchange.element);
    if (this.#known.size > SHOWN) {
      const [oldest, { exchange: first }] = this.#known.entries().next().value;
      first.element.remove();
      this.#known.delete(oldest);
    }
    return known;
  }

  #draw() {
    const talk = at("talk");
    const isAtEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < AT_END_PX;
    for (const id of this.#dirty) {
      const known = this.#known.get(id);
      if (known) known.exchange.draw(known.question);
    }
    this.#dirty.clear();
    at("talk-toggle").hidden = !this.#known.size;
    if (isAtEnd) talk.scrollTop = talk.scrollHeight;
  }

  async #ask(text) {
    const box = at("question");
    if (!text.trim()) return;
    const asked = this.#session.push.ask(text, this.#conversation ? { conversation: this.#conversation } : {});
    const isWritten = box.value === text;
    if (isWritten) Object.assign(box, { value: "", rows: 1 });
    this.#say("");
    this.#show(true);
    try {
      const id = await asked.id;
      // Its event may have been here before.
      if (!this.#known.has(id)) this.#change(id, { text });
      at("talk").scrollTop = at("talk").scrollHeight;
    } catch (error) {
      // Unless something else has been written meanwhile.
      if (isWritten) box.value ||= text;
      this.#say(t("not_asked", { why: error.message }));
    }
  }

  async #rate(id, rating) {
    const before = this.#known.get(id)?.question.rating;
    this.#change(id, { rating });
    if (!(await this.#call("POST", `v1/questions/${id}/feedback`, { rating }))) this.#change(id, { rating: before });
  }

  /** Returns whether it worked; else the person is told. */
  async #call(method, path, body) {
    try {
      const found = await this.#session.call(method, path, body);
      if (found && "handed_over" in found) this.#isHandedOver = found.status === "handed_over";
      this.#say("");
      this.#drawTools();
      return true;
    } catch (error) {
      this.#say(error.message);
      return false;
    }
  }

  #say(text) {
    at("ask-note").textContent = text;
    if (text) announce(text);
  }

  #drawTools() {
    at("fresh").hidden = !this.#conversation;
    at("hand-over").hidden = !this.#conversation || this.#isHandedOver;
    at("release").hidden = !this.#isHandedOver;
  }

  #show(isShown) {
    at("talk").hidden = !isShown;
    at("talk-toggle").setAttribute("aria-expanded", String(isShown));
    const label = t(isShown ? "hide_talk" : "show_talk");
    at("talk-toggle").setAttribute("aria-label", label);
    at("talk-toggle").title = label;
    if (isShown) at("talk").scrollTop = at("talk").scrollHeight;
  }
}
