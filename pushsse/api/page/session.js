// Who is here, and this person's connection: the browser client, and calls that it doesn't have.

import { connect, PushError } from "../pushsse.js";
import { locale } from "./words.js";

const TOKEN = "pushsse.token";
const WENT = "pushsse.went";
// Whoever comes back from the login without a session within this time isn't sent there again.
const AWAY_MS = 60_000;
const HISTORY = { since: "1h", limit: 1_000 };
const MOST_PAGES = 400;
// Of the last hour: more than what can be shown, so that what is unread is counted.
const MOST_LOADED = 10_000;
const RETRY_MS = 5_000;
const REMEMBERED = 2_000;

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content;

export class Session {
  /** @type {import("../pushsse.js").Connection} */
  push = null;
  // Whom the page names. Only where anybody may be anybody.
  named = meta("user") === undefined ? "" : new URLSearchParams(location.search).get("user") || meta("user");
  #handlers = [];
  #attached = [];

  constructor() {
    // Where a link may sign one in, which is by the code in the terminal. It has done its duty then.
    const [, token] = location.hash.match(/^#token=([\w.-]+)$/) ?? [];
    if (!token || meta("lan") === undefined) return;
    sessionStorage.setItem(TOKEN, token);
    history.replaceState(null, "", location.pathname + location.search);
  }

  get token() {
    return sessionStorage.getItem(TOKEN) ?? "";
  }

  get user() {
    return this.push?.user || this.named;
  }

  /** Calls `handler` with each event of this name, whichever connection it comes by. Returns what ends that. */
  on(name, handler) {
    const mine = [name, handler];
    this.#handlers.push(mine);
    if (this.push) this.#attach(...mine);
    return () => {
      this.#handlers = this.#handlers.filter((each) => each !== mine);
      this.#attached.filter(({ of }) => of === handler).forEach(({ off }) => off());
    };
  }

  #attach(name, handler) {
    this.#attached.push({ of: handler, off: this.push.on(name, handler) });
  }

  /** Opens the connection, in place of the one before. */
  open(options = {}) {
    for (const { off } of this.#attached.splice(0)) off();
    this.push?.close();
    this.push = connect({ url: this.#url("").href, ...(this.token && { token: this.token }), ...options });
    for (const each of this.#handlers) this.#attach(...each);
    for (const [name, handler] of this.#handlers) if (name === "state") handler(this.push);
  }

  /** Goes on with the same place in the stream, in another way. */
  reopen(options = {}) {
    const { position } = this.push;
    this.open(position ? { ...options, position } : options);
  }

  /** Another person begins with an empty page. */
  signIn(token) {
    sessionStorage.setItem(TOKEN, token);
    location.reload();
  }

  /** The token is good for nothing any more; after a reload there may be a cookie. */
  forgetToken() {
    sessionStorage.removeItem(TOKEN);
  }

  signOut() {
    this.forgetToken();
    location.reload();
  }

  /** Where one signs in, and comes back from; empty where a token is asked for. */
  get login() {
    const page = new URL(location.href);
    // A link that signs in, where it may not: its token is for nobody else.
    if (page.hash.startsWith("#token=")) page.hash = "";
    return (meta("login") ?? "").replaceAll("{page}", encodeURIComponent(page.href));
  }

  /** Goes there, unless one just came from there. */
  goToLogin() {
    const went = Number(sessionStorage.getItem(WENT));
    if (!this.login || this.token || Date.now() - went < AWAY_MS) return;
    sessionStorage.setItem(WENT, String(Date.now()));
    location.assign(this.login);
  }

  #url(path, query = {}) {
    // Relative: behind a proxy the page may be under a sub-path, https://host/push/.
    const url = new URL(path || ".", document.baseURI);
    url.search = new URLSearchParams({ ...query, ...(this.named && { user: this.named }) });
    url.hash = "";
    return url;
  }

  /** A call with JSON both ways, with texts in the page's language. Raises PushError. */
  async call(method, path, body, query, more = {}) {
    const headers = { ...more, "Accept-Language": locale, "Content-Type": "application/json" };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    const init = { method, headers, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body) };
    const response = await fetch(this.#url(path, query), init);
    if (!response.ok) throw new PushError(response.status, await response.json().catch(() => ({})));
    return response.status === 204 ? null : response.json();
  }

  /** What came in the last hour, oldest first, in pages. */
  async *history() {
    for (let page, after, count = 0; count < MOST_PAGES && (page?.more ?? true); count++) {
      const { since, limit } = HISTORY;
      page = await this.call("GET", "v1/events", undefined, after ? { after, limit } : { since, limit });
      after = page.position;
      yield page.events.map(({ event, data }) => [data.type && "message" in data ? "event" : event, data]);
    }
  }
}

/**
 * What is shown as it came: first the last hour, then what the connection brings. After a gap all of it anew.
 * `show` gets a kind and its data; `restart` is called before it begins anew.
 */
export class Timeline {
  #session;
  #show;
  #restart;
  #seen = new Set();
  #held = null;
  #loaded = false;
  #asked = 0;

  constructor(session, kinds, { show, restart }) {
    this.#session = session;
    this.#show = show;
    this.#restart = restart;
    for (const kind of kinds) session.on(kind, (data) => (this.#held ? this.#held.push([kind, data]) : this.#take(kind, data)));
    session.on("state", () => this.#loadIfLive());
    session.on("gap", () => this.load());
  }

  #loadIfLive() {
    if (["live", "polling"].includes(this.#session.push.state) && !this.#loaded) this.load();
  }

  async load() {
    const asked = ++this.#asked;
    const held = (this.#held = this.#held ?? []);
    this.#loaded = true;
    try {
      let found = [];
      for await (const page of this.#session.history()) found = [...found, ...page].slice(-MOST_LOADED);
      if (asked !== this.#asked) return;
      this.#seen.clear();
      this.#restart();
      for (const each of found) this.#take(...each);
    } catch {
      // What is new is shown anyway.
      if (asked !== this.#asked) return;
      this.#loaded = false;
      setTimeout(() => this.#loadIfLive(), RETRY_MS * (1 + Math.random()));
    }
    if (asked !== this.#asked) return;
    this.#held = null;
    for (const each of held) this.#take(...each);
  }

  #take(kind, data) {
    if (kind === "event") {
      const key = `${data.type} ${data.id}`;
      if (this.#seen.has(key)) return;
      this.#seen.add(key);
      if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    }
    this.#show(kind, data);
  }
}
