// A person's stream with @microsoft/fetch-event-source, for pages that send a token in a header.
//
// The package doesn't reconnect by itself after a clean end, which is how every restart of the service ends a stream:
// `onclose` has to throw. It also repeats the headers of its first request, so an old token would stay. Each connection
// here is therefore a new call, with a fresh token and position.

import { fetchEventSource } from "@microsoft/fetch-event-source";

const REMEMBERED = 1000;
const MOST_WAIT_MS = 60_000;

class Again extends Error {}
class Refused extends Error {}

export async function listen(url, { token, onOpen = () => {}, onEvent, onGap, onEnd, signal, lastId = "" }) {
  const seen = new Set();
  let retry = 3000;
  let silence = 45_000;
  let failures = 0;
  let refused = "";
  let used = "";

  function fresh(id) {
    if (seen.has(id)) return false;
    seen.add(id);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
    return true;
  }

  async function isUsed() {
    try {
      return (await token()) === used;
    } catch {
      return false;
    }
  }

  function hear({ id, event, data, retry: wait }) {
    const content = data ? JSON.parse(data) : {};
    if (event === "exception" && !content.retry) throw new Refused(content.code);
    if (wait) retry = wait;
    if (event === "ready") {
      failures = 0;
      silence = 3 * content.heartbeat_s * 1000;
      onOpen(content);
      // Something is missing that the service no longer has: reload what the page shows.
      if (content.resume === "gap") onGap();
    } else if ("message" in content && fresh(content.id)) {
      onEvent(content);
    }
    if (id) lastId = id; // only after the event was handled: an event that wasn't handled is sent again
  }

  async function once() {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal?.addEventListener("abort", stop);
    // After three silent heartbeats the connection is dead, even if nothing closed it.
    let watch = setTimeout(stop, silence);
    try {
      used = await token();
      const headers = { Authorization: `Bearer ${used}` };
      if (lastId) headers["Last-Event-ID"] = lastId;
      await fetchEventSource(url, {
        headers,
        signal: attempt.signal,
        openWhenHidden: true,
        async onopen(response) {
          if ([400, 401, 403].includes(response.status)) throw new Refused(`status ${response.status}`);
          if (!response.ok) throw new Again(`status ${response.status}`);
        },
        onmessage(message) {
          clearTimeout(watch);
          watch = setTimeout(stop, silence);
          hear(message);
        },
        onclose() { throw new Again("the service ended the stream"); },
        onerror(error) { throw error; },
      });
    } finally {
      clearTimeout(watch);
      signal?.removeEventListener("abort", stop);
    }
  }

  while (!signal?.aborted && !refused) {
    try {
      await once();
    } catch (error) {
      // The same call can never succeed; with another token it may.
      if (error instanceof Refused && (await isUsed())) refused = error.message;
    }
    if (signal?.aborted || refused) break;
    const wait = Math.min(MOST_WAIT_MS, retry * 1.5 ** Math.min(failures++, 8));
    await new Promise((resolve) => setTimeout(resolve, wait * (0.8 + 0.4 * Math.random())));
  }
  if (refused) onEnd(refused);
}
