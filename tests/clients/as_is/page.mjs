// What a page of the matrix has from its site: the stream's address, tickets, and somebody to tell.
const query = `client=${new URLSearchParams(location.search).get("client")}`;
let last = Promise.resolve();

export const stream = location.hash.slice(1);
export const ticket = () => fetch(`/ticket?${query}`).then((reply) => reply.json());
export const token = () => fetch(`/token?${query}`).then((reply) => reply.text());

export function tell(event, data = {}) {
  last = last.then(() => fetch(`/told?${query}`, { method: "POST", body: JSON.stringify({ event, data }) }));
}
