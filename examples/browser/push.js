// A person's stream in a page: reconnects and resumes by itself, drops repeats, rests while the page is hidden away.

const REMEMBERED = 1000;

export function push(url, { onEvent, onGap, onEnd }) {
  const seen = new Set();
  let source = null;
  let lastId = "";

  function fresh(id) {
    if (seen.has(id)) return false;
    seen.add(id);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
    return true;
  }

  function open() {
    if (source) return;
    const address = new URL(url, location.href);
    address.searchParams.set("named", "0");
    // EventSource resumes its own connections; a new one has to be told where to go on.
    if (lastId) address.searchParams.set("last_event_id", lastId);
    source = new EventSource(address, { withCredentials: true });
    source.addEventListener("message", (event) => {
      lastId = event.lastEventId;
      const data = JSON.parse(event.data);
      if (fresh(data.id)) onEvent(data);
    });
    source.addEventListener("ping", (event) => { lastId = event.lastEventId; });
    source.addEventListener("ready", (event) => {
      lastId = event.lastEventId;
      if (JSON.parse(event.data).resume === "gap") onGap();
    });
    source.addEventListener("exception", (event) => {
      const { code, retry } = JSON.parse(event.data);
      if (retry) return;
      close();
      onEnd(code);
    });
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
  return { close };
}

const list = document.getElementById("events");
const state = document.getElementById("state");
if (list && state) {
  const user = new URLSearchParams(location.search).get("user");
  push(`/v1/stream${user ? `?user=${encodeURIComponent(user)}` : ""}`, {
    onEvent(event) {
      const line = document.createElement("li");
      const text = typeof event.message === "string" ? event.message : JSON.stringify(event.message);
      line.textContent = `${event.type}: ${text}`;
      list.prepend(line);
    },
    onGap() { state.textContent = "Some events were missed."; },
    onEnd(code) { state.textContent = `The stream has ended: ${code}`; },
  });
}
