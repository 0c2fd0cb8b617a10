import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { usePush } from "./usePush.js";

// In production: { url, token } or { url, ticket }. In development the address says who is calling.
const url = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8000/?user=ann";

function Feed() {
  const { state, events } = usePush({ url });
  return (
    <>
      <p id="state">{state}</p>
      <ul id="events">{events.map(({ id, type, message }) => <li key={id}>{type}: {JSON.stringify(message)}</li>)}</ul>
    </>
  );
}

createRoot(document.getElementById("root")).render(<StrictMode><Feed /></StrictMode>);
