/**
 * The browser client of pushsse: one stream for all tabs, never deaf, never mute, which tells of every hole.
 *
 *     import { connect } from "https://push.example.com/pushsse.js";
 *     const push = connect({ token: () => fetch("/our-backend/token").then((reply) => reply.text()) });
 *     push.on("event", ({ type, message }) => show(type, message));
 *     push.on("gap", () => location.reload());
 *
 * `Connection` is what an app has. In each tab it takes part in `Tabs`, which finds the one that leads. The leader
 * runs a `Line`: a stream or, where a proxy withholds that, long polling. What the line hears goes to all tabs.
 * `Access` knows who asks, `Answers` what grows. Types and all options are in pushsse.d.ts, examples in
 * docs/browser.md. What the service serves is pushsse.min.js, which `make client` makes of this file.
 */

// A stream has to begin in this time, or a proxy may be withholding it.
const READY_MS = 5_000;
// The wait until the service says how long it is to be, and the longest that grows from it.
const RETRY_MS = 3_000;
const MOST_WAIT_MS = 60_000;
// What a call, or the app's own function for tokens, may take.
const CALL_MS = 30_000;
const POLL_S = 25;
// How long events are polled for before a stream is tried again, the first time; then twice as long each time.
const TRY_BACK_MS = 15_000;
// How often a tab looks after its leader; one that misses two questions is lost.
const TICK_MS = 400;
const UNANSWERED = 2;
// A page that didn't run, or wasn't seen, for this long may have been cut off silently.
const ASLEEP_MS = 5_000;
const HIDDEN_MS = 20_000;
const REMEMBERED = 1_000;
const QUESTIONS = 100;

/** Opens a connection. It begins by itself, and goes on until `close()`. */
export function connect(options = {}) {
  return new Connection(options);
}

/** What the service answered in place of what was asked for; `code` is for programs. */
export class PushError extends Error {
  constructor(status, { code = "", detail = code || `status ${status}`, errors = [] }) {
    super(detail);
    Object.assign(this, { name: "PushError", status, code, errors });
  }
}

/** The connection has come to an end that no new attempt can change by itself. */
class Ending extends PushError {
  constructor(state, code) {
    super(401, { code });
    this.state = state;
  }
}

class Connection {
  state = "connecting";
  reason = "";
  user = "";
  #options;
  #access;
  #handlers = new Map();
  #answers = new Answers();
  #seen = new Set();
  #budget = new Budget();
  #closing = new AbortController();
  // Aborted while the page is in the back/forward cache; null until the connection has joined the others.
  #present = null;
  #tabs = null;
  #line = null;
  // What was told while this tab catches up.
  #held = null;
  // How far back this tab begins, if it joins others and has no position.
  #since;

  constructor(options) {
    this.#options = options;
    this.#access = new Access(options);
    // How far everything was handled.
    this.position = options.position ?? "";
    this.#since = options.since;
    const call = (...request) => this.#access.call(...request);
    const ack = (state, member = "ids") => (events) => call("POST", "v1/acks", { [member]: events, state });
    this.preferences = {
      get: () => call("GET", "v1/preferences"),
      set: (changes) => call("POST", "v1/preferences", changes),
    };
    this.acks = {
      received: ack("received"),
      read: ack("read"),
      clicked: ack("clicked"),
      readUpTo: (position = this.position) => ack("read", "up_to")(position),
    };
    this.#watchPage();
    this.#join();
  }

  /** Calls `handler` with each event of this name. Returns what ends that. */
  on(name, handler) {
    if (!this.#handlers.has(name)) this.#handlers.set(name, new Set());
    const handlers = this.#handlers.get(name).add(handler);
    return () => handlers.delete(handler);
  }

  /** Asks a question. What it returns is iterated for the answer as it grows. */
  ask(text, options) {
    return new Asked(this.#access, this.#answers, { text, ...options });
  }

  /** Tries again now: after a login, or because a person asks for it. */
  reconnect() {
    this.#tabs?.say("again");
    this.#again();
  }

  /** Ends it. Another tab goes on with the stream. */
  close() {
    this.#closing.abort();
    this.#leave();
    this.#answers.close();
    this.#become({ state: "closed", reason: "" });
  }

  #watchPage() {
    const { document } = globalThis;
    const { signal } = this.#closing;
    if (!globalThis.addEventListener) return;
    const when = (name, act, target = globalThis) => target.addEventListener(name, act, { signal });
    const isHidden = () => document?.visibilityState === "hidden";
    let seenAt = Date.now();
    const check = (ms) => Date.now() - seenAt > ms && this.#line?.check();
    when("online", () => check(-1));
    // A page in the back/forward cache may hold neither a connection nor a lock.
    when("pagehide", () => this.#leave());
    when("pageshow", (event) => event.persisted && this.#join());
    if (document) when("visibilitychange", () => isHidden() || check(HIDDEN_MS), document);
    const ticking = setInterval(() => {
      this.#tabs?.tick();
      if (isHidden()) return;
      // No timer runs while the machine sleeps. Those of a hidden page are late anyway.
      check(ASLEEP_MS);
      seenAt = Date.now();
    }, TICK_MS);
    signal.addEventListener("abort", () => clearInterval(ticking));
  }

  async #join() {
    if (this.#present || this.#closing.signal.aborted) return;
    const { signal } = (this.#present = new AbortController());
    // Who has only a ticket can't catch up with the others.
    const isLate = !this.#access.polls && this.#options.position;
    const shares = this.#options.share !== false && !isLate && Tabs.possible();
    if (shares && !(await this.#identify(signal))) return;
    // A ticket needn't say whose it is, and then only a stream does.
    if (!shares || !this.user) return this.#lead();
    const name = `pushsse ${JSON.stringify([this.#access.base.href, this.#options.types ?? [], this.user])}`;
    this.#tabs = new Tabs(name, {
      lead: () => this.#lead(),
      follow: () => this.#follow(),
      again: () => this.#again(),
      told: (message) => this.#told(message),
      snapshot: (joins) => this.#snapshot(joins),
      here: (snapshot) => this.#learn(snapshot),
    });
  }

  /** Finds out who asks, since tabs of different people never share. Returns whether to go on. */
  async #identify(signal) {
    while (!signal.aborted) {
      try {
        this.user = recognized(this.user, await this.#access.who(this.#budget));
        break;
      } catch (error) {
        if (error instanceof Ending && !signal.aborted) {
          this.#present = null;
          this.#become({ state: error.state, reason: error.code });
          return false;
        }
        await this.#budget.pause(signal);
      }
    }
    return !signal.aborted;
  }

  #leave() {
    this.#present?.abort();
    this.#present = this.#held = null;
    this.#follow();
    this.#tabs?.leave();
    this.#tabs = null;
  }

  #lead() {
    // What is held comes once more, from this tab's own position.
    this.#held = null;
    const tell = (kind, data, id) => this.#tell({ kind, data, id });
    this.#line ??= new Line(this, this.#access, this.#options, this.#budget, tell);
    this.#line.run();
  }

  #follow() {
    this.#line?.stop();
    this.#line = null;
  }

  #again() {
    this.#budget.wake();
    if (!this.#tabs) this.#join();
    this.#line?.check();
    this.#line?.run();
  }

  /** From the line: to the other tabs, and to this one. */
  #tell(message) {
    message.before = this.position;
    this.#tabs?.say("told", message);
    this.#take(message);
  }

  /** From the tab that leads. */
  #told(message) {
    if (this.#held) this.#held.push(message);
    else if (this.#lacks(message.before)) this.#catchUp([message]);
    else this.#take(message);
  }

  #snapshot(joins) {
    const { state, reason, position } = this;
    return { state, reason, position, growing: joins ? this.#answers.growing() : [] };
  }

  /** The state of the tab that leads. */
  #learn(snapshot) {
    const { position, growing } = snapshot;
    this.#become(snapshot);
    // The beginning of what grows: this tab may hear of the rest alone.
    for (const { question, text } of growing) {
      if (!this.#answers.has(question)) this.#hear("answer.delta", { question, seq: 0, from: 0, text });
    }
    if (this.#held) return;
    if (this.#lacks(position)) this.#catchUp([]);
    else this.position ||= position;
  }

  /** Whether there may be something between this tab's position, or where it begins, and that of the others. */
  #lacks(position) {
    return this.position ? !covers(this.position, position) : this.#since;
  }

  /** Reads what this tab lacks: it came with a position of its own, or slept, or its leader died. */
  async #catchUp(held) {
    const { types } = this.#options;
    let since = this.position ? "" : this.#since;
    this.#held = held;
    this.#since = "";
    try {
      for (let more = true; more; since = "") {
        const query = { after: this.position, since, types };
        const page = await this.#access.call("GET", this.#access.at("v1/events", query));
        if (this.#held !== held) return;
        if (page.gap) this.#gap();
        for (const { event, data, id } of page.events) this.#take({ kind: kindOf(event, data), data, id });
        this.position = page.position;
        more = page.more;
        if (held.length > REMEMBERED) throw new Error("the others are too far ahead");
      }
    } catch {
      if (this.#held !== held) return;
      this.#gap();
      // It goes on where the others are.
      this.position = "";
    }
    this.#held = null;
    held.forEach((message) => this.#take(message));
  }

  #take({ kind, data, id }) {
    if (kind === ".state") this.#become(data);
    else if (kind === ".token") this.#access.renew(data);
    else if (!this.#repeats(kind, data, id)) this.#hear(kind, data);
    // Afterwards: an app that stores the position has handled all that lies before it.
    this.position = id || this.position;
  }

  #hear(kind, data) {
    this.#answers.hear(kind, data);
    if (kind === "event") this.#emit(`event:${data.type}`, data);
    this.#emit(kind, data);
    if (kind !== "ready") return;
    this.user = data.user;
    if (data.resume === "gap") this.#gap();
    // An answer may have come before this stream began.
    else if (data.resume === "new") this.#refresh();
  }

  #gap() {
    const heard = this.#emit("gap", { position: this.position });
    if (!heard) report(new Error("pushsse: events are missing, and nothing handles 'gap'"));
    this.#refresh();
  }

  #refresh() {
    this.#answers.refresh((question) => this.#access.call("GET", `v1/questions/${question}`));
  }

  /** Whether it came before, by another way or through another tab. */
  #repeats(kind, data, id) {
    const isLogged = !["ready", "ping", "exception", "answer.delta"].includes(kind);
    const key = kind === "event" ? `${data.type} ${data.id}` : isLogged && id && `${kind} ${id}`;
    if (!key) return false;
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    return false;
  }

  #become({ state, reason }) {
    if (state === this.state && reason === this.reason) return;
    Object.assign(this, { state, reason });
    this.#emit("state", { state, reason });
  }

  /** Returns whether anything handles it. */
  #emit(name, data) {
    const handlers = [...(this.#handlers.get(name) ?? [])];
    for (const handler of handlers) {
      try {
        handler(data);
      } catch (error) {
        report(error);
      }
    }
    return handlers.length > 0;
  }
}

/** How long to wait before the next attempt, whatever is attempted and by whichever way. */
class Budget {
  retry = RETRY_MS;
  #failures = 0;
  #least = 0;
  #wake = null;

  reset() {
    this.#failures = this.#least = 0;
  }

  /** The service has said for how long to stay away. */
  keepAway(seconds) {
    this.#least = Math.min(seconds * 1000, 5 * MOST_WAIT_MS) || 0;
  }

  /** Waits for exactly `retry` after a clean end, else with full jitter below a bound that doubles. */
  async pause(signal, clean) {
    const bound = Math.min(MOST_WAIT_MS, this.retry * 2 ** this.#failures);
    if (!clean) this.#failures++;
    const ms = clean ? this.retry : Math.max(this.#least, Math.random() * bound);
    this.#least = 0;
    await sleep(ms, signal, (wake) => (this.#wake = wake));
    this.#wake = null;
  }

  /** Ends the pause. Returns whether there was one. */
  wake() {
    this.#wake?.();
    return !!this.#wake;
  }
}

/** Who asks, and how that is proved: by a token, by a ticket, which opens a stream and nothing else, or by a cookie. */
class Access {
  #options;
  #source;
  #proof = null;

  constructor(options) {
    const page = globalThis.document?.baseURI ?? globalThis.location?.href;
    this.#options = options;
    this.#source = options.ticket ?? options.token;
    this.polls = !options.ticket;
    this.renews = typeof this.#source === "function";
    this.base = options.url ? new URL(options.url, page) : new URL(".", import.meta.url);
    if (!this.base.protocol.startsWith("http")) throw new TypeError("pushsse: no url");
    if (!this.base.pathname.endsWith("/")) this.base.pathname += "/";
  }

  /** The address of a call. What is in the query of the service's url, such as `user=ann`, stays there. */
  at(path, query = {}) {
    const url = new URL(path, this.base);
    for (const [name, value] of [...this.base.searchParams, ...Object.entries(query)]) {
      if (value !== undefined && value !== "") url.searchParams.set(name, value);
    }
    return url;
  }

  /** Takes a new token, or asks the app for one. Returns what tabs may share: a token, never a ticket. */
  async renew(token) {
    this.#proof = token ? Promise.resolve(token) : null;
    const proof = await this.prove();
    return this.polls && proof;
  }

  /** Who asks; empty for a ticket that doesn't say it. Raises Ending, PushError. */
  async who(budget) {
    if (!this.polls) return (await this.prove()).user ?? "";
    const response = await this.fetch(this.at("v1/me"), { signal: AbortSignal.timeout(READY_MS) });
    await refuse(response, budget);
    return (await response.json()).user;
  }

  /**
   * A request, and after a 401 once more, with what the app then gives. Those of streams have a `position`, which may
   * be empty; a ticket goes with them alone, and opens a stream again for as long as it lasts.
   */
  async fetch(url, { headers, position, ...init }, again = this.renews) {
    const proves = this.polls || position !== undefined;
    const proof = proves && (await this.prove());
    const own = { ...headers };
    if (this.polls && proof) own.Authorization = `Bearer ${proof}`;
    else if (proof) {
      url.searchParams.set("ticket", proof.ticket ?? proof);
      position ||= proof.position;
    }
    if (position) own["Last-Event-ID"] = position;
    const { credentials } = this.#options;
    const response = await fetch(url, { credentials, ...init, headers: own, cache: "no-store" });
    if (response.status !== 401 || !again || !proves) return response;
    // Unless another request has asked meanwhile.
    if (proof === (await this.#proof)) this.#proof = null;
    return this.fetch(url, { headers, position, ...init }, false);
  }

  /** A call with JSON both ways. Raises PushError. */
  async call(method, path, body, headers) {
    const json = { "Content-Type": "application/json", ...headers };
    const signal = AbortSignal.timeout(CALL_MS);
    const init = body ? { method, signal, headers: json, body: JSON.stringify(body) } : { signal };
    const response = await this.fetch(this.at(path), init);
    if (!response.ok) throw new PushError(response.status, await problem(response));
    return response.status === 204 ? undefined : response.json();
  }

  /** What the app gives; requests at the same time ask for it once. Raises Ending where it gives nothing. */
  async prove() {
    if (!this.renews) return this.#source;
    const asked = (this.#proof ??= inTime(async () => this.#source()));
    let proof;
    try {
      proof = await asked;
    } finally {
      if (!proof && this.#proof === asked) this.#proof = null;
    }
    if (!proof) throw new Ending("signed_out", "no_token");
    return proof;
  }
}

/** What all tabs hear, in the tab that leads: a stream or polling, begun anew until it is stopped. */
class Line {
  #app;
  #access;
  #options;
  #budget;
  #tell;
  // Aborted when it is stopped; null before, and where it has come to an end.
  #present = null;
  #attempt = null;
  // The next attempt needs no pause before it.
  #atOnce = false;
  #triedAt = 0;
  #silence_ms = 0;
  #watching = 0;
  #renewing = 0;
  // Streams in a row of which nothing was heard.
  #mute = 0;
  #tryBack_ms = TRY_BACK_MS;

  constructor(connection, access, options, budget, tell) {
    this.#app = connection;
    this.#access = access;
    this.#options = options;
    this.#budget = budget;
    this.#tell = tell;
  }

  /** Begins, also where it had come to its end. */
  async run() {
    if (this.#present) return;
    const { signal } = (this.#present = new AbortController());
    while (!signal.aborted) {
      let ended = {};
      try {
        ended = await this.#try();
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Ending) {
          this.#present = null;
          this.#become(error.state, error.code);
          return;
        }
      }
      if (signal.aborted || this.#atOnce) continue;
      this.#become("connecting", ended.reason);
      await this.#budget.pause(signal, ended.clean);
    }
  }

  stop() {
    this.#present?.abort();
    this.#attempt?.abort();
  }

  /** Makes sure of the line: no pause goes on, and what may be dead is opened anew. */
  check() {
    if (!this.#budget.wake() && Date.now() - this.#triedAt > 1_000) this.#reopen();
  }

  #reopen() {
    this.#atOnce = true;
    this.#attempt?.abort();
  }

  #become(state, reason = "") {
    this.#tell(".state", { state, reason });
  }

  /** One connection, by the way that is open. Returns how it ended, or raises what ended it. */
  async #try() {
    const attempt = (this.#attempt = new AbortController());
    this.#atOnce = false;
    this.#triedAt = Date.now();
    try {
      const polls = this.#mute > 1 && this.#access.polls;
      return await (polls ? this.#poll(attempt.signal) : this.#stream(attempt.signal));
    } finally {
      clearTimeout(this.#watching);
      clearTimeout(this.#renewing);
      attempt.abort();
    }
  }

  /** Ends the attempt unless something is heard in time. */
  #watch(ms, missed) {
    clearTimeout(this.#watching);
    const attempt = this.#attempt;
    this.#watching = setTimeout(() => {
      missed?.();
      attempt.abort();
    }, ms);
  }

  #begin() {
    const { types, since } = this.#options;
    const { position } = this.#app;
    return { position, query: { types, since: position ? "" : since } };
  }

  async #stream(signal) {
    // A slow login is no sign of a proxy.
    await this.#access.prove();
    // The second mute stream leads to polling, which may begin at once.
    this.#watch(READY_MS, () => (this.#atOnce = this.#mute++ > 0 && this.#access.polls));
    const { position, query } = this.#begin();
    const url = this.#access.at("v1/stream", { named: 0, ...query });
    const response = await this.#access.fetch(url, { position, signal });
    await refuse(response, this.#budget);
    // A page of whoever runs the network, say.
    if (!/^text\/event-stream/.test(response.headers.get("content-type"))) throw new Error("no event stream");
    const ended = {};
    const read = parser(({ name, data, id }) => {
      const content = JSON.parse(data || "{}");
      if (name === "ready") ended.beganAt = this.#begun(content, ended.wait);
      if (name === "exception") ended.exception = content;
      this.#tell(kindOf(name, content), content, id);
      if (name === "ready") this.#become("live");
    }, (ms) => (ended.wait = ms));
    const reader = response.body.getReader();
    for (let part; !(part = await reader.read()).done; ) {
      read(part.value);
      // The service is done with this stream, whether its end passes the proxies or not.
      if (ended.exception) break;
      // Also after the piece with `ready`: nothing more may come for a heartbeat.
      if (ended.beganAt) this.#watch(this.#silence_ms);
    }
    return this.#ended(ended);
  }

  /** What an `exception` means. Raises Ending where coming back is of no use. */
  async #ended({ wait, beganAt, exception: { code, retry = true } = {} }) {
    if (code === "token_expired") {
      if (this.#access.renews) await this.#renew();
      // One that lapses as soon as it is there is no reason to hurry.
      this.#atOnce = Date.now() - beganAt > 1_000;
    } else if (!retry) throw new Ending(code === "revoked" ? "signed_out" : "ended", code);
    else if (wait) this.#budget.retry = wait;
    return { clean: wait && retry, reason: code };
  }

  #begun({ user, heartbeat_s, expires_in_s }, wait = RETRY_MS) {
    recognized(this.#app.user, user);
    this.#budget.reset();
    this.#budget.retry = wait;
    this.#mute = 0;
    this.#tryBack_ms = TRY_BACK_MS;
    this.#silence_ms = 3_000 * heartbeat_s;
    if (this.#access.renews && expires_in_s) this.#renewIn(1_000 * Math.max(0.8 * expires_in_s, expires_in_s - 60));
    return Date.now();
  }

  /** Asks for a token before the old one lapses, so that there is no moment without a line. */
  #renewIn(ms) {
    const attempt = this.#attempt;
    clearTimeout(this.#renewing);
    this.#renewing = setTimeout(() => {
      // Where that fails now, it is tried once more at the end of the stream.
      this.#renew().then(() => attempt === this.#attempt && this.#reopen(), () => {});
    }, Math.min(ms, 2 ** 31 - 1));
  }

  async #renew() {
    const token = await this.#access.renew();
    if (token) this.#tell(".token", token);
  }

  /** Long polling, for a while. */
  async #poll(signal) {
    // From here one mute stream is enough to come back.
    this.#mute = 1;
    const user = recognized(this.#app.user, await this.#access.who(this.#budget));
    const until = Date.now() + this.#tryBack_ms;
    // The first answer comes at once, and says from where to go on.
    for (let wait_s = 0; !wait_s || Date.now() < until; wait_s = POLL_S) {
      const { position: after, query } = this.#begin();
      this.#watch(READY_MS + 1_000 * wait_s);
      const url = this.#access.at("v1/events", { after, ...query, wait_s });
      const response = await this.#access.fetch(url, { signal });
      await refuse(response, this.#budget);
      const { events, position, gap } = await response.json();
      this.#budget.reset();
      if (!wait_s || gap) this.#tell("ready", { user, resume: gap ? "gap" : after ? "complete" : "new" });
      this.#become("polling");
      for (const { event, data, id } of events) this.#tell(kindOf(event, data), data, id);
      this.#tell("ping", {}, position);
      // A node that is about to stop answers without a wait.
      if (wait_s && !events.length) await sleep(RETRY_MS * Math.random(), signal);
    }
    this.#tryBack_ms *= 2;
    this.#atOnce = true;
    return {};
  }
}

/**
 * Tabs of one person, of which one leads. What holds the lead is a Web Lock or, where the context isn't secure, a
 * lease in localStorage; both pass on when their tab closes. One that is frozen is missed, since the others ask
 * after it, and loses the lead.
 */
class Tabs {
  #name;
  #app;
  #channel;
  #id = random();
  #leads = false;
  #left = new AbortController();
  #waiting = null;
  #release = null;
  #heard = false;
  #unanswered = 0;

  /** Whether this place has what it takes; access to storage may be refused. */
  static possible() {
    try {
      return globalThis.location && globalThis.BroadcastChannel && (navigator.locks ?? localStorage);
    } catch {
      return false;
    }
  }

  constructor(name, app) {
    this.#name = name;
    this.#app = app;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    // true: it joins, and lacks everything.
    this.say("here?", true);
    if (navigator.locks) this.#queue();
    else this.#lease();
  }

  say(kind, content) {
    this.#channel.postMessage({ kind, content });
  }

  /** Asks after the leader. Called a few times a second. */
  tick() {
    if (this.#leads) return;
    if (this.#heard) this.#unanswered = 0;
    else if (this.#unanswered++ < UNANSWERED) this.say("here?");
    else {
      this.#unanswered = 0;
      if (navigator.locks) this.#queue({ steal: true });
      else this.#claim();
    }
    this.#heard = false;
  }

  leave() {
    this.#left.abort();
    this.#waiting?.abort();
    this.#release?.();
    if (this.#leads && !navigator.locks) {
      localStorage.removeItem(this.#name);
      this.say("bye");
    }
    this.#leads = false;
    this.#channel.close();
  }

  #hear({ kind, content }) {
    if (this.#leads) {
      if (kind === "here?") this.say("here", this.#app.snapshot(content));
      if (kind !== "again") return;
    }
    if (kind === "bye") this.#claim();
    this.#app[kind]?.(content);
    this.#heard ||= kind === "here" || kind === "told";
  }

  #lead() {
    this.#leads = true;
    this.say("here", this.#app.snapshot());
    this.#app.lead();
  }

  #follow() {
    this.#leads = false;
    this.#heard = true;
    this.#app.follow();
  }

  /** Waits for the lock, or takes it from a leader that is lost. */
  #queue(how) {
    this.#waiting?.abort();
    this.#waiting = new AbortController();
    let held = false;
    const hold = () => new Promise((release) => {
      if (this.#left.signal.aborted) return release();
      held = true;
      this.#release = release;
      this.#lead();
    });
    navigator.locks.request(this.#name, how ?? { signal: this.#waiting.signal }, hold).catch(() => {
      if (!held || this.#left.signal.aborted) return;
      // Another tab thought that this one was lost.
      this.#follow();
      this.#queue();
    });
  }

  async #lease() {
    addEventListener("storage", ({ key, newValue }) => {
      if (key === this.#name && newValue && this.#leads) this.#follow();
    }, { signal: this.#left.signal });
    // What another tab has written may show here late, later than its answer.
    await sleep(100, this.#left.signal);
    if (!this.#left.signal.aborted && !this.#heard && !localStorage.getItem(this.#name)) this.#claim();
  }

  /** Whoever writes last has the lease. */
  async #claim() {
    try {
      localStorage.setItem(this.#name, this.#id);
    } catch {
      // Storage is full. A stream of its own is better than none.
      return this.#lead();
    }
    await sleep(50 + 100 * Math.random(), this.#left.signal);
    const isMine = localStorage.getItem(this.#name) === this.#id;
    if (isMine && !this.#leads && !this.#left.signal.aborted) this.#lead();
  }
}

/** Answers as they grow, by question. */
class Answers {
  #all = new Map();
  #closed = null;

  /** What an event says about an answer. */
  hear(kind, data) {
    if (kind === "question") {
      const { id, conversation, status } = data;
      // Asked anew. That it was asked at all may be heard after its answer has begun.
      const isAnew = status === "pending" && this.#entry(id).answer.done;
      this.#change(id, { conversation, status, ...(isAnew && { text: "", parts: [], done: false, error: null }) });
    } else if (kind === "answer.delta") this.#grow(data);
    else if (kind === "answer") this.#change(data.question, { ...data, status: "answered", doing: "", done: true });
    else if (kind === "answer.error") {
      const status = data.code === "cancelled" ? data.code : "failed";
      this.#change(data.question, { status, doing: "", done: true, error: data });
    }
  }

  /** Those that a tab which joins can't know. */
  growing() {
    return [...this.#all.values()].map(({ answer }) => answer).filter(({ done }) => !done);
  }

  has(question) {
    return this.#all.has(question);
  }

  /** Looks for the ends that may have been missed of those that somebody waits for. */
  refresh(read) {
    for (const [question, { answer, followed }] of this.#all) {
      if (followed && !answer.done) read(question).then((found) => this.#find(question, found), () => {});
    }
  }

  #find(question, { status, answer, error }) {
    if (error) this.hear("answer.error", { question, ...error });
    else if (status === "answered") this.hear("answer", { question, ...answer });
    else this.#change(question, { status });
  }

  close() {
    this.#closed = new PushError(0, { code: "closed" });
    for (const entry of this.#all.values()) this.#wake(entry);
  }

  /** An answer whenever it has changed, up to its end. Raises PushError where there is none. */
  async *follow(question) {
    const entry = this.#entry(question);
    entry.followed = true;
    for (let told; ; ) {
      const { answer } = entry;
      if (told !== answer) yield answer;
      told = answer;
      if (answer.status === "failed") throw new PushError(0, answer.error);
      if (answer.done || answer.status === "handed_over") return;
      if (this.#closed) throw this.#closed;
      if (answer === entry.answer) await new Promise((wake) => entry.wakes.push(wake));
    }
  }

  #grow({ question, from, text, part }) {
    const { answer } = this.#entry(question);
    // What lies before it was missed, and the whole answer comes at the end; or that has come already.
    if (from > answer.text.length || answer.done) return;
    const doing = part?.type === "status" ? part.text : "";
    const parts = from === 0 && !part ? [] : [...answer.parts];
    const isNew = (each) => JSON.stringify(each) !== JSON.stringify(part);
    if (part && !doing && parts.every(isNew)) parts.push(part);
    this.#change(question, { text: answer.text.slice(0, from) + text, parts, doing, status: "answering" });
  }

  #change(question, changes) {
    const entry = this.#entry(question);
    entry.answer = { ...entry.answer, ...changes };
    this.#wake(entry);
  }

  #wake(entry) {
    for (const wake of entry.wakes.splice(0)) wake();
  }

  #entry(question) {
    let entry = this.#all.get(question);
    if (entry) return entry;
    const answer = { question, conversation: "", status: "pending", text: "", parts: [], doing: "", done: false };
    entry = { answer, wakes: [] };
    // The oldest that nobody waits for makes room.
    const idle = [...this.#all].find(([, each]) => each.answer.done || !each.followed);
    if (this.#all.size >= QUESTIONS && idle) this.#all.delete(idle[0]);
    this.#all.set(question, entry);
    return entry;
  }
}

/** A question that was asked here. */
class Asked {
  #access;
  #answers;

  constructor(access, answers, body) {
    this.#access = access;
    this.#answers = answers;
    /** The question's id. Rejects with a PushError where it wasn't taken. */
    this.id = this.#ask(body);
    // Whoever iterates, or awaits the id, hears of it.
    this.id.catch(() => {});
  }

  /** Stops the answer. What has come is kept. */
  async stop() {
    await this.#access.call("POST", `v1/questions/${await this.id}/cancel`, {});
  }

  async *[Symbol.asyncIterator]() {
    yield* this.#answers.follow(await this.id);
  }

  async #ask(body) {
    // With its key it is asked once, however often it is sent.
    const headers = { "Idempotency-Key": random() };
    for (let tries = 1; ; tries++) {
      try {
        return (await this.#access.call("POST", "v1/questions", body, headers)).id;
      } catch (error) {
        const passes = !error.status || error.status >= 500 || error.code === "being_taken";
        if (!passes || tries === 5) throw error;
      }
      await sleep(Math.random() * 1000 * 2 ** tries);
    }
  }
}

/**
 * Reads an event stream (WHATWG HTML, 9.2.6) in pieces of any size. `hear` gets each event, `wait` each `retry`.
 * Returns the function that takes the pieces.
 */
export function parser(hear, wait = () => {}) {
  const decoder = new TextDecoder();
  let rest = "";
  let afterCr = false;
  let name = "";
  let id = "";
  let data = [];

  const fields = {
    __proto__: null,
    event: (value) => (name = value),
    data: (value) => data.push(value),
    id: (value) => value.includes("\0") || (id = value),
    retry: (value) => /^\d+$/.test(value) && wait(Number(value)),
  };

  function take(line) {
    if (line) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s);
      fields[field]?.(value);
      return;
    }
    if (data.length) hear({ name: name || "message", data: data.join("\n"), id });
    name = "";
    data = [];
  }

  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true });
    // The second half of a line end whose first half came with the piece before.
    if (afterCr && text[0] === "\n") text = text.slice(1);
    if (!text) return;
    afterCr = text.endsWith("\r");
    const lines = (rest + text).split(/\r\n|\r|\n/);
    rest = lines.pop();
    lines.forEach(take);
  };
}

/** Who asks. A cookie may be another person's by now, whose events are none of this page's business. */
function recognized(known, user) {
  if (known && known !== user) throw new Ending("signed_out", "user_changed");
  return user;
}

/** People's events are called `event`, whatever their type; those of the service keep their names. */
function kindOf(name, data) {
  return data.type && "message" in data ? "event" : name;
}

/** Whether nothing lies between a position and an older one: EPOCH-NUMBER.EPOCH-NUMBER, each number up to its own. */
function covers(position, older) {
  const [mine, theirs] = [position, older].map((each) => each.split(/[-.]/));
  return !older || [0, 2].every((at) => mine[at] === theirs[at] && Number(mine[at + 1]) >= Number(theirs[at + 1]));
}

/** Raises Ending for a status that the same request will get again, PushError for another. */
async function refuse(response, budget) {
  if (response.ok) return;
  const found = await problem(response);
  const reason = found.code ?? `status_${response.status}`;
  if (response.status === 401) throw new Ending("signed_out", reason);
  if (response.status === 400 || response.status === 403) throw new Ending("ended", reason);
  budget.keepAway(Number(response.headers.get("retry-after")));
  throw new PushError(response.status, found);
}

/** The body of an error (RFC 9457), if a proxy hasn't put its own in its place. */
async function problem(response) {
  return response.json().catch(() => ({}));
}

/** What a function of the app's own returns. Raises what it raises, or that it takes too long. */
function inTime(act) {
  return new Promise((resolve, reject) => {
    const limit = setTimeout(() => reject(new Error("no token in time")), CALL_MS);
    act().then(resolve, reject).then(() => clearTimeout(limit));
  });
}

function sleep(ms, signal, offer = () => {}) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, signal?.aborted ? 0 : ms);
    signal?.addEventListener("abort", done);
    offer(done);
  });
}

/** A name that nobody else has; no secret. `crypto.randomUUID` is for secure contexts alone. */
function random() {
  return `${Date.now()}-${Math.random()}`;
}

/** An error of the app's own, shown as if nothing had caught it. */
function report(error) {
  (globalThis.reportError ?? console.error)(error);
}
