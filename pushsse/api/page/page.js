// Shows one person's stream with the browser's own EventSource: it reconnects and resumes by itself.
"use strict";

const at = (id) => document.getElementById(id);
const SHOWN = 200;
let source = null;
let lastId = "";
let heartbeat = 15;
let watch = 0;
const known = new Set();
let user = new URLSearchParams(location.search).get("user") || "dev";
const answers = new Map();
const cards = new Map();

// Relative: behind a proxy the page may be under a sub-path, https://host/push/.
function url(path) {
  return `${path}${path.includes("?") ? "&" : "?"}user=${encodeURIComponent(user)}`;
}

async function call(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(url(path), { ...options, headers: { "Content-Type": "application/json" } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function show(name, text, small, service) {
  const line = document.createElement("li");
  if (service) line.className = "service";
  const title = document.createElement("b");
  title.textContent = name;
  const detail = document.createElement("small");
  detail.textContent = small;
  line.append(title, text, detail);
  at("events").prepend(line);
  while (at("events").children.length > SHOWN) at("events").lastChild.remove();
  return line;
}

// What was shown with an event's key makes room: for a later one, or for nothing. Everybody's keys are apart from one's own.
function replace(data, line) {
  const key = `${data.to ?? "me"} ${data.collapse ?? data.withdraw}`;
  cards.get(key)?.remove();
  if (line) cards.set(key, line); else cards.delete(key);
}

function draw(types) {
  const rows = types.map((type) => {
    const row = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = type.enabled;
    box.disabled = type.mandatory;
    box.addEventListener("change", async () => {
      try {
        draw((await call("v1/preferences", { types: { [type.name]: box.checked } })).types);
      } catch (error) {
        box.checked = !box.checked;
        show("not changed", error.message, "", true);
      }
    });
    row.append(box, ` ${type.title || type.name}`);
    if (type.description) row.title = type.description;
    return row;
  });
  if (rows.length) at("switches").replaceChildren(...rows);
}

async function switches() {
  try {
    draw((await call("v1/preferences")).types);
  } catch (error) {
    show("switches", error.message, "", true);
  }
}

function answer(id) {
  if (!answers.has(id)) {
    const article = document.createElement("article");
    at("answers").prepend(article);
    answers.set(id, { article, text: "", title: "" });
  }
  return answers.get(id);
}

function drawAnswer(known, note) {
  known.article.textContent = `${known.title}\n\n${known.text}${note || ""}`.trim();
}

// The service's own links begin with a slash, which is where the page is.
function link({ title, url: address }) {
  const line = document.createElement("a");
  line.textContent = title;
  line.href = new URL(address.replace(/^\/(?!\/)/, ""), document.baseURI);
  if (!/^https?:$/.test(line.protocol)) line.removeAttribute("href");
  return line;
}

const SERVICE = {
  ping() {},
  ready(data) {
    heartbeat = data.heartbeat_s;
    alive();
    at("state").textContent = `open on ${data.node} (${data.resume})`;
    if (data.resume === "gap") show("gap", "events were missed that the server no longer has", "", true);
    switches();
  },
  preferences: switches,
  "pushsse.withdraw": (data) => replace(data, null),
  ack: (data) => show("ack", `${data.state}: ${data.ids ? data.ids.join(", ") : "all so far"}`, "", true),
  question(data) {
    const known = answer(data.id);
    known.title = data.text;
    // Asked, or asked anew.
    if (data.status === "pending") known.text = "";
    drawAnswer(known, { pending: "…", handed_over: "\n(people answer this)" }[data.status] ?? "");
  },
  "answer.delta"(data) {
    const known = answer(data.question);
    known.text = known.text.slice(0, data.from) + data.text;
    drawAnswer(known, " …");
  },
  answer(data) {
    const known = answer(data.question);
    known.text = data.text;
    const more = data.suggestions.map((text) => `\n• ${text}`).join("");
    drawAnswer(known, more);
    known.article.append(...data.links.map(link));
  },
  "answer.error"(data) {
    drawAnswer(answer(data.question), `\n(${data.detail})`);
  },
  exception(data) {
    show("exception", `${data.code}: ${data.detail}`, "", true);
    if (!data.retry) close();
  },
};

// A connection can die without a word, and EventSource waits for ever: after three heartbeats it is opened anew.
function alive(event) {
  if (event?.lastEventId) lastId = event.lastEventId;
  clearTimeout(watch);
  watch = setTimeout(open, (3 + Math.random() / 2) * heartbeat * 1000);
}

function close() {
  clearTimeout(watch);
  if (source) source.close();
}

function open() {
  close();
  at("user").value = user;
  at("state").textContent = "connecting";
  // named=0: types that nobody has heard of yet come as plain messages, so none is missed.
  const from = lastId ? `last_event_id=${encodeURIComponent(lastId)}` : "since=1h";
  source = new EventSource(url(`v1/stream?named=0&${from}`));
  alive();
  source.onerror = () => {
    if (source.readyState === 2) clearTimeout(watch);
    at("state").textContent = source.readyState === 2 ? "closed" : "reconnecting";
  };
  source.onmessage = (event) => {
    alive(event);
    const data = JSON.parse(event.data);
    const text = typeof data.message === "string" ? data.message : JSON.stringify(data.message);
    const line = show(data.type, text, `${data.desc ? data.desc + " · " : ""}${new Date(data.ts).toLocaleTimeString()}`);
    if (data.collapse) replace(data, line);
    if (!known.has(data.type)) { known.add(data.type); setTimeout(switches, 500); }
  };
  for (const [name, act] of Object.entries(SERVICE)) {
    source.addEventListener(name, (event) => { alive(event); act(JSON.parse(event.data)); });
  }
}

at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  user = at("user").value.trim() || "dev";
  at("events").replaceChildren();
  at("answers").replaceChildren();
  answers.clear();
  cards.clear();
  lastId = "";
  open();
});
at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await call("v1/questions", { text: at("question").value });
    at("question").value = "";
  } catch (error) {
    show("question", error.message, "", true);
  }
});
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => { if (event.persisted) open(); });
open();
