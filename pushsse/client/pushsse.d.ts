/** The browser client of pushsse. docs/browser.md has examples of everything here. */

export interface Options<Types = Record<string, unknown>> {
  /** Where the service is, such as `https://push.example.com/`. Default: where this module was loaded from. */
  url?: string | URL;
  /**
   * A token, or a function that fetches one. The function is called before the token lapses, once for all tabs, and
   * after a 401. Nothing in place of a token means that nobody is signed in.
   */
  token?: string | (() => Token | Promise<Token>);
  /** A ticket, or a function that fetches one: for the stream alone, where the page must not have a token. */
  ticket?: string | Ticket | (() => string | Ticket | null | undefined | Promise<string | Ticket | null | undefined>);
  /** Whether cookies go along, as `fetch` has it. Default: `"same-origin"`. */
  credentials?: RequestCredentials;
  /** The types of people's events that this page wants. Default: all. */
  types?: readonly (keyof Types & string)[];
  /** Where to begin: the `position` of a snapshot that the page has, or one that it has stored. */
  position?: string;
  /** How far back to begin without a position, such as `"30m"`. Default: now. */
  since?: string;
  /** Whether all tabs of a person share one connection. Default: true. */
  share?: boolean;
}

export type Token = string | null | undefined;

/** What `POST /v1/tickets` answers. With `user` the tabs of a person can share. */
export interface Ticket {
  ticket: string;
  position?: string;
  user?: string;
}

/**
 * - `connecting`: there is no line just now; another attempt follows by itself
 * - `live`: the stream is open
 * - `polling`: a proxy withholds streams, so events are polled for
 * - `signed_out`: there is no token, or it isn't accepted; `reason` says why
 * - `ended`: nothing can be done by trying again; `reason` says why
 * - `closed`: by `close()`
 */
export type State = "connecting" | "live" | "polling" | "signed_out" | "ended" | "closed";

/** An event for this person. */
export interface PersonEvent<Type extends string = string, Message = unknown> {
  id: string;
  type: Type;
  message: Message;
  desc?: string;
  ts: string;
  /** It takes the place of earlier events with this key, and the same `to`. */
  collapse?: string;
  /** With a key, of an event that is for everybody. */
  to?: "all";
  [more: string]: unknown;
}

/** An event of any of the types. */
export type AnyEvent<Types> = { [Type in keyof Types & string]: PersonEvent<Type, Types[Type]> }[keyof Types & string];

/** Text that was found, or a value that came with it. */
export type Part =
  | { type: "source"; title: string; url: string }
  | { type: "data"; name: string; data: unknown };

export interface AnswerEvent {
  question: string;
  text: string;
  by: { kind: string; name: string };
  links: readonly { title: string; url: string }[];
  suggestions: readonly string[];
  parts: readonly Part[];
  /** `GET /v1/questions/ID` has all of it. */
  truncated: boolean;
}

/** An answer as far as it has come. */
export interface Answer extends Partial<Pick<AnswerEvent, "by" | "links" | "suggestions" | "truncated">> {
  question: string;
  conversation: string;
  status: "pending" | "answering" | "answered" | "failed" | "cancelled" | "expired" | "handed_over";
  text: string;
  parts: readonly Part[];
  /** What is being done just now, to be shown until there is more text. */
  doing: string;
  done: boolean;
}

/** What handlers get, by the name of the event. */
export interface Events<Types = Record<string, unknown>> {
  /** Any event for this person; `event:NAME` is one type of them. */
  event: AnyEvent<Types>;
  /** The state has changed. */
  state: { state: State; reason: string };
  /** Events are missing that the service no longer has: reload what you show. Unhandled, it is an error. */
  gap: { position: string };
  /** The connection has begun, or begun anew. */
  ready: { user: string; resume: "new" | "complete" | "gap"; [more: string]: unknown };
  /** A switch was changed, here or on another device. */
  preferences: { types: Record<string, boolean>; [more: string]: unknown };
  /** Something was read, here or on another device. */
  ack: { state: "received" | "read" | "clicked"; ids?: readonly string[]; up_to?: string; [member: string]: unknown };
  /** What has this key, and the same `to`, is taken away. */
  "pushsse.withdraw": { id: string; type: string; withdraw: string; to?: "all"; ts: string };
  /** A question was asked, or its status has changed. */
  question: { id: string; conversation: string; text: string; status: Answer["status"] };
  /**
   * An answer grows: `text.slice(0, from) + delta.text`. `ask()` does that by itself. `seq` is 0 for what had come before
   * this tab was there.
   */
  "answer.delta": { question: string; seq: number; from: number; text: string; part?: unknown };
  answer: AnswerEvent;
  "answer.error": { question: string; code: string; detail: string };
  /** The service ends the stream. `state` says what comes of it. */
  exception: { code: string; detail: string; retry: boolean };
  /** For staff: something has happened in a conversation that people answer. */
  "pushsse.desk": { conversation: string; status: "waiting" | "answered" | "released"; question: string | null };
}

/** A person's switch. */
export interface Preference {
  name: string;
  title: string;
  description: string;
  category: string;
  enabled: boolean;
  mandatory: boolean;
}

/** Hours in which the app shows events and makes no sound. */
export interface QuietWindow {
  [member: string]: unknown;
}

export interface PreferenceList {
  types: readonly Preference[];
  categories: Record<string, boolean>;
  quiet: readonly QuietWindow[];
  zone: string;
  paused_until: string | null;
}

/** On (true), off, or null: as if never chosen. What isn't there stays as it is. */
export interface PreferenceChanges<Types = Record<string, unknown>> {
  types?: Partial<Record<keyof Types & string, boolean | null>>;
  categories?: Record<string, boolean | null>;
  quiet?: readonly QuietWindow[];
  zone?: string;
  paused_until?: string | null;
}

/** A question that was asked here: iterate it for its answer as it grows. */
export interface Asked extends AsyncIterable<Answer> {
  /** The question's id. Rejects with a PushError where it wasn't taken. */
  readonly id: Promise<string>;
  /** Stops the answer. What has come is kept. */
  stop(): Promise<void>;
}

export interface Connection<Types = Record<string, unknown>> {
  readonly state: State;
  /** Why: the code of the `exception`, or of the error. Empty where nothing is wrong. */
  readonly reason: string;
  /** Who is asking; empty until that is known. */
  readonly user: string;
  /** How far this page has handled everything: store it to go on from here. */
  readonly position: string;
  /** Calls `handler` with each event of this name. Returns what ends that. */
  on<Name extends keyof Events<Types>>(name: Name, handler: (event: Events<Types>[Name]) => void): () => void;
  on<Type extends keyof Types & string>(
    name: `event:${Type}`,
    handler: (event: PersonEvent<Type, Types[Type]>) => void,
  ): () => void;
  /** Asks a question. */
  ask(text: string, options?: { conversation?: string; context?: object }): Asked;
  readonly preferences: {
    get(): Promise<PreferenceList>;
    /** Changes some, on all devices at once: `{ types: { news: false } }`. Returns all. */
    set(changes: PreferenceChanges<Types>): Promise<PreferenceList>;
  };
  /** Tells the service, and the person's other devices, what became of events. */
  readonly acks: {
    received(ids: readonly string[]): Promise<void>;
    read(ids: readonly string[]): Promise<void>;
    clicked(ids: readonly string[]): Promise<void>;
    /** Everything up to a position, by default up to what this page has handled. */
    readUpTo(position?: string): Promise<void>;
  };
  /** Tries again now: after a login, or because a person asks for it. */
  reconnect(): void;
  close(): void;
}

/** What the service answered in place of what was asked for (RFC 9457). */
export class PushError extends Error {
  readonly status: number;
  readonly code: string;
  readonly errors: readonly { at: string; detail: string }[];
}

/** Opens a connection. It begins by itself, and goes on until `close()`. */
export function connect<Types = Record<string, unknown>>(options?: Options<Types>): Connection<Types>;

/**
 * Reads an event stream (WHATWG HTML, 9.2.6) in pieces of any size: returns the function that takes them. `hear` gets
 * each event, `wait` the milliseconds of each `retry`.
 */
export function parser(
  hear: (event: { name: string; data: string; id: string }) => void,
  wait?: (ms: number) => void,
): (bytes: Uint8Array) => void;
