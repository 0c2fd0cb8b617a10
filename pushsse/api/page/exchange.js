// One question and its answer, in the conversation: both as far as they have come.

import { button, el, icon, link } from "./dom.js";
import { t } from "./words.js";

const UP = "M7 11v9H3v-9zM7 11l4-8c2 0 3 1 3 3l-1 4h6c2 0 2 2 2 3l-2 6c0 1-1 1-2 1H7";
const DOWN = "M7 13V4H3v9zM7 13l4 8c2 0 3-1 3-3l-1-4h6c2 0 2-2 2-3l-2-6c0-1-1-1-2-1H7";
const UNDER_WAY = ["pending", "answering"];

/** What a question of `GET /v1/questions` is in the words of the stream's events. */
export function fromCall({ id, conversation, text, status, answer, error, feedback }) {
  return { id, conversation, text, status, error, rating: feedback?.rating ?? "", answer: { ...NO_ANSWER, ...answer } };
}

export const NO_ANSWER = { text: "", parts: [], links: [], suggestions: [], by: null, doing: "", truncated: false };

export class Exchange {
  #acts;
  #asked = el("p", { class: "asked" });
  #doing = el("p", { class: "muted doing" });
  #text = el("div", { class: "answer" });
  #more = el("div", { class: "more" });
  #buttons = el("div", { class: "acts" });
  #drawn = "";

  /** `acts` has what the buttons do: `stop`, `again`, `rate`, `ask`. */
  constructor(acts) {
    this.#acts = acts;
    this.element = el("article", { class: "exchange" }, this.#asked, this.#text, this.#doing, this.#more, this.#buttons);
  }

  draw(question) {
    const { text, status, answer } = question;
    this.element.dataset.status = status;
    this.element.setAttribute("aria-busy", String(UNDER_WAY.includes(status)));
    this.#asked.textContent = text;
    this.#asked.hidden = !text;
    this.#grow(answer.text);
    this.#doing.textContent = this.#doingOf(question);
    // While an answer grows everything else stays as it is, and so does the focus.
    const rest = JSON.stringify([status, answer.parts, answer.links, answer.suggestions, answer.by, question.rating]);
    if (rest === this.#drawn) return;
    this.#drawn = rest;
    this.#drawMore(answer);
    this.#drawButtons(question);
  }

  /** Appends what is new, so that a screen reader reads that alone. */
  #grow(text) {
    const shown = this.#text.textContent;
    if (text === shown) return;
    if (shown && text.startsWith(shown)) this.#text.append(text.slice(shown.length));
    else this.#text.textContent = text;
  }

  #doingOf({ status, answer, error }) {
    if (status === "failed" && error?.code === "expired") return t("expired");
    if (status === "failed") return t("failed", { why: error?.detail ?? "" });
    if (UNDER_WAY.includes(status)) return answer.doing || (answer.text ? "" : t(status));
    if (["cancelled", "expired", "handed_over"].includes(status)) return t(status);
    return answer.truncated ? t("truncated") : "";
  }

  #drawMore({ parts, links, suggestions, by }) {
    const found = parts.filter(({ type }) => type === "source");
    const values = parts.filter(({ type }) => type === "data");
    const list = (links) => el("ul", {}, ...links.map(({ title, url }) => el("li", {}, link(title, url))));
    this.#more.replaceChildren(...[
      links.length ? list(links) : null,
      found.length ? el("p", { class: "muted" }, t("sources")) : null,
      found.length ? list(found) : null,
      ...values.map(({ name, data }) => el("details", {}, el("summary", {}, name), el("pre", { tabindex: 0 }, JSON.stringify(data, null, 2)))),
      suggestions.length ? el("div", { class: "suggestions" },
        ...suggestions.map((text) => button(text, () => this.#acts.ask(text)))) : null,
      by ? el("p", { class: "muted by" }, [by.name, by.kind === "staff" && t("staff")].filter(Boolean).join(" · ")) : null,
    ].filter(Boolean));
  }

  #drawButtons({ id, text, status, rating }) {
    const hadFocus = this.#buttons.contains(document.activeElement);
    const rate = (value, path) => button(icon(path), () => this.#acts.rate(id, value),
      { label: t(value), title: t(value), "aria-pressed": String(rating === value) });
    const made = [];
    if (UNDER_WAY.includes(status)) made.push(button(t("stop"), () => this.#acts.stop(id)));
    else if (text && status !== "handed_over") made.push(button(t("regenerate"), () => this.#acts.again(id)));
    if (status === "answered") made.push(rate("up", UP), rate("down", DOWN));
    const place = [...this.#buttons.children].indexOf(document.activeElement);
    this.#buttons.replaceChildren(...made);
    if (hadFocus) (made[place] ?? made[0])?.focus();
  }
}
