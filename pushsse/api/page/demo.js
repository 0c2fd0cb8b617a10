// A demo: four types with titles in both languages, three people, and events now and then until a real one comes.

import { at } from "./dom.js";
import { t } from "./words.js";

const EVERY_MS = 3_000;
const MOST = 60;
const PREFIX = "demo.";
const TYPES = {
  "demo.order": { title: { en: "Orders", zh: "订单" }, description: { en: "What becomes of your orders", zh: "您的订单的进展" }, order: 1 },
  "demo.alarm": { title: { en: "Alarms", zh: "告警" }, description: { en: "Always on", zh: "必收" }, mandatory: true, urgent: true, order: 2 },
  "demo.news": { title: { en: "News", zh: "新闻" }, category: "marketing", order: 3 },
  "demo.offer": { title: { en: "Offers", zh: "优惠" }, description: { en: "At most one a week", zh: "每周最多一条" },
    category: "marketing", order: 4 },
};
const PEOPLE = ["ann", "bo", "chen"];
const STATES = ["paid", "packed", "sent", "delivered"];

/** The events of one turn: an order goes on for one of the people, the rest is for everybody. */
function event(number, user) {
  const step = Math.floor(number / 4);
  const events = [
    { type: "demo.order", to: { users: [...new Set([...PEOPLE, user])] }, desc: `Order 981: ${STATES[step % STATES.length]}`,
      message: { order: 981, status: STATES[step % STATES.length], total: "49.00 EUR" }, collapse: "demo-order-981" },
    { type: "demo.news", to: "all", message: "pushsse brings this to every open page and app." },
    { type: "demo.alarm", to: "all", desc: "Cold store 3", message: { temperature: -12 - (step % 5), unit: "°C" } },
    { type: "demo.offer", to: "all", message: "Ten percent off until Sunday" },
  ];
  return { ...events[number % events.length], ttl_s: 3_600 };
}

export class Demo {
  #session;
  #count = 0;
  #timer = 0;

  constructor(session) {
    this.#session = session;
    at("demo").addEventListener("click", () => (this.#timer ? this.#stop() : this.#start()));
    at("demo-here").addEventListener("click", () => {
      at("events-title").focus();
      if (!this.#timer) this.#start();
    });
    session.on("event", ({ type }) => !type.startsWith(PREFIX) && this.#stop());
  }

  async #start() {
    at("demo").textContent = t("demo_stop");
    this.#count = 0;
    this.#timer = setInterval(() => this.#turn(), EVERY_MS);
    try {
      for (const [name, rules] of Object.entries(TYPES)) await this.#session.call("PUT", `v1/types/${name}`, rules);
      await this.#turn();
    } catch (error) {
      this.#stop(error.message);
    }
  }

  #stop(why = "") {
    clearInterval(this.#timer);
    this.#timer = 0;
    at("demo").textContent = t("demo");
    at("demo-note").textContent = why;
  }

  async #turn() {
    if (document.visibilityState === "hidden") return;
    if (this.#count >= MOST) return this.#stop();
    try {
      await this.#session.call("POST", "v1/events", event(this.#count++, this.#session.user));
    } catch (error) {
      this.#stop(error.message);
    }
  }
}
