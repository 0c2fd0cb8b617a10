// Quiet hours: windows of the week in a zone, and a pause until some time.

import { at, button, el } from "./dom.js";
import { exact, t } from "./words.js";

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const HOUR_MS = 3_600_000;

export class QuietHours {
  #change;
  #known = "";

  /** `change` sends changes of preferences. */
  constructor(change) {
    this.#change = change;
    at("quiet-add").addEventListener("click", () => {
      const made = this.#window({ from: "22:00", to: "07:00", days: DAYS });
      at("windows").append(made);
      made.querySelector("input").focus();
    });
    at("quiet-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save({ quiet: this.#windows(), zone: at("zone").value.trim() });
    });
    for (const [id, hours] of [["pause-1", 1], ["pause-8", 8], ["pause-off", 0]]) {
      at(id).addEventListener("click", () => {
        const until = hours ? new Date(Date.now() + hours * HOUR_MS).toISOString() : null;
        this.#save({ paused_until: until });
      });
    }
    at("zone").value = Intl.DateTimeFormat().resolvedOptions().timeZone;
  }

  draw({ quiet, zone, paused_until }) {
    const isPaused = paused_until && new Date(paused_until) > new Date();
    at("paused").textContent = isPaused ? t("paused", { until: exact(new Date(paused_until)) }) : "";
    at("pause-off").hidden = !isPaused;
    const known = JSON.stringify([quiet, zone]);
    // What somebody is writing stays, unless it was changed elsewhere.
    if (known === this.#known) return;
    const isFirst = !this.#known;
    this.#known = known;
    if (!isFirst || quiet.length) at("windows").replaceChildren(...quiet.map((each) => this.#window(each)));
    if (zone) at("zone").value = zone;
  }

  async #save(changes) {
    const note = at("quiet-note");
    try {
      await this.#change(changes);
      note.textContent = t("saved");
    } catch (error) {
      const why = error.errors?.map(({ at: place, detail }) => `${place} ${detail}`).join("; ") || error.message;
      note.textContent = t("not_saved", { why });
    }
  }

  #window({ from, to, days }) {
    const day = (name) => el("label", { class: "day" },
      el("input", { type: "checkbox", name, checked: days.includes(name) }), t(name));
    const made = el("fieldset", {},
      el("legend", {}, t("quiet")),
      el("label", {}, t("from"), el("input", { type: "time", class: "from", required: true, value: from })),
      // A field for times has no 24:00.
      el("label", {}, t("to"), el("input", { type: "time", class: "to", required: true, value: to === "24:00" ? "00:00" : to })),
      el("div", { class: "days", role: "group", "aria-label": t("days") }, ...DAYS.map(day)),
      button(t("remove"), () => {
        made.remove();
        at("quiet-add").focus();
      }));
    return made;
  }

  #windows() {
    return [...at("windows").querySelectorAll("fieldset")].map((each) => ({
      from: each.querySelector(".from").value,
      to: each.querySelector(".to").value,
      days: DAYS.filter((name) => each.querySelector(`[name=${name}]`).checked),
    }));
  }
}
