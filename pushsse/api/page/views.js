// Which of the page's views is shown: the events, the desk of staff, the overview of administrators. Each has its
// place in the address. The last two are loaded for those who may see them, when they are first looked at.

import { at, el } from "./dom.js";
import { t } from "./words.js";

const RETRY_MS = 5_000;
// What each needs, and who makes it.
const VIEWS = {
  desk: { scope: "pushsse:answer", make: async (session) => new (await import("./desk.js")).Desk(session) },
  overview: { scope: "pushsse:admin", make: async (session) => new (await import("./overview.js")).Overview(session) },
};
// Whoever has it has all others.
const ALL = "pushsse:admin";

export class Views {
  #session;
  #scopes = [];
  #made = new Map();
  #user = "";
  #shown = "events";
  #wanted = "events";
  // What is shown, where it isn't the events.
  #view = null;

  constructor(session) {
    this.#session = session;
    session.on("state", ({ state }) => (state === "live" || state === "polling") && this.#ask());
    addEventListener("hashchange", () => this.#look({ isAsked: true }));
  }

  /** What the person may do, once for each person. */
  async #ask() {
    const { user } = this.#session;
    if (this.#user === user) return;
    this.#user = user;
    try {
      const { scope } = await this.#session.call("GET", "v1/me");
      this.#scopes = scope.split(" ");
      // What somebody may not use isn't shown: page.css.
      document.body.dataset.may = scope;
    } catch {
      this.#user = "";
      setTimeout(() => this.#ask(), RETRY_MS * (1 + Math.random()));
      return;
    }
    const names = Object.keys(VIEWS).filter((name) => this.#may(name));
    at("views").hidden = !names.length;
    at("views").replaceChildren(...["events", ...names].map((name) => el("a", { href: `#${name}`, "data-view": name },
      el("span", {}, t(name)), el("span", { class: "count" }))));
    this.#look({ isAsked: false });
  }

  #may(name) {
    return this.#scopes.includes(VIEWS[name].scope) || this.#scopes.includes(ALL);
  }

  async #look({ isAsked }) {
    const wanted = location.hash.slice(1);
    // Other places in the page, such as where the skip link leads, change no view.
    if (wanted && wanted !== "events" && !Object.hasOwn(VIEWS, wanted)) return this.#draw();
    const name = wanted && wanted !== "events" && this.#may(wanted) ? wanted : "events";
    this.#wanted = name;
    if (name === this.#shown && this.#view) return this.#draw();
    // Before it is shown: a form that nobody listens to yet would load the page anew.
    const view = name === "events" ? null : await this.#load(name);
    // Another one was chosen meanwhile, or the same once more.
    if (this.#wanted !== name || (view && this.#view === view)) return;
    this.#view?.hide();
    this.#shown = name;
    this.#view = view;
    this.#draw();
    view?.show();
    scrollTo({ top: 0 });
    // Somebody who chose it begins at its top.
    if (isAsked) at(`${name}-title`).focus({ preventScroll: true });
  }

  /** The view, which is made once. */
  #load(name) {
    if (!this.#made.has(name)) {
      const made = VIEWS[name].make(this.#session);
      this.#made.set(name, made);
      made.catch(() => this.#made.delete(name));
    }
    return this.#made.get(name);
  }

  #draw() {
    document.body.dataset.view = this.#shown;
    at("skip").hash = `${this.#shown}-title`;
    at("skip").textContent = t(`skip_to_${this.#shown}`);
    for (const name of Object.keys(VIEWS)) at(name).hidden = this.#shown !== name;
    for (const link of at("views").children) {
      if (link.dataset.view === this.#shown) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }
}

/** What a view's link counts; nothing for zero. */
export function count(name, number, label) {
  const counter = at("views").querySelector(`a[data-view="${name}"] .count`);
  if (!counter) return;
  counter.textContent = number ? String(number) : "";
  counter.title = number ? label : "";
}
