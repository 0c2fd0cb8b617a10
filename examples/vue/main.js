import { createApp, h } from "vue";
import { usePush } from "./usePush.js";

// In production: { url, token } or { url, ticket }. In development the address says who is calling.
const url = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8000/?user=ann";

const Feed = {
  setup() {
    const { state, events } = usePush({ url });
    return () => [
      h("p", { id: "state" }, state.value),
      h("ul", { id: "events" }, events.value.map(({ id, type, message }) => h("li", { key: id }, `${type}: ${JSON.stringify(message)}`))),
    ];
  },
};

createApp(Feed).mount("#root");
