// The header: how the connection really stands, who is here; and the way in for whoever isn't.

import { at, button, el } from "./dom.js";
import { knows, t } from "./words.js";

// After a connection has begun anew, what was missed comes at once; then there is a moment without anything.
const QUIET_MS = 400;

export class StateLine {
  #session;
  #wasLive = false;
  #isCatchingUp = 0;
  #isLoading = false;

  constructor(session) {
    this.#session = session;
    session.on("state", (now) => this.#become(now));
    session.on("ready", ({ user, resume }) => {
      this.#person(user);
      if (resume === "complete") this.#catchUp();
    });
    session.on("event", () => this.#isCatchingUp && this.#catchUp());
    session.on("gap", () => this.#gap());
    at("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = at("token").value.trim();
      at("token").value = "";
      if (token) session.signIn(token);
    });
    if (session.login) at("login").replaceChildren(el("a", { href: session.login, class: "button" }, t("login")));
    at("sign-out").addEventListener("click", () => session.signOut());
  }

  /** What was shown is loaded anew, after a gap. */
  loaded() {
    this.#isLoading = false;
    this.#become(this.#session.push);
  }

  #become({ state, reason }) {
    const isLive = state === "live" || state === "polling";
    if (isLive) this.#person(this.#session.user);
    const shown = !isLive ? (state === "connecting" && this.#wasLive ? "again" : state)
      : this.#isLoading ? "gap" : this.#isCatchingUp ? "catching_up" : state;
    this.#wasLive ||= isLive;
    const why = reason && knows(reason) ? t(reason) : reason;
    const line = at("state");
    line.dataset.state = state === "connecting" ? state : shown;
    line.title = why;
    const text = why && shown !== "live" ? `${t(shown)}: ${why}` : t(shown);
    // The same text once more would be read out once more.
    if (line.textContent !== text) line.textContent = text;
    const isOut = state === "signed_out";
    at("way-in").hidden = !isOut;
    at("sign-out").hidden = isOut || !this.#session.token;
    document.body.classList.toggle("signed-out", isOut);
    const again = { revoked: () => this.#session.push.reconnect(), user_changed: () => location.reload() };
    const retry = state === "ended" ? again.revoked : isOut && again[reason];
    at("retry").replaceChildren(...(retry ? [button(t("try_again"), retry)] : []));
    if (!isOut) return;
    at("why-out").textContent = why;
    // Nobody is interrupted who writes somewhere.
    if (document.activeElement === document.body) at("token").focus();
    if (!this.#wasLive) this.#session.goToLogin();
    this.#session.forgetToken();
  }

  #person(user) {
    at("person").textContent = user;
    at("person").title = t("person", { user });
  }

  #catchUp() {
    clearTimeout(this.#isCatchingUp);
    this.#isCatchingUp = setTimeout(() => {
      this.#isCatchingUp = 0;
      this.#become(this.#session.push);
    }, QUIET_MS);
    this.#become(this.#session.push);
  }

  #gap() {
    this.#isLoading = true;
    this.#become(this.#session.push);
    const note = el("p", {}, t("gap_note"), " ", button(t("ok"), () => note.remove()));
    at("notes").replaceChildren(note);
  }
}
