// The switches: a row for each type, by category. A switch acts at once, and goes back where that fails.

import { announce, at, el } from "./dom.js";
import { QuietHours } from "./quiet.js";
import { t } from "./words.js";

const ASK_MS = 700;
// A type joins the catalogue some time after its first event.
const MOST_ASKED = 5;
// With more rows one looks for them by name.
const MANY = 12;

export class Switches {
  #session;
  #tell;
  #rows = new Map();
  #groups = new Map();
  #titles = new Map();
  #asking = 0;
  #asked = new Map();
  #quiet;

  /** `tell` is called when types have got other titles. */
  constructor(session, tell) {
    this.#session = session;
    this.#tell = tell;
    this.#quiet = new QuietHours((changes) => this.#change(changes));
    session.on("state", ({ state }) => (state === "live" || state === "polling") && this.load());
    session.on("preferences", () => this.#soon());
    at("find-type").addEventListener("input", () => this.#filter());
  }

  /** What a type is called. One that isn't known is asked for. */
  titleOf(type) {
    if (!this.#titles.has(type)) {
      const asked = this.#asked.get(type) ?? 0;
      if (asked < MOST_ASKED) {
        this.#asked.set(type, asked + 1);
        this.#soon();
      }
    }
    return this.#titles.get(type) || type;
  }

  #soon() {
    this.#asking ||= setTimeout(() => {
      this.#asking = 0;
      this.load();
    }, ASK_MS);
  }

  async load() {
    try {
      this.#draw(await this.#session.call("GET", "v1/preferences"));
    } catch (error) {
      // Whoever may not switch anything doesn't see the switches.
      if (error.code !== "scope_missing") this.#say(error.message);
    }
  }

  /** Changes some preferences. Raises what the call raises. */
  async #change(changes) {
    this.#draw(await this.#session.call("POST", "v1/preferences", changes));
  }

  #say(text) {
    at("switch-note").textContent = text;
    announce(text);
  }

  #draw({ types, categories, ...quiet }) {
    const before = JSON.stringify([...this.#titles]);
    this.#titles = new Map(types.map(({ name, title }) => [name, title]));
    at("no-types").hidden = types.length > 0;
    at("find-type").hidden = types.length <= MANY;
    const named = [...new Set(types.map(({ category }) => category))];
    for (const category of named) this.#drawGroup(category, categories, named.length > 1);
    for (const type of types) this.#drawRow(type);
    this.#tidy(types, named);
    this.#quiet.draw(quiet);
    this.#filter();
    if (JSON.stringify([...this.#titles]) !== before) this.#tell();
    // Those that are still unknown are asked for again.
    for (const type of this.#asked.keys()) if (!this.#titles.has(type)) this.titleOf(type);
  }

  /** Rows stay the elements that they are, so that the one with the focus keeps it. */
  #drawRow(type) {
    const found = this.#rows.get(type.name) ?? this.#makeRow(type.name);
    const { row, box, title, description, marks } = found;
    const group = this.#groups.get(type.category).rows;
    if (row.parentNode !== group) group.append(row);
    title.textContent = type.title || type.name;
    description.textContent = type.description;
    marks.textContent = [type.mandatory && t("always"), type.urgent && t("urgent")].filter(Boolean).join(" · ");
    box.checked = type.enabled;
    box.disabled = type.mandatory;
  }

  #makeRow(name) {
    const box = this.#box((enabled) => ({ types: { [name]: enabled } }), () => this.#titles.get(name) || name);
    const [title, marks] = [el("span", { class: "title" }), el("span", { class: "marks" })];
    const description = el("span", { class: "muted", id: `about-${name}` });
    box.setAttribute("aria-describedby", description.id);
    const row = el("li", { class: "switch" }, el("label", {}, box, title, " ", marks), description);
    const made = { row, box, title, description, marks };
    this.#rows.set(name, made);
    return made;
  }

  #drawGroup(category, categories, hasOthers) {
    if (!this.#groups.has(category)) {
      const rows = el("ul");
      const box = category ? this.#box((on) => ({ categories: { [category]: on } }), () => category) : null;
      const label = category ? el("label", {}, box, el("span", { class: "title" }, t("whole_category", { name: category }))) : null;
      const heading = el("h3", {}, category || t("others"));
      const group = el("section", { "aria-label": category || t("others") }, heading, label, rows);
      this.#groups.set(category, { group, rows, box, heading });
    }
    const { group, box, heading } = this.#groups.get(category);
    heading.hidden = !category && !hasOthers;
    if (box) box.checked = categories[category] ?? true;
    if (!group.isConnected) at("switches").append(group);
  }

  #tidy(types, named) {
    const names = new Set(types.map(({ name }) => name));
    for (const [name, { row }] of this.#rows) {
      if (names.has(name)) continue;
      row.remove();
      this.#rows.delete(name);
    }
    for (const [name, { group }] of this.#groups) if (!named.includes(name)) group.remove();
  }

  #box(changes, title) {
    const box = el("input", { type: "checkbox", role: "switch" });
    box.addEventListener("change", async () => {
      const enabled = box.checked;
      try {
        await this.#change(changes(enabled));
        this.#say(t(enabled ? "is_on" : "is_off", { title: title() }));
      } catch (error) {
        box.checked = !enabled;
        this.#say(t("not_saved", { why: error.message }));
      }
    });
    return box;
  }

  #filter() {
    const wanted = at("find-type").hidden ? "" : at("find-type").value.trim().toLowerCase();
    for (const { row, title } of this.#rows.values()) row.hidden = !title.textContent.toLowerCase().includes(wanted);
  }
}

/** The panel, which covers a phone's page while it is open. On a wide page it is always there. */
export class Panel {
  #wide = matchMedia("(min-width: 60rem)");

  constructor() {
    this.#wide.addEventListener("change", () => this.#isOpen && this.#open(true));
    at("settings").addEventListener("click", () => this.#open(!this.#isOpen));
    at("panel-close").addEventListener("click", () => this.#open(false));
    at("panel").addEventListener("keydown", ({ key }) => key === "Escape" && this.#isOpen && this.#open(false));
    const look = () => location.hash === "#switches" && this.#open(true);
    addEventListener("hashchange", look);
    look();
  }

  get #isOpen() {
    return at("panel").classList.contains("open");
  }

  #open(isOpen) {
    at("panel").classList.toggle("open", isOpen);
    // What it covers can't be reached meanwhile.
    for (const each of document.querySelectorAll(".top, main")) each.inert = isOpen && !this.#wide.matches;
    at("settings").setAttribute("aria-expanded", String(isOpen));
    at(isOpen ? "switches-title" : "settings").focus();
    if (!isOpen && location.hash === "#switches") history.replaceState(null, "", location.pathname + location.search);
  }
}
