// A chat with useChat that outlives reloads, lost connections and nodes. See README.md.
import { Chat, useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const address = new URLSearchParams(location.search);
const server = address.get("server") ?? "";
const user = address.get("user");
// The chat's id stays in the address, so that a reload shows it again.
const id = location.hash.slice(1) || crypto.randomUUID();
history.replaceState(null, "", `#${id}`);

// In development the query says who is asking. Elsewhere a token does, fetched for each call so that it is never old;
// where the page and the service share a site, the cookie is enough.
const token = user ? null : async () => (await fetch("/my/push-token")).text();
const headers = async () => (token ? { Authorization: `Bearer ${await token()}` } : {});
const call = (path) => `${server}/v1/chat${path}?reset=1${user ? `&user=${encodeURIComponent(user)}` : ""}`;

const load = async () => {
  const response = await fetch(call(`/${id}/messages`), { headers: await headers() });
  if (!response.ok) throw new Error(await response.text());
  return (await response.json()).messages;
};

// A connection that was lost, a node that stops, an answer that begins again, a token that has ended: the answer goes on.
const isLost = (error) => {
  if (error instanceof TypeError || /^(interrupted|token_expired):/.test(error.message)) return true;
  try {
    return JSON.parse(error.message).status >= 500;
  } catch {
    return false;
  }
};

async function goOn(chat) {
  await new Promise((resolve) => setTimeout(resolve, 1000 + 1000 * Math.random()));
  // A question that may not have arrived is sent once more: the same message is asked once.
  if (chat.lastMessage?.role === "user") return chat.sendMessage();
  await chat.resumeStream();
  // The answer may have ended meanwhile, and then there was nothing to resume.
  if (chat.status === "ready") chat.messages = await load();
}

function Answer({ parts }) {
  return parts.map((part, index) => {
    if (part.type === "text") return <div key={index} className="assistant">{part.text}</div>;
    if (part.type === "source-url") return <div key={index}><a href={part.url}>{part.title}</a></div>;
    if (part.type === "data-suggestions") return <ul key={index}>{part.data.map((each) => <li key={each}>{each}</li>)}</ul>;
    if (part.type === "data-handover") return <em key={index}>Somebody will answer here.</em>;
    return null;
  });
}

function Page({ chat, heard }) {
  const { messages, sendMessage, regenerate, status, error } = useChat({ chat, resume: true });
  const [text, setText] = useState("");
  const [doing, setDoing] = useState("");
  heard.current = setDoing;
  const busy = status === "submitted" || status === "streaming";
  const send = (event) => {
    event.preventDefault();
    sendMessage({ text });
    setText("");
  };
  // Not chat.stop(), which only leaves: this stops the answer on all devices.
  const stop = async () => fetch(call(`/${id}/stop`), { method: "POST", headers: await headers() });
  return (
    <>
      {messages.map((message) =>
        message.role === "user"
          ? <div key={message.id} className="user">{message.parts.map(({ text }) => text)}</div>
          : <Answer key={message.id} parts={message.parts} />)}
      <div className="status">{busy && (doing || "…")}</div>
      <div className="error">{error && !isLost(error) && error.message}</div>
      <form onSubmit={send}>
        <input value={text} onChange={(event) => setText(event.target.value)} aria-label="Question" />
        {busy
          ? <button type="button" onClick={stop}>Stop</button>
          : <button disabled={!text.trim()}>Ask</button>}
        {!busy && messages.length > 0 && <button type="button" onClick={() => regenerate()}>Again</button>}
      </form>
    </>
  );
}

const heard = { current: () => {} };
const chat = new Chat({
  id,
  messages: await load(),
  transport: new DefaultChatTransport({ api: call(""), headers }),
  onData: ({ type, data }) => type === "data-status" && heard.current(data.text),
  onError: (error) => isLost(error) && goOn(chat),
  onFinish: () => heard.current(""),
});
createRoot(document.getElementById("chat")).render(<Page chat={chat} heard={heard} />);
