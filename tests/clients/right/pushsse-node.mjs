// pushsse.js in Node.js. node pushsse-node.mjs STREAM
import { readFileSync } from "node:fs";

const url = `${new URL("..", process.argv[2])}`;
const module = await (await fetch(`${url}pushsse.js`)).text();
const { connect } = await import(`data:text/javascript,${encodeURIComponent(module)}`);
const push = connect({ url, token: () => readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8") });
const tell = (event, data) => console.log(JSON.stringify({ event, data }));
for (const name of ["ready", "exception", "gap"]) push.on(name, (data) => tell(name, data));
push.on("event", (event) => tell("message", event));
