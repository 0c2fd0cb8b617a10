// The desk of staff: which conversations wait for people, what was said in them, and what one answers.

import { announce, at, button, el, sendOnEnter } from "./dom.js";
import { count } from "./views.js";
import { ago, exact, t } from "./words.js";

// The list is what counts: a question that its person cancels is told by no event.
const LIST_MS = 30_000;
const SOON_MS = 250;
const LISTED = 100;
const TURNS = 50;
const NAME = "pushsse.desk-name";
const AT_END_PX = 60;

export class Desk {
  #session;
  #isShown = false;
  #asking = 0;
  #found = [];
  #waiting = Infinity;
  #open = null;
  #turns = [];
  #more = false;
  // What was written and not sent, by conversation.
  #drafts = new Map();
  #drawn = "";
  #drawnTurns = "";

  constructor(session) {
    this.#session = session;
    session.on("pushsse.desk", ({ conversation }) => this.#soon(conversation === this.#open));
    session.on("gap", () => this.#soon(true));
    session.on("state", ({ state }) => (state === "live" || state === "polling") && this.#soon(true));
    setInterval(() => this.#isShown && document.visibilityState === "visible" && this.#list(), LIST_MS);
    document.addEventListener("visibilitychange", () => this.#isShown && document.visibilityState === "visible" && this.#soon(true));
    at("case-back").addEventListener("click", () => this.#close());
    at("case-earlier").addEventListener("click", () => this.#load(this.#turns[0].id));
    at("case-release").addEventListener("click", () => this.#release());
    at("desk").addEventListener("keydown", ({ key }) => key === "Escape" && this.#open && this.#close());
    at("desk-name").value = kept();
    at("desk-name").placeholder = session.user;
    at("desk-name").addEventListener("input", () => {
      keep(at("desk-name").value.trim());
      this.#drawName();
    });
    this.#drawName();
    at("desk-text").addEventListener("input", () => this.#drafts.set(this.#open, at("desk-text").value));
    sendOnEnter(at("desk-text"), at("desk-form"));
    at("desk-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  /** Every answer says by whom it is, and so does the box in which it is written. */
  #drawName() {
    at("desk-text").placeholder = t("desk_as", { name: at("desk-name").value.trim() || this.#session.user });
  }

  show() {
    this.#isShown = true;
    this.#list();
    if (this.#open) this.#load();
  }

  hide() {
    this.#isShown = false;
  }

  /** Of many events in a short time, one look. */
  #soon(withTurns) {
    clearTimeout(this.#asking);
    this.#asking = setTimeout(() => {
      this.#list();
      if (withTurns && this.#open) this.#load();
    }, SOON_MS);
  }

  // What waits

  async #list() {
    try {
      const { conversations, more } = await this.#session.call("GET", "v1/conversations", undefined, { status: "handed_over", limit: LISTED });
      const waiting = conversations.filter(({ handed_over }) => handed_over.waiting);
      this.#found = [...waiting, ...conversations.filter(({ handed_over }) => !handed_over.waiting)];
      // Whoever doesn't see the list hears that it has grown.
      if (waiting.length > this.#waiting) announce(t("desk_waiting", { n: waiting.length }));
      this.#waiting = waiting.length;
      count("desk", waiting.length, t("desk_waiting", { n: waiting.length }));
      this.#say(more ? t("desk_more", { n: LISTED }) : "");
      this.#drawList();
    } catch (error) {
      this.#say(error.message);
    }
  }

  #drawList() {
    at("desk-empty").hidden = this.#found.length > 0;
    const wanted = JSON.stringify([this.#found, this.#open, Math.floor(Date.now() / 60_000)]);
    if (wanted === this.#drawn) return;
    this.#drawn = wanted;
    const focused = document.activeElement?.closest?.("#desk-list button")?.dataset.id;
    at("desk-list").replaceChildren(...this.#found.map((each) => this.#row(each)));
    // Its conversation may have been handed back: the focus goes where the list begins.
    if (focused) (rowOf(focused) ?? at("desk-title")).focus();
  }

  #row({ id, user, title, handed_over }) {
    const { at: since, waiting, reason } = handed_over;
    return el("li", {}, el("button", { type: "button", "data-id": id, "aria-current": id === this.#open ? "true" : null,
      on: { click: () => this.#choose(id) } },
    el("span", { class: "title" }, title || id),
    waiting ? el("span", { class: "count", title: t("desk_waiting", { n: waiting }) }, String(waiting)) : null,
    el("span", { class: "muted" }, [user, since && ago(new Date(since)), reason].filter(Boolean).join(" · "))));
  }

  // One conversation

  #choose(id) {
    this.#open = id;
    this.#turns = [];
    at("desk-text").value = this.#drafts.get(id) ?? "";
    at("desk-note").textContent = "";
    at("desk").classList.add("open");
    this.#drawList();
    this.#drawCase();
    this.#load();
    at("case-title").focus();
  }

  #close() {
    const was = this.#open;
    this.#open = null;
    at("desk").classList.remove("open");
    this.#drawList();
    this.#drawCase();
    (rowOf(was) ?? at("desk-title")).focus();
  }

  /** Its newest turns, or those before one. */
  async #load(before) {
    const conversation = this.#open;
    try {
      const found = await this.#session.call("GET", "v1/questions", undefined, { conversation, limit: TURNS, ...(before && { before }) });
      if (conversation !== this.#open) return;
      const turns = found.questions.reverse();
      const newest = turns.at(-1);
      if (!before && this.#turns.length && newest?.text && newest.id !== this.#turns.at(-1).id) announce(newest.text);
      const earlier = before ? [] : this.#turns.filter(({ id }) => turns.length && id < turns[0].id);
      this.#turns = before ? [...turns, ...this.#turns] : [...earlier, ...turns];
      if (before || !earlier.length) this.#more = found.more;
      this.#drawCase();
    } catch (error) {
      if (conversation !== this.#open) return;
      // What isn't handed over is a question of one's own, which staff may not be allowed to ask.
      if (error.status === 404 || error.code === "scope_missing") this.#gone();
      else at("desk-note").textContent = error.message;
    }
  }

  async #gone() {
    this.#close();
    await this.#list();
    this.#say(t("desk_gone"));
  }

  #drawCase() {
    at("case").hidden = !this.#open;
    at("desk-none").hidden = Boolean(this.#open);
    const known = this.#found.find(({ id }) => id === this.#open);
    if (!this.#open) return;
    at("case-title").textContent = known?.title || this.#open;
    at("case-who").textContent = [known?.user, known?.handed_over.reason].filter(Boolean).join(" · ");
    at("case-earlier").hidden = !this.#more || !this.#turns.length;
    this.#drawTargets();
    const log = at("case-turns");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < AT_END_PX;
    const wanted = JSON.stringify([this.#turns, Math.floor(Date.now() / 60_000)]);
    // What hasn't changed stays, with what is selected in it.
    if (wanted !== this.#drawnTurns) log.replaceChildren(...this.#turns.map(turn));
    this.#drawnTurns = wanted;
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  /** What one's words are: the answer to a question that waits, the oldest first, or a message. */
  #drawTargets() {
    const chosen = at("desk-target").value;
    const open = this.#turns.filter(({ status }) => status === "handed_over");
    const options = [
      ...open.map(({ id, text }) => el("option", { value: id }, t("desk_answers", { text: brief(text) }))),
      el("option", { value: "" }, t("desk_message")),
    ];
    at("desk-target").replaceChildren(...options);
    if (open.some(({ id }) => id === chosen)) at("desk-target").value = chosen;
    at("desk-target-row").hidden = !open.length;
  }

  async #send() {
    const [text, conversation, question] = [at("desk-text").value, this.#open, at("desk-target").value];
    const name = at("desk-name").value.trim();
    if (!text.trim() || !conversation) return;
    const said = { text, ...(name && { name }) };
    at("desk-send").disabled = true;
    try {
      if (question) await this.#session.call("POST", `v1/questions/${question}/answer`, said);
      else await this.#session.call("POST", `v1/conversations/${conversation}/messages`, said, undefined, { "Idempotency-Key": word() });
      this.#drafts.delete(conversation);
      if (conversation === this.#open) {
        at("desk-text").value = "";
        at("desk-note").textContent = t("desk_sent");
      }
    } catch (error) {
      at("desk-note").textContent = error.code === "already_ended" ? t("desk_taken") : t("not_asked", { why: error.message });
    }
    at("desk-send").disabled = false;
    this.#list();
    if (conversation === this.#open) await this.#load();
    at("case-turns").scrollTop = at("case-turns").scrollHeight;
  }

  async #release() {
    try {
      await this.#session.call("POST", `v1/conversations/${this.#open}/release`, {});
      announce(t("desk_released"));
      this.#close();
    } catch (error) {
      at("desk-note").textContent = error.message;
    }
    this.#list();
  }

  #say(text) {
    at("desk-say").textContent = text;
  }
}

const rowOf = (id) => at("desk-list").querySelector(`[data-id="${CSS.escape(id)}"]`);

/** One question with what was answered, or a message of staff. */
function turn({ text, status, asked_at, updated_at, answer, error }) {
  const time = (when) => el("time", { datetime: when, title: exact(new Date(when)), class: "muted" }, ago(new Date(when)));
  const by = answer?.by;
  const waits = { handed_over: t("desk_waits"), cancelled: t("cancelled"), expired: t("expired"), failed: t("failed", { why: error?.detail ?? "" }) }[status];
  return el("li", { class: "turn", "data-status": status },
    text ? el("div", { class: "theirs" }, el("p", {}, text), time(asked_at)) : null,
    answer?.text ? el("div", { class: "ours" }, el("p", {}, answer.text),
      el("p", { class: "muted" }, [by?.name, by?.kind === "staff" && t("staff")].filter(Boolean).map((each) => `${each} · `).join(""), time(updated_at))) : null,
    waits ? el("p", { class: "muted" }, waits) : null);
}

const brief = (text) => (text.length > 60 ? `${text.slice(0, 60)}…` : text);

/** Without a secure context there is no crypto.randomUUID. */
const word = () => [...crypto.getRandomValues(new Uint8Array(12))].map((each) => each.toString(16).padStart(2, "0")).join("");

function kept() {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

function keep(name) {
  try {
    localStorage.setItem(NAME, name);
  } catch {
    // It is asked for again.
  }
}
