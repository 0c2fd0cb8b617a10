// A browser's own EventSource with a ticket, and nothing around it.
import { stream, tell, ticket } from "/as_is/page.mjs";

const source = new EventSource(`${stream}&ticket=${(await ticket()).ticket}`);
for (const name of ["message", "ready", "ping", "exception"]) {
  source.addEventListener(name, (event) => tell(name, JSON.parse(event.data)));
}
