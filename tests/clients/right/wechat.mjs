// examples/wechat/push.js in Node.js: `wx` is a stand-in whose requests are real. node wechat.mjs STREAM
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const kept = new Map();
globalThis.wx = {
  getStorageSync: (key) => kept.get(key) ?? "",
  setStorageSync: (key, value) => kept.set(key, value),
  request({ url, header, timeout, success, fail }) {
    const abort = new AbortController();
    fetch(url, { headers: header, signal: AbortSignal.any([abort.signal, AbortSignal.timeout(timeout)]) })
      .then(async (reply) => ({ statusCode: reply.status, data: await reply.json() }))
      .then(success, (error) => fail({ errMsg: `request:fail ${error}` }));
    return { abort: () => abort.abort() };
  },
};
const { listen } = createRequire(import.meta.url)("../../../examples/wechat/push.js");
const tell = (event, data = {}) => console.log(JSON.stringify({ event, data }));
const url = new URL("..", process.argv[2]).href.replace(/\/$/, "");
const token = () => readFileSync(process.env.PUSHSSE_TOKEN_FILE, "utf8");
// From a position that is known what is published from here on is its own: the first poll alone would tell after 25 s.
const now = await fetch(`${url}/v1/events`, { headers: { Authorization: `Bearer ${token()}` } });
wx.setStorageSync("pushsse.position", (await now.json()).position);
tell("ready");
listen({
  url,
  token,
  onEvent: tell,
  onLive: () => tell("ready"),
  onGap: () => tell("ready", { resume: "gap" }),
  onEnd: (why) => tell("ended", { why }),
}).start();
