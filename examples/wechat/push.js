// A person's events in a WeChat mini program, which has no streams: polls that wait (GET /v1/events?wait_s=).
//
//   const { listen } = require("./push");
//   const push = listen({ url: "https://push.example.com", token, onEvent, onGap, onEnd });
//   App({ onShow: () => push.start(), onHide: () => push.stop() });

const WAIT_S = 25;
const REMEMBERED = 1000;
const MOST_WAIT_MS = 60_000;
const PLACE = "pushsse.position";

// `token` returns a token, or a promise of one, before each poll. `onEvent(name, data)` has a person's events by their type,
// and the service's own, such as `ack`. `onGap`: events were missed that the service no longer has. `onEnd(why)`: sign in
// again, then start().
function listen({ url, token, onEvent, onGap, onEnd, onLive = () => {} }) {
  const seen = new Set();
  let running = 0; // the number of this start; 0 when stopped
  let starts = 0;
  let failures = 0;
  let live = false;
  let timer, task;

  function start() {
    if (running) return;
    running = ++starts;
    failures = 0;
    poll(running);
  }

  // In the background there are no polls. The next start() goes on where this one ended.
  function stop() {
    running = 0;
    live = false;
    clearTimeout(timer);
    if (task) task.abort();
  }

  async function poll(run) {
    let used;
    try {
      used = await token();
    } catch {
      return again(run);
    }
    if (run !== running) return;
    const after = wx.getStorageSync(PLACE);
    const begun = Date.now();
    task = wx.request({
      url: `${url}/v1/events?wait_s=${WAIT_S}${after ? `&after=${encodeURIComponent(after)}` : ""}`,
      header: used ? { Authorization: `Bearer ${used}` } : {},
      timeout: (WAIT_S + 15) * 1000, // longer than the wait: then the connection is dead
      success: ({ statusCode, data }) => run === running && answered(run, statusCode, data, used, begun),
      fail: () => run === running && again(run),
    });
  }

  async function answered(run, status, data, used, begun) {
    if (status === 200) {
      if (!live) onLive();
      live = true;
      failures = 0;
      if (data.gap) onGap();
      for (const each of data.events) if (isNew(each.data.id)) onEvent(each.event, each.data);
      // Only after the events were handled: those that weren't are sent again.
      wx.setStorageSync(PLACE, data.position);
      if (data.events.length || data.more || Date.now() - begun > 1000) return poll(run);
      // Answered at once without events: the node stops, or the person has too many streams.
      timer = setTimeout(poll, 1000 + 1000 * Math.random(), run);
      return;
    }
    if ([400, 401, 403].includes(status)) {
      // The same call can never succeed; with another token it may.
      let next = used;
      try {
        next = await token();
      } catch {
        return again(run);
      }
      if (run !== running) return;
      if (next === used) {
        stop();
        return onEnd(`status ${status}`);
      }
    }
    again(run);
  }

  function again(run) {
    if (run !== running) return;
    live = false;
    const ceiling = Math.min(MOST_WAIT_MS, 2000 * 2 ** Math.min(failures++, 5));
    timer = setTimeout(poll, ceiling * (0.5 + Math.random() / 2), run);
  }

  // An event's id is the same in every replay. The service's own events have none.
  function isNew(id) {
    if (id === undefined) return true;
    if (seen.has(id)) return false;
    seen.add(id);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
    return true;
  }

  return { start, stop };
}

module.exports = { listen };
