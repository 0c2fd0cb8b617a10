// The plug: cuts this page's line while events are published, and counts what became of them.

import { t } from "./words.js";

const CUT_MS = 5_000;
const EVENTS = 20;
// After the line is back: how long what was missed may take.
const MOST_MS = 20_000;
// A repeat would come right after the first.
const AFTER_MS = 1_000;
const TYPE = "demo.plug";

/** While it is cut, streams and polls of this page break and can't be opened; what publishes goes another way. */
class Cut {
  #fetch = globalThis.fetch;
  #end = new AbortController();

  begin() {
    const isLine = (url) => /\/v1\/(stream|events)$/.test(new URL(url, document.baseURI).pathname);
    globalThis.fetch = (url, init = {}) => {
      if (init.method === "POST" || !isLine(url)) return this.#fetch.call(globalThis, url, init);
      if (this.#end.signal.aborted) return Promise.reject(new TypeError("the line is cut"));
      const signal = AbortSignal.any([this.#end.signal, ...(init.signal ? [init.signal] : [])]);
      return this.#fetch.call(globalThis, url, { ...init, signal });
    };
  }

  now() {
    this.#end.abort();
  }

  end() {
    globalThis.fetch = this.#fetch;
  }
}

/** Cuts the line for five seconds. `tell` gets what is happening; the last of it has the figures. */
export async function pull(session, tell) {
  const run = crypto.randomUUID().slice(0, 8);
  const came = new Map();
  const off = session.on("event", ({ type, id }) => type === TYPE && id.startsWith(run) && came.set(id, (came.get(id) ?? 0) + 1));
  const cut = new Cut();
  cut.begin();
  try {
    // With a line of its own, since another tab's can't be cut from here.
    session.reopen({ share: false });
    await until(() => session.push.state === "live", MOST_MS);
    cut.now();
    const ids = await publish(session, run, tell);
    const missed = ids.filter((id) => !came.has(id));
    cut.end();
    tell(t("plug_in"));
    session.push.reconnect();
    await until(() => came.size >= ids.length, MOST_MS);
    await pause(AFTER_MS);
    const recovered = missed.filter((id) => came.has(id)).length;
    const twice = [...came.values()].filter((count) => count > 1).length;
    tell(t("plug_done", { missed: missed.length, recovered, lost: missed.length - recovered, twice }));
  } finally {
    off();
    cut.end();
    session.reopen();
  }
}

async function publish(session, run, tell) {
  const ids = [];
  const to = { users: [session.user] };
  for (let number = 1; number <= EVENTS; number++) {
    const wait = pause(CUT_MS / EVENTS);
    const event = { type: TYPE, id: `${run}-${number}`, to, message: `${number} / ${EVENTS}`, ttl_s: 600 };
    ids.push(...(await session.call("POST", "v1/events", event)).ids);
    tell(t("plug_out", { n: number }));
    await wait;
  }
  return ids;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Returns whether it came to be so in time. */
async function until(check, ms) {
  for (const end = Date.now() + ms; !check() && Date.now() < end; ) await pause(50);
  return check();
}
