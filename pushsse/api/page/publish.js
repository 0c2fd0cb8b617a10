// The form that publishes an event: in development alone, where everybody may do that.
"use strict";

at("publish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const to = at("to").value === "all" ? "all" : { users: at("to").value.split(/[,\s]+/) };
  try {
    const sent = await call("v1/events", { type: at("type").value, to, message: at("message").value });
    at("published").textContent = `accepted ${sent.ids[0]}`;
  } catch (error) {
    at("published").textContent = error.message;
  }
});
