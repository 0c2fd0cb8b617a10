// Elements, made without markup in strings, so that nothing that came in an event is ever taken for markup.

export const at = (id) => document.getElementById(id);

/**
 * Makes an element. Attributes that are false, null or undefined are left out; `on` has listeners by event.
 * @returns {HTMLElement}
 */
export function el(name, { on = {}, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  for (const [event, act] of Object.entries(on)) made.addEventListener(event, act);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A button that acts. `label` is for screen readers where the text alone says too little. */
export function button(text, act, { label, ...attributes } = {}) {
  return el("button", { type: "button", "aria-label": label, ...attributes, on: { click: act } }, text);
}

const SVG = "http://www.w3.org/2000/svg";

/** A drawing of one line, in the colour of the text around it: emojis need a font that not every machine has. */
export function icon(path) {
  const drawn = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["viewBox", "0 0 24 24"], ["class", "icon"], ["aria-hidden", "true"]]) drawn.setAttribute(name, value);
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  drawn.append(line);
  return drawn;
}

/** A link to http(s) alone. A path that begins with a slash is one of the service, which is where the page is. */
export function link(title, address) {
  const line = el("a", {}, title);
  try {
    const url = new URL(address.replace(/^\/(?!\/)/, ""), document.baseURI);
    if (/^https?:$/.test(url.protocol)) line.href = url.href;
    if (url.origin !== location.origin) Object.assign(line, { target: "_blank", rel: "noreferrer" });
  } catch {
    // It stays a text.
  }
  return line;
}

// A hidden page has no frames, and shows its count in its title all the same.
const HIDDEN_MS = 500;

/** Calls `act` with the next frame, or soon. */
export function soon(act) {
  const run = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    act();
  };
  const frame = requestAnimationFrame(run);
  const timer = setTimeout(run, HIDDEN_MS);
}

const IME_KEY = 229;

/** Enter sends a form, Shift-Enter breaks the line. */
export function sendOnEnter(box, form) {
  box.addEventListener("keydown", (event) => {
    // Enter may end the composition of a word; older Safari tells that by the key's number alone.
    const isComposing = event.isComposing || event.keyCode === IME_KEY;
    if (event.key !== "Enter" || event.shiftKey || isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  // Where a browser can't size it by its content.
  box.addEventListener("input", () => (box.rows = Math.min(6, box.value.split("\n").length)));
}

let said = 0;

/** Tells a screen reader, once it has time. Of many in a short time it hears the last. */
export function announce(text) {
  clearTimeout(said);
  said = setTimeout(() => (at("announced").textContent = text), 500);
}
