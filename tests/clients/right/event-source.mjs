// A browser's own EventSource with a ticket, and the lines of examples/browser/push.js.
import { push } from "/browser/push.js";
import { stream, tell, ticket } from "/as_is/page.mjs";

push(stream, {
  ticket,
  onOpen: (ready) => tell("ready", ready),
  onEvent: (event) => tell("message", event),
  onGap: () => tell("gap"),
  onEnd: (why) => tell("ended", { why }),
});
