// A person's stream in a page: reconnects and resumes by itself, reopens the stream after three silent heartbeats,
// drops repeats, and closes the stream while the page is in the back/forward cache. What is shown for an event is
// replaced, withdrawn or marked as read with it: `keyOf` says which events take each other's place.
// `ticket`, a function that fetches one from the page's own backend, is for pages that send neither cookie nor header.

const REMEMBERED = 1000;

// The same key for everybody and for this person alone are two keys.
export function keyOf(data) {
  const key = data.collapse ?? data.withdraw;
  return key === undefined ? data.id : `${data.to ?? "me"} ${key}`;
}

export function push(url, { ticket, onOpen = () => {}, onEvent, onWithdraw = () => {}, onAck = () => {}, onGap, onEnd }) {
  const seen = new Set();
  let source = null;
  let lastId = "";
  let heartbeat = 15;
  let watch = 0;
  let failures = 0;
  let opening = false;
  let ended = false;

  function fresh(id) {
    if (seen.has(id)) return false;
    seen.add(id);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
    return true;
  }

  // A connection can die silently (a frozen server, a lost network), and EventSource would wait forever. The service
  // sends something at least once per heartbeat, so after three heartbeats without a frame the stream is dead.
  function alive(event) {
    if (event?.lastEventId) lastId = event.lastEventId;
    clearTimeout(watch);
    watch = setTimeout(() => { close(); open(); }, (3 + Math.random() / 2) * heartbeat * 1000);
  }

  async function open() {
    if (source || opening || ended) return;
    const address = new URL(url, location.href);
    address.searchParams.set("named", "0");
    if (ticket) {
      opening = true;
      try {
        const made = await ticket();
        address.searchParams.set("ticket", made.ticket);
        lastId ||= made.position;
      } catch {
        return again();
      } finally {
        opening = false;
      }
      if (ended) return;
    }
    // EventSource resumes by itself when it reconnects. A new EventSource has to be told the position.
    if (lastId) address.searchParams.set("last_event_id", lastId);
    source = new EventSource(address, { withCredentials: true });
    alive();
    source.addEventListener("message", (event) => {
      alive(event);
      const data = JSON.parse(event.data);
      if (fresh(data.id)) onEvent(data);
    });
    source.addEventListener("pushsse.withdraw", (event) => {
      alive(event);
      onWithdraw(JSON.parse(event.data));
    });
    // Read here, or on another of the person's devices: {ids, state} or {up_to, state}.
    source.addEventListener("ack", (event) => {
      alive(event);
      onAck(JSON.parse(event.data));
    });
    for (const name of ["ping", "preferences", "question", "answer", "answer.delta", "answer.error"]) {
      source.addEventListener(name, alive);
    }
    source.addEventListener("ready", (event) => {
      const ready = JSON.parse(event.data);
      heartbeat = ready.heartbeat_s;
      failures = 0;
      alive(event);
      onOpen(ready);
      // Something is missing that the service no longer has: reload what the page shows.
      if (ready.resume === "gap") onGap();
    });
    source.addEventListener("exception", (event) => {
      alive(event);
      const { code, retry } = JSON.parse(event.data);
      if (code === "token_expired" && ticket) again();
      else if (!retry) end(code);
    });
    source.addEventListener("error", () => {
      // The status wasn't 200: EventSource doesn't reconnect. The ticket may have lapsed; the next one is a new one.
      if (source?.readyState !== EventSource.CLOSED) return;
      if (ticket && failures < 5) again();
      else end("refused");
    });
  }

  function close() {
    clearTimeout(watch);
    if (source) source.close();
    source = null;
  }

  function again() {
    close();
    const wait = Math.min(60_000, 2000 * 2 ** failures++);
    watch = setTimeout(open, wait * (0.5 + Math.random()));
  }

  function end(code) {
    ended = true;
    close();
    onEnd(code);
  }

  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
  return { close: () => { ended = true; close(); } };
}

export async function acknowledge(stream, body) {
  const address = new URL("acks", stream);
  address.search = new URL(stream).search;
  await fetch(address, { method: "POST", credentials: "include", body: JSON.stringify(body) });
}

const list = document.getElementById("events");
const state = document.getElementById("state");
if (list && state) {
  // ?server=http://127.0.0.1:8000&user=ann; without `server`, the site of this page.
  const asked = new URLSearchParams(location.search);
  const url = new URL("v1/stream", asked.get("server") ?? document.baseURI);
  const lines = new Map();
  const byId = new Map();
  if (asked.has("user")) url.searchParams.set("user", asked.get("user"));
  push(url, {
    onOpen() { state.textContent = "open"; },
    onEvent(event) {
      const line = document.createElement("li");
      const text = typeof event.message === "string" ? event.message : JSON.stringify(event.message);
      line.textContent = `${event.type}: ${text}`;
      lines.get(keyOf(event))?.remove();
      lines.set(keyOf(event), line);
      byId.set(event.id, line);
      // Read here; the `ack` that comes back marks it on all devices, and on this one.
      line.addEventListener("click", () => acknowledge(url, { ids: [event.id], state: "read" }));
      list.prepend(line);
    },
    onWithdraw(event) {
      lines.get(keyOf(event))?.remove();
      lines.delete(keyOf(event));
    },
    onAck({ ids, state: read }) {
      // With `up_to` it is all that came before, but for what came between that place and the ack.
      for (const id of ids ?? byId.keys()) {
        if (read !== "received") byId.get(id)?.classList.add("read");
      }
    },
    onGap() { state.textContent = "Some events were missed."; },
    onEnd(code) { state.textContent = `The stream has ended: ${code}`; },
  });
}
