import { connect } from "pushsse";
import { onBeforeUnmount, onMounted, ref, shallowRef } from "vue";

/** A person's stream in a component; tabs and components share one stream. Nothing happens while rendering on a server. */
export function usePush(options) {
  const push = shallowRef(null);
  const state = ref("connecting");
  const events = shallowRef([]);

  onMounted(() => {
    push.value = connect(options);
    push.value.on("state", (now) => (state.value = now.state));
    push.value.on("event", (event) => (events.value = [event, ...events.value].slice(0, 100)));
    push.value.on("gap", () => (events.value = [])); // something is missing: load what you show anew
  });
  onBeforeUnmount(() => push.value?.close());

  return { push, state, events };
}
