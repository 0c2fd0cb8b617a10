// What is unread. A card that is seen for a second is read, here and on the person's other devices.

const SEEN_MS = 1_000;
const SEND_MS = 3_000;
const RETRY_MS = 30_000;
// Of one call: the service takes 100 ids and 8 KiB.
const MOST_IDS = 50;
const MOST_UNREAD = 10_000;

export class Reading {
  #session;
  #tell;
  #unread = new Set();
  #toSend = new Set();
  #sending = 0;
  #seeing = new Map();
  #idOf = new WeakMap();
  #watcher = new IntersectionObserver((seen) => this.#see(seen), { threshold: [0.05, 0.3, 0.6] });

  /** `tell` gets the ids that have been read, or null for all of them. */
  constructor(session, tell) {
    this.#session = session;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") for (const made of this.#seeing.keys()) this.#await(made);
      else this.#send();
    });
  }

  get count() {
    return this.#unread.size;
  }

  restart() {
    this.#unread.clear();
  }

  came(id) {
    if (this.#unread.size < MOST_UNREAD) this.#unread.add(id);
  }

  isRead(id) {
    return !this.#unread.has(id);
  }

  /** It was taken away, or another one has its place. */
  gone(id) {
    this.#unread.delete(id);
  }

  /** What an `ack` says, of this device or another one. */
  hear({ state, ids }) {
    if (state === "received") return;
    // `up_to` is everything that came before it.
    if (!ids) this.#unread.clear();
    for (const id of ids ?? []) this.#unread.delete(id);
    this.#tell(ids ?? null);
  }

  async readAll() {
    await this.#session.push.acks.readUpTo();
    this.hear({ state: "read" });
  }

  /** Reads a card as soon as it has been seen. */
  watch(made, id) {
    this.#idOf.set(made, id);
    this.#watcher.observe(made);
  }

  unwatch(made) {
    this.#watcher.unobserve(made);
    clearTimeout(this.#seeing.get(made));
    this.#seeing.delete(made);
  }

  #see(changes) {
    for (const { target, intersectionRatio, intersectionRect, rootBounds } of changes) {
      clearTimeout(this.#seeing.get(target));
      this.#seeing.delete(target);
      // A card that is higher than the window is never seen whole.
      if (intersectionRatio >= 0.6 || (rootBounds && intersectionRect.height > rootBounds.height / 2)) this.#await(target);
    }
  }

  #await(made) {
    clearTimeout(this.#seeing.get(made));
    this.#seeing.set(made, setTimeout(() => {
      if (document.visibilityState !== "visible") return;
      const id = this.#idOf.get(made);
      this.unwatch(made);
      if (this.isRead(id)) return;
      this.#toSend.add(id);
      this.hear({ state: "read", ids: [id] });
      this.#sending ||= setTimeout(() => this.#send(), SEND_MS);
    }, SEEN_MS));
  }

  async #send() {
    clearTimeout(this.#sending);
    this.#sending = 0;
    const ids = [...this.#toSend].slice(0, MOST_IDS);
    if (!ids.length) return;
    for (const id of ids) this.#toSend.delete(id);
    try {
      await this.#session.push.acks.read(ids);
      if (this.#toSend.size) this.#sending ||= setTimeout(() => this.#send(), SEND_MS);
    } catch (error) {
      // What the service refuses for good, such as an id that is too long, isn't sent again.
      if (error.status >= 400 && error.status < 500 && error.status !== 429) return;
      if (this.#toSend.size < MOST_UNREAD) for (const id of ids) this.#toSend.add(id);
      this.#sending ||= setTimeout(() => this.#send(), RETRY_MS);
    }
  }
}
