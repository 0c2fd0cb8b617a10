// One event as a card: its type's title, when, what, and its raw data on demand.

import { button, el } from "./dom.js";
import { ago, exact, t } from "./words.js";

const MOST_LINES = 12;
const MOST_CHARACTERS = 2_000;
const COLOURS = 6;

const short = (text) => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)}…` : text);
const plain = (value) => short(typeof value === "string" ? value : JSON.stringify(value));

/** The colour of a type: the same one in each tab and at each visit. */
function colour(type) {
  let sum = 0;
  for (const letter of type) sum = (sum * 31 + letter.codePointAt(0)) % 9_973;
  return sum % COLOURS;
}

/** A message for people: a text as it is, members of an object as lines. */
function messageOf(message) {
  if (message === "" || message === null) return el("p", { class: "muted" }, t("empty_message"));
  if (typeof message !== "object") return el("p", { class: "text" }, plain(message));
  const lines = Object.entries(message);
  if (!lines.length) return el("p", { class: "muted" }, t("none"));
  const list = Array.isArray(message)
    ? el("ul", {}, ...lines.slice(0, MOST_LINES).map(([, value]) => el("li", {}, plain(value))))
    : el("dl", {}, ...lines.slice(0, MOST_LINES).flatMap(([key, value]) => [el("dt", {}, short(key)), el("dd", {}, plain(value))]));
  const more = lines.length - MOST_LINES;
  return el("div", {}, list, more > 0 ? el("p", { class: "muted" }, t("cut", { n: more })) : null);
}

/** The raw data, made when somebody opens it. */
function raw(data) {
  const details = el("details", {}, el("summary", {}, t("raw")));
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("pre")) return;
    const text = JSON.stringify(data, null, 2);
    const copy = button(t("copy"), async () => {
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = t("copied");
      } catch {
        getSelection().selectAllChildren(details.querySelector("pre"));
      }
    });
    // It scrolls by itself, so it can be reached by keyboard.
    details.append(el("pre", { tabindex: 0, "aria-label": t("raw") }, text), copy);
  });
  return details;
}

/** @returns {HTMLLIElement} */
export function card(data, { title, isRead }) {
  const when = new Date(data.ts);
  return el("li", { class: `card colour-${colour(data.type)}${isRead ? " read" : ""}`, "data-type": data.type },
    el("article", {},
      el("header", {},
        el("h3", {}, title),
        isRead ? null : el("span", { class: "dot", role: "img", "aria-label": t("is_unread"), title: t("is_unread") }),
        el("time", { datetime: data.ts, title: exact(when) }, ago(when))),
      data.desc ? el("p", { class: "desc" }, data.desc) : null,
      messageOf(data.message),
      raw(data)));
}

/** Marks a card as read. */
export function markRead(made) {
  made.classList.add("read");
  made.querySelector(".dot")?.remove();
}

/** Brings the relative times up to date. */
export function age(root) {
  const now = Date.now();
  for (const each of root.querySelectorAll("time")) {
    const text = ago(new Date(each.dateTime), now);
    if (each.textContent !== text) each.textContent = text;
  }
}
