// The overview of administrators: what all nodes do, the catalogue with what people chose, and what is known of a person.

import { announce, at, button, el } from "./dom.js";
import { ago, exact, language, locale, t } from "./words.js";

const EVERY_MS = 2_000;
// Each look at the catalogue leaves an audit line.
const TYPES_MS = 300_000;
// While one look isn't answered no other begins, for so long: the connection may have died.
const WAIT_MS = 10_000;
// Its numbers are older than three reports.
const OLD_MS = 8_000;

const whole = new Intl.NumberFormat(locale, { maximumFractionDigits: 0 });
const rate = new Intl.NumberFormat(locale, { maximumFractionDigits: 1 });
const share = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });

export class Overview {
  #session;
  #timer = 0;
  #types = [];
  #typesAt = 0;
  #waitUntil = 0;
  #user = "";

  constructor(session) {
    this.#session = session;
    document.addEventListener("visibilitychange", () => this.#timer && this.#look());
    at("person-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#lookUp(at("person-name").value.trim());
    });
    at("explain-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#explain(at("explain-event").value.trim());
    });
    at("kick").addEventListener("click", () => this.#askKick());
  }

  show() {
    this.#typesAt = 0;
    this.#timer ||= setInterval(() => this.#look(), EVERY_MS);
    this.#look();
  }

  hide() {
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  async #look() {
    if (document.visibilityState === "hidden" || Date.now() < this.#waitUntil) return;
    this.#waitUntil = Date.now() + WAIT_MS;
    try {
      const found = await this.#session.call("GET", "v1/overview");
      if (Date.now() - this.#typesAt > TYPES_MS) {
        this.#types = (await this.#session.call("GET", "v1/types")).types;
        this.#typesAt = Date.now();
      }
      at("overview-note").textContent = "";
      this.#draw(found);
    } catch (error) {
      at("overview-note").textContent = error.status === 404 ? t("inside_only") : error.message;
    }
    this.#waitUntil = 0;
  }

  #draw({ at: now, nodes, totals, lag, chosen }) {
    const tiles = [
      ["streams", whole.format(totals.streams)],
      ["people", whole.format(totals.people)],
      ["published_s", rate.format(totals.published_per_s)],
      ["delivered_s", rate.format(totals.delivered_per_s)],
      ["lag", whole.format(totals.lag), totals.lag ? Object.entries(lag).map(([topic, n]) => `${topic} ${whole.format(n)}`).join(", ") : ""],
      ["dead_letters", whole.format(totals.dead_letters)],
    ];
    fill(at("tiles"), tiles.map(([name, value, more]) => [name, value, more ?? ""].join("\n")), () => tiles.map(([name, value, more]) =>
      el("div", {}, el("dt", {}, t(name)), el("dd", {}, value, more ? el("small", {}, more) : null))));
    this.#drawNodes(nodes, new Date(now));
    this.#drawTypes(chosen);
  }

  #drawNodes(nodes, now) {
    const columns = ["node", "state", "streams", "behind", "published_s", "delivered_s", "lag", "cpu", "memory", "since"];
    const rows = nodes.map((each) => {
      const isOld = each.at && now - new Date(each.at) > OLD_MS;
      const wrong = [!each.backplane && t("no_redis"), !each.database && t("no_database"), each.held && t("held", { n: each.held }),
        isOld && t("silent")].filter(Boolean);
      const isWell = each.state === "ready" && !wrong.length;
      return [
        each.node, el("span", { class: isWell ? "well" : "ill" }, [each.state === "ready" ? t("ready") : each.state, ...wrong].join(" · ")),
        whole.format(each.streams), whole.format(each.behind), rate.format(each.published_per_s), rate.format(each.delivered_per_s),
        whole.format(Object.values(each.lag).reduce((sum, n) => sum + n, 0)), share.format(each.cpu),
        each.memory_bytes ? `${whole.format(each.memory_bytes / 2 ** 20)} MiB` : "–",
        each.started_at ? el("time", { datetime: each.started_at, title: exact(new Date(each.started_at)) }, ago(new Date(each.started_at))) : "–",
      ];
    });
    fill(at("nodes"), rows.map((row) => row.map((cell) => cell.textContent ?? cell).join("\n")), () => table(columns, rows, t("nodes")));
  }

  #drawTypes(chosen) {
    const by = new Map((chosen ?? []).map((each) => [each.name, each]));
    const rows = this.#types.map(({ name, title, category, mandatory, default: isOn, urgent }) => {
      const { on = 0, off = 0 } = by.get(name) ?? {};
      return [
        el("span", {}, inLanguage(title) || name, title ? el("small", {}, name) : null),
        category || "–",
        [mandatory ? t("always") : t(isOn ? "on" : "off"), urgent && t("urgent")].filter(Boolean).join(" · "),
        chosen ? whole.format(on) : "–", chosen ? whole.format(off) : "–",
        on + off ? el("span", { class: "rate" }, el("meter", { min: 0, max: 1, value: off / (on + off), "aria-label": t("off_share") }),
          ` ${share.format(off / (on + off))}`) : "–",
      ];
    });
    const columns = ["type", "category", "default", "switched_on", "switched_off", "off_share"];
    at("catalogue-empty").hidden = rows.length > 0;
    fill(at("catalogue"), rows.map((row) => row.map((cell) => cell.textContent ?? cell).join("\n")), () => (rows.length ? table(columns, rows, t("catalogue")) : []));
  }

  // A person

  async #lookUp(user) {
    if (!user) return;
    this.#user = user;
    at("explained").replaceChildren();
    at("kick-row").replaceChildren(at("kick"));
    at("kick-note").textContent = "";
    try {
      const found = await this.#session.call("GET", `v1/users/${encodeURIComponent(user)}`);
      this.#drawPerson(found);
      at("person-more").hidden = false;
      at("kick").textContent = t("kick", { user });
    } catch (error) {
      at("person-more").hidden = true;
      at("person-found").replaceChildren(el("p", { class: "error" }, error.message));
    }
  }

  #drawPerson({ user, online, streams, nodes, last_seen }) {
    const says = online ? t("is_there", { user, n: streams }) : last_seen ? t("was_there", { user, when: ago(new Date(last_seen)) }) : t("never_there", { user });
    const rows = nodes.map(({ node, streams, since }) => [node, whole.format(streams), exact(new Date(since))]);
    at("person-found").replaceChildren(el("p", {}, says), ...(rows.length ? table(["node", "streams", "since"], rows, t("nodes")) : []));
  }

  async #explain(event) {
    if (!event) return;
    const shown = at("explained");
    shown.replaceChildren(el("p", { class: "muted" }, t("looking")));
    try {
      const { verdict, timeline, incomplete } = await this.#session.call("GET", `v1/users/${encodeURIComponent(this.#user)}/explain/${encodeURIComponent(event)}`);
      shown.replaceChildren(
        el("p", {}, el("strong", {}, t(`what_${verdict}`))),
        el("ol", { class: "timeline" }, ...timeline.map(({ at: when, what, detail, node, how, by, since }) => el("li", {},
          el("time", { datetime: when, class: "muted" }, exact(new Date(when))), el("span", {}, t(`what_${what}`).replace(/^what_/, "")),
          el("span", { class: "muted" }, [node, [detail, how && t(`how_${how}`, { by: by || t("name_deleted") }), since && exact(new Date(since))].filter(Boolean).join(", ")].filter(Boolean).join(": "))))),
        ...incomplete.map((text) => el("p", { class: "muted" }, text)));
    } catch (error) {
      shown.replaceChildren(el("p", { class: "error" }, error.message));
    }
  }

  /** What can't be undone is asked about first. */
  #askKick() {
    const user = this.#user;
    const back = () => {
      at("kick-row").replaceChildren(kick);
      kick.focus();
    };
    const kick = at("kick");
    const sure = button(t("kick", { user }), async () => {
      back();
      try {
        const { within_s } = await this.#session.call("POST", `v1/users/${encodeURIComponent(user)}/kick`, {});
        at("kick-note").textContent = t("kicked", { user, n: within_s });
      } catch (error) {
        at("kick-note").textContent = error.message;
      }
    }, { class: "danger" });
    at("kick-row").replaceChildren(el("p", {}, t("kick_help")), sure, button(t("cancel"), back));
    announce(t("kick_help"));
    sure.focus();
  }
}

/** Makes anew what has changed alone, so that neither a selection nor a place is lost each two seconds. */
function fill(place, rows, make) {
  const wanted = rows.join("\n\n");
  if (place.dataset.drawn === wanted) return;
  place.dataset.drawn = wanted;
  place.replaceChildren(...make());
}

/** A table; on a phone each row is a card. It stays a table for screen readers then, too. */
function table(columns, rows, label) {
  const head = el("tr", { role: "row" }, ...columns.map((name) => el("th", { role: "columnheader", scope: "col" }, t(name))));
  return [el("table", { role: "table", "aria-label": label }, el("thead", { role: "rowgroup" }, head), el("tbody", { role: "rowgroup" },
    ...rows.map(([first, ...rest]) => el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, first),
      ...rest.map((cell, place) => el("td", { role: "cell", "data-label": t(columns[place + 1]), class: /^[\d–]/.test(cell) ? "number" : null }, cell))))))];
}

/** A text that is one for all, or one for each language. */
const inLanguage = (text) => (typeof text === "string" ? text : text[language] ?? Object.entries(text).find(([tag]) => tag.startsWith(language))?.[1] ?? Object.values(text)[0]);
