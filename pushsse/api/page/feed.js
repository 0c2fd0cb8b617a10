// The feed: what came, the newest first. It has a bounded number of cards, and never moves what somebody reads.

import { age, card, markRead } from "./card.js";
import { announce, at, soon } from "./dom.js";
import { Reading } from "./reading.js";
import { Timeline } from "./session.js";
import { count as countInView } from "./views.js";
import { t } from "./words.js";

const MOST = 300;
// In one frame: making all of them at once would hold up the page.
const MOST_A_FRAME = 30;
const AGE_MS = 30_000;
// Whoever has scrolled further down reads there.
const AT_TOP_PX = 80;

// Everybody's keys are apart from one's own.
const keyOf = (data) => `${data.to ?? "me"} ${data.collapse ?? data.withdraw}`;

export class Feed {
  #list = at("events");
  #reading;
  #titleOf;
  // By id, oldest first: what is shown, and what waits for the next frame, or until nobody reads further down.
  #shown = new Map();
  #waiting = new Map();
  #byKey = new Map();
  #isDue = false;
  #isNew = false;
  #isLoaded = false;

  /** `titleOf` says what a type is called; `loaded` is called when the last hour is there. */
  constructor(session, { titleOf, loaded }) {
    this.#titleOf = titleOf;
    this.#reading = new Reading(session, (ids) => this.#read(ids));
    const timeline = { show: (kind, data) => this.#hear(kind, data), restart: () => this.#restart(loaded) };
    new Timeline(session, ["event", "pushsse.withdraw", "ack"], timeline);
    at("new").addEventListener("click", () => this.#showAll());
    at("read-all").addEventListener("click", () => this.#reading.readAll().catch((error) => announce(error.message)));
    addEventListener("scroll", () => this.#waiting.size && !this.#isBusy() && this.#later(), { passive: true });
    this.#list.addEventListener("focusout", () => this.#waiting.size && this.#later());
    setInterval(() => document.visibilityState === "visible" && age(this.#list), AGE_MS);
    document.addEventListener("visibilitychange", () => age(this.#list));
    this.#count();
  }

  /** Types have got other titles. */
  retitle() {
    for (const { data, made } of this.#shown.values()) {
      const title = this.#titleOf(data.type);
      const heading = made.querySelector("h3");
      if (heading.textContent !== title) heading.textContent = title;
    }
  }

  #restart(loaded) {
    for (const { made } of this.#shown.values()) this.#drop(made);
    for (const each of [this.#shown, this.#waiting, this.#byKey]) each.clear();
    this.#reading.restart();
    this.#isNew = false;
    this.#isLoaded = true;
    this.#later();
    loaded();
  }

  #hear(kind, data) {
    if (kind === "ack") this.#reading.hear(data);
    else {
      if (data.collapse ?? data.withdraw) this.#replace(keyOf(data));
      if (kind === "event") this.#add(data);
    }
    this.#later();
  }

  #add(data) {
    // One id may be used for each of several types.
    const id = `${data.type} ${data.id}`;
    if (data.collapse) this.#byKey.set(keyOf(data), id);
    this.#waiting.set(id, data);
    this.#reading.came(data.id);
    // What no card will be made of needn't be kept.
    if (this.#waiting.size > MOST) this.#forget(this.#waiting);
  }

  /** What was shown with a key makes room: for a later one, or for nothing. */
  #replace(key) {
    const id = this.#byKey.get(key);
    if (id === undefined) return;
    this.#byKey.delete(key);
    const data = this.#waiting.get(id) ?? this.#shown.get(id)?.data;
    if (data) this.#reading.gone(data.id);
    this.#waiting.delete(id);
    if (this.#shown.has(id)) this.#drop(this.#shown.get(id).made);
    this.#shown.delete(id);
  }

  #forget(entries) {
    const [id, entry] = entries.entries().next().value;
    const data = entry.made ? entry.data : entry;
    entries.delete(id);
    if (data.collapse && this.#byKey.get(keyOf(data)) === id) this.#byKey.delete(keyOf(data));
    if (entry.made) this.#drop(entry.made);
  }

  #drop(made) {
    this.#reading.unwatch(made);
    made.remove();
  }

  /** Whether new cards would move what somebody reads. */
  #isBusy() {
    if (!this.#shown.size) return false;
    const { activeElement } = document;
    if (this.#list.contains(activeElement)) return true;
    return this.#list.getBoundingClientRect().top < -AT_TOP_PX;
  }

  /** At most once a frame, however much comes. */
  #later() {
    if (this.#isDue) return;
    this.#isDue = true;
    soon(() => {
      this.#isDue = false;
      if (!this.#isBusy()) this.#draw(MOST_A_FRAME);
      this.#count();
      if (this.#waiting.size && !this.#isBusy()) this.#later();
    });
  }

  #showAll() {
    this.#draw(MOST);
    this.#count();
    scrollTo({ top: 0 });
    // The button is gone; the first card is what was asked for.
    at("events-title").focus({ preventScroll: true });
  }

  /** Makes cards of the oldest that wait. */
  #draw(most) {
    if (!this.#waiting.size) return;
    const made = [];
    for (const [id, data] of [...this.#waiting].slice(0, most)) {
      this.#waiting.delete(id);
      const isRead = this.#reading.isRead(data.id);
      const one = card(data, { title: this.#titleOf(data.type), isRead });
      this.#shown.set(id, { data, made: one });
      if (!isRead) this.#reading.watch(one, data.id);
      made.unshift(one);
    }
    if (this.#isNew) announce(t("came", { title: made[0].querySelector("h3").textContent }));
    this.#isNew = true;
    this.#list.prepend(...made);
    while (this.#shown.size > MOST) this.#forget(this.#shown);
  }

  #read(ids) {
    const read = ids && new Set(ids);
    for (const { data, made } of this.#shown.values()) {
      if (read && !read.has(data.id)) continue;
      markRead(made);
      this.#reading.unwatch(made);
    }
    this.#later();
  }

  #count() {
    const { count } = this.#reading;
    countInView("events", count, t("unread", { n: count }));
    at("unread").textContent = count ? t("unread", { n: count }) : "";
    at("read-all").hidden = !count;
    at("new").hidden = !this.#waiting.size || !this.#isBusy();
    at("new").textContent = t("new", { n: this.#waiting.size });
    at("empty").hidden = !this.#isLoaded || this.#shown.size + this.#waiting.size > 0;
    document.title = count ? `(${count}) ${t("title")}` : t("title");
  }
}
