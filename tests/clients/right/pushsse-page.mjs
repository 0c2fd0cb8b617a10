// pushsse.js in a browser, with a ticket.
import { stream, tell, ticket } from "/as_is/page.mjs";

const url = new URL("..", stream);
const { connect } = await import(new URL("pushsse.js", url));
const push = connect({ url: `${url}`, ticket, position: (await ticket()).position });
for (const name of ["ready", "exception", "gap"]) push.on(name, (data) => tell(name, data));
push.on("event", (event) => tell("message", event));
