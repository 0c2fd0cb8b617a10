// Subscribes this browser, and tells the gateway. ?user=ann in development; a cookie says who is asking elsewhere.
const state = document.querySelector("#state");
const user = new URLSearchParams(location.search).get("user");
const path = `subscriptions${user ? `?user=${encodeURIComponent(user)}` : ""}`;

function bytes(base64url) {
  const text = atob(base64url.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

async function tell(method, subscription) {
  const reply = await fetch(path, { method, body: JSON.stringify(subscription) });
  if (!reply.ok) throw new Error(`the gateway answers ${reply.status}`);
}

async function registration() {
  await navigator.serviceWorker.register("worker.js");
  return navigator.serviceWorker.ready;
}

async function on() {
  if (await Notification.requestPermission() !== "granted") throw new Error("this browser doesn't allow it");
  const { key } = await (await fetch("key")).json();
  const { pushManager } = await registration();
  await tell("POST", await pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: bytes(key) }));
  state.textContent = "This browser is notified.";
}

async function off() {
  const subscription = await (await registration()).pushManager.getSubscription();
  if (subscription) {
    await tell("DELETE", subscription);
    await subscription.unsubscribe();
  }
  state.textContent = "This browser isn't notified.";
}

for (const [id, act] of [["on", on], ["off", off]]) {
  document.querySelector(`#${id}`).addEventListener("click", () => {
    act().catch((error) => { state.textContent = error.message; });
  });
}
