// In development alone, where everybody may do everything: publish, be somebody else, pull the plug, a demo.

import { Demo } from "./demo.js";
import { at } from "./dom.js";
import { session } from "./main.js";
import { pull } from "./plug.js";
import { t } from "./words.js";

at("user").value = session.named;
at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  // Another person begins with an empty page.
  location.search = new URLSearchParams({ user: at("user").value.trim() || session.named });
});

at("publish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const users = at("to").value.trim();
  const to = users === "all" ? "all" : { users: users.split(/[,\s]+/) };
  try {
    const sent = await session.call("POST", "v1/events", { type: at("type").value, to, message: at("message").value });
    at("published").textContent = t("published", { id: sent.ids[0] });
  } catch (error) {
    at("published").textContent = error.message;
  }
});

at("plug").addEventListener("click", async () => {
  at("plug").disabled = true;
  try {
    await pull(session, (text) => (at("plugged").textContent = text));
  } catch (error) {
    at("plugged").textContent = t("plug_failed", { why: error.message });
  }
  at("plug").disabled = false;
});

new Demo(session);
