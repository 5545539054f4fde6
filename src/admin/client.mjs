/**
 * EtherPly's client for browsers and, as a copy of this file, for Node.js 22 or later. It has no dependencies.
 *
 *     import { connect } from "http://127.0.0.1:8080/client.mjs";
 *     const room = connect({ workspace: "demo", token });
 *     room.on("change", ({ key, value, source }) => console.log(source, key, value));
 *     room.set("title", "hello");
 *
 * A room is a map of keys to JSON values that all of its clients share. `set` takes effect locally at once and is sent to the server as soon
 * as there is a connection; until then, only the newest op of each key is kept. The greater timestamp always wins. The protocol has no
 * acknowledgements, so an own op counts as accepted when a newer one has replaced it, or when the server has returned it in reply to an
 * `echo`; until then it is sent again after each reconnect, which the server silently accepts. Numbers above 2^53 lose digits.
 *
 * If a room ends (see `Error` and `close`) with own ops that are not known to be accepted, it lists them in its last `state` event, and they
 * are kept for as long as the page lives. The next room for the same server and workspace has them in `unsaved`, except those that the server
 * turns out to have: `restore()` sends them with their original timestamps, so that later writes by others win; `discard()` drops them. To
 * always continue where the last room ended, call `restore()` right after `connect`, unless another user may have signed in.
 *
 * @typedef {{key: string, value: any, timestamp: number}} Edit
 * @typedef {"Disconnected" | "Connecting" | "Authenticating" | "Connected" | "Synced" | "Error"} State
 * `Error` is final: the token was refused, or the server does not accept the messages of this client.
 * @typedef {{key: string, value: any, timestamp: number, source: "self" | "other" | "init", over?: {value: any, timestamp: number}}} Change
 * `value` is undefined when the server does not have the key. `timestamp` is in Unix microseconds, or 0 if it is not known, because an init
 * does not contain timestamps. `over` is the own op, not known to be accepted, that lost to this one or was refused.
 * @typedef {{url?: string, workspace?: string, token?: string | ((refusal?: string) => string | Promise<string>)}} Options
 * `url` is the address of the server (http, https, ws or wss), by default the one that this module was loaded from; `workspace` defaults to
 * the one in `url`. If `token` is a function, it is called before each connect. After one of its tokens was refused (401) or has expired
 * (4001), it is passed the reason, so that a function that caches tokens knows that it needs a new one; if the new one is refused too, the
 * room ends. If the function throws, that counts as a failed connection, and it is called again later. With a string, both end the room.
 */

const KEY_BYTES_MAX = 1024, MESSAGE_BYTES_MAX = 1 << 20, RETRY_MS = 250, RETRY_MS_MAX = 15_000, ANSWER_MS = 15_000;
const DAY_US = 86_400e6; // An op further ahead than this came from a wrong clock: a server refuses it.
const STABLE_MS = 5_000; // A shorter connection counts as a failure too, so that a server in trouble is not hammered.
const RESYNC = 4000; // The close code of a client that wants the state again.
const SETTLE_MS = 500, PACE_MS = 1_000; // From an op to asking whether it was accepted; between parts of a load that was too much for the server.
const FATAL_CODES = [1002, 1003, 1007, 1008, 1009]; // The same messages would cause these codes again,
const TOO_MANY = "too many messages"; // except for a 1008 with this reason: slower messages do not cause it.
const REFUSALS = { 400: "invalid workspace", 401: "Unauthorized", 403: "origin not allowed" };

/** Opens a room. A `url` is enough if it is a complete `ws://host:port/v1/sync/workspace?token=…`. WebSocket, fetch, the timers, the clock and
 * the random numbers come from `host`. @returns {Room} @param {string | Options} options */
export const connect = (options, host = globalThis) => new Room(typeof options === "string" ? { url: options } : options, host);
const bytesOf = (text) => new TextEncoder().encode(text).length;
const was_sent = ({ order }) => order < Infinity;
const editOf = ({ key, text, timestamp }) => ({ key, value: JSON.parse(text), timestamp });
const kept = new Map(); // For each workspace URL: the own ops that its rooms ended with, by key.

class Room extends EventTarget {
  #host; #base; #segment; #query; #source; #refusal;
  #socket; #timer; #echo; #settling; #pacing; #state = "Disconnected";
  #entries = new Map(); // The visible values, by key: `{value, text, timestamp, source}`. After an init the timestamp is 0, so any op may replace the value.
  #pending = new Map(); // Own ops not known to be accepted, by key, in timestamp order; `order` is the order of sending, or Infinity if not sent.
  #doubtful = []; // Ops at least one of which the server has refused.
  #pace = Infinity; #is_over = false; // The number of waiting ops that are sent at a time; whether the last batch was too large.
  #echoes = Promise.resolve(); #attempt = 0; #last_us = 0; #taken_us = 0; #last_order = 0; #synced_ms = Infinity; #ended = false;
  #online = () => { this.#attempt = 0; this.#retry("back online"); };

  constructor({ url = import.meta.url, workspace, token }, host) {
    super();
    const [prefix, segment = ""] = (url + "").split("?")[0].replace(/\/(client\.mjs)?$/, "").split("/v1/sync/");
    [this.#host, this.#base] = [host, prefix.replace(/^ws/, "http")];
    this.#segment = workspace === undefined ? segment : encodeURIComponent(workspace);
    this.#query = new URL(url).searchParams;
    this.#source = token ?? this.#query.get("token") ?? "";
    if (this.#segment === "") throw new TypeError("a workspace is required");
    host.addEventListener?.("online", this.#online);
    // Deferred so that the caller can attach its listeners first.
    queueMicrotask(() => this.#ended || this.#open());
  }

  /** @returns {State} */
  get state() { return this.#state; }
  get pending() { return this.#pending.size; } // The number of own ops that are not known to be accepted by the server.
  /** The unsaved ops of earlier rooms for this server and workspace, oldest first. @returns {Edit[]} */
  get unsaved() { return this.#kept().map(editOf); }
  get(key) { return this.#entries.get(key)?.value; }
  /** @returns {[string, any][]} */
  entries() { return Array.from(this.#entries, ([key, entry]) => [key, entry.value]); }

  /** Writes a key and returns the op's timestamp, which is greater than that of the value it replaces, as far as this client knows. Null is a value too. */
  set(key, value) {
    const text = JSON.stringify(value);
    if (this.#ended) throw new Error("this room has ended");
    if (typeof key !== "string" || key === "" || bytesOf(key) > KEY_BYTES_MAX) throw new TypeError("a key must be a string of 1 to 1024 bytes");
    if (text === undefined) throw new TypeError("a value must be representable in JSON");
    if (bytesOf(text) > MESSAGE_BYTES_MAX - 8 * KEY_BYTES_MAX) throw new RangeError("a value must be smaller than 1 MiB");
    const [held, own] = [this.#entries.get(key), this.#pending.get(key)];
    const base = held?.timestamp === 0 || own?.is_doubtful ? held.text : own?.base;
    // The timestamp need not exceed that of an op that was never sent or was refused.
    const need_not_pass = own && (own.is_doubtful || !was_sent(own));
    const passed_us = need_not_pass ? Math.max(own.passed_us, own.under?.timestamp ?? 0) : held?.timestamp ?? 0;
    return this.#write(key, text, passed_us, base);
  }

  /** Sends the ops in `unsaved`, except for keys that have a newer value. */
  restore() {
    if (this.#ended) throw new Error("this room has ended");
    const edits = this.#kept();
    this.discard();
    for (const { key, text, timestamp, base } of edits) {
      if (this.#pending.has(key) || this.#entries.get(key)?.timestamp > timestamp) continue;
      this.#put({ key, text, timestamp, base, passed_us: timestamp - 1, order: Infinity });
    }
  }

  /** Drops the ops in `unsaved`. */
  discard() { kept.delete(this.#place); }

  /** Adds a listener and returns a function that removes it. `change` passes a Change; `state` passes `{state, reason, retry_ms}`, and at the end also `unsaved`, an Edit[]; `error` passes the
   * `{code, message, key}` of a refusal, with `key` if it is known: the op is undone here or, after a 429, sent again slowly. */
  on(name, listener) {
    const handle = ({ detail }) => listener(detail);
    this.addEventListener(name, handle);
    return () => this.removeEventListener(name, handle);
  }

  /** Sends an op that cannot win, since it is older than its key's value: it changes nothing, and the server replies with the winner. Returns
   * the round-trip time in milliseconds, or undefined if there is no connection or no key. @returns {Promise<number | undefined>} */
  echo() { return (this.#echoes = this.#echoes.then(() => new Promise((resolve) => this.#startEcho(resolve)))); }
  /** Ends the room for good; ops that are not known to be accepted are kept for the next room. */
  close() { if (!this.#ended) this.#end("Disconnected", "closed by this client"); }

  get #place() { return `${this.#base}/v1/sync/${this.#segment}`; }
  #kept() { return [...(kept.get(this.#place)?.values() ?? [])].sort((a, b) => a.timestamp - b.timestamp); }

  /** Writes a key. `base` is the value that the user saw while its timestamp was unknown: if that same value wins, the edit came after it. */
  #write(key, text, passed_us, base) {
    const now_us = this.#host.Date.now() * 1000;
    // Timestamps from a wrong clock that has since been corrected are ignored.
    const last_us = this.#last_us > now_us + DAY_US ? 0 : this.#last_us;
    const timestamp = (this.#last_us = Math.max(now_us, last_us + 1, passed_us + 1));
    this.#put({ key, text, timestamp, base, passed_us, order: Infinity });
    return timestamp;
  }

  #put(own) {
    const { key, text, timestamp } = own;
    const value = JSON.parse(text);
    this.#pending.delete(key);
    this.#pending.set(key, own);
    this.#entries.set(key, { value, text, timestamp, source: "self" });
    if (this.#state === "Synced" && this.#pacing === undefined) this.#send(own);
    this.#settle();
    this.#emit("change", { key, value, timestamp, source: "self" });
  }

  #send(op) {
    op.order = this.#last_order += 1;
    this.#socket.send(`{"type":"op","payload":{"key":${JSON.stringify(op.key)},"value":${op.text},"timestamp":${op.timestamp}}}`);
  }

  /** Sends the waiting ops, or some of them now and the rest later: half as many at a time after a refusal, otherwise twice as many. */
  #sendSome() {
    this.#pace = this.#is_over ? Math.max(1, Math.min(this.#pace, 32) / 2) : this.#pace * 2;
    this.#is_over = false;
    const waiting = [...this.#pending.values()].filter((own) => !was_sent(own));
    for (const own of waiting.slice(0, this.#pace)) this.#send(own);
    if (waiting.length === 0) this.#pace = Infinity;
    this.#pacing = this.#pace === Infinity ? undefined : this.#host.setTimeout(() => this.#sendSome(), PACE_MS);
    this.#settle();
  }

  #init(shown) {
    const changes = [];
    for (const key of [...this.#entries.keys()].filter((key) => !shown.has(key) && !this.#pending.has(key))) {
      this.#entries.delete(key);
      changes.push({ key, value: undefined, timestamp: 0, source: "init" });
    }
    for (const [key, value] of shown) {
      if (this.#pending.has(key)) continue;
      const [text, held] = [JSON.stringify(value), this.#entries.get(key)];
      this.#entries.set(key, { value, text, timestamp: 0, source: held?.text === text ? held.source : "init" });
      if (held?.text !== text) changes.push({ key, value, timestamp: 0, source: "init" });
    }
    for (const { key, text } of this.#kept()) if (JSON.stringify(shown.get(key)) === text) kept.get(this.#place).delete(key);
    this.#state = "Synced";
    this.#synced_ms = this.#host.performance.now();
    for (const own of this.#pending.values()) own.order = Infinity;
    this.#sendSome();
    for (const change of changes) this.#emit("change", change);
    if (this.#state === "Synced") this.#emit("state", { state: "Synced" });
  }

  #op({ key, value, timestamp }) {
    const text = JSON.stringify(value);
    const [held, own] = [this.#entries.get(key), this.#pending.get(key)];
    if (this.#echo?.key === key) {
      if (own?.text === text && own.timestamp === timestamp) this.#taken(own);
      this.#endEcho(this.#host.performance.now() - this.#echo.since_ms);
    }
    if (own) own.under = { value, text, timestamp, source: "other" };
    if (held && timestamp < held.timestamp) return;
    if (own?.base === text) return void this.#write(key, own.text, timestamp);
    const is_known = held?.text === text && (held.timestamp === timestamp || held.timestamp === 0);
    const source = is_known ? held.source : "other";
    this.#pending.delete(key);
    this.#entries.set(key, { value, text, timestamp, source });
    if (!is_known) this.#emit("change", { key, value, timestamp, source, over: own && { value: held.value, timestamp: own.timestamp } });
  }

  /** Handles a refusal. If the message does not say which op was refused, the next init shows it. */
  #refuse({ code, message, key, timestamp }) {
    const own = this.#pending.get(key);
    // Another op has replaced it, or it was an echo.
    if (key !== undefined && own?.timestamp !== timestamp) return this.#endEcho();
    // An op may not have fit while its echo did.
    if (key !== undefined && (code === 429 || !own.is_echoed)) return this.#refuseOp(own, code, message);
    // Ops refused with 500 or 429 are sent again. After a 500 the server closes the connection itself.
    if (code === 400 || code === 413) this.#forget((this.#doubtful = [...this.#pending.values()].filter(was_sent)));
    if (code !== 500) {
      this.#socket.close(RESYNC);
      this.#enter("Connected", message);
    }
    this.#emit("error", { code, message });
  }

  #refuseOp(own, code, message) {
    const { key, timestamp, under } = own; // The remaining value of the key, if any, was received just before.
    const [is_told, over] = [code === 429 && this.#is_over, { value: this.#entries.get(key).value, timestamp }];
    this.#endEcho();
    if (code === 429) {
      [own.order, this.#is_over] = [Infinity, true];
      this.#pacing ??= this.#host.setTimeout(() => this.#sendSome(), PACE_MS);
    } else {
      this.#forget([own]);
      this.#pending.delete(key);
      if (under) this.#entries.set(key, under);
      else this.#entries.delete(key);
      this.#emit("change", { key, value: under?.value, timestamp: under?.timestamp ?? 0, source: "other", over });
    }
    if (!is_told) this.#emit("error", { code, message, key });
  }

  /** Marks ops as refused. Later timestamps need not exceed theirs, which may have come from a wrong clock. */
  #forget(refused) {
    for (const own of refused) own.is_doubtful = true;
    this.#last_us = this.#taken_us;
    for (const { timestamp, is_doubtful } of this.#pending.values()) if (!is_doubtful) this.#last_us = Math.max(this.#last_us, timestamp);
  }

  /** Handles an own op that the server returned: it has been applied, and everything sent before it has been handled. */
  #taken({ order }) {
    for (const [key, own] of this.#pending) {
      if (!was_sent(own) || own.order > order) continue;
      this.#taken_us = Math.max(this.#taken_us, own.timestamp);
      this.#pending.delete(key);
    }
  }

  #settle() {
    if (this.#pending.size === 0 || this.#state !== "Synced" || this.#pacing) return;
    const ask = () => this.echo().then(() => { this.#settling = undefined; this.#settle(); });
    this.#settling ??= this.#host.setTimeout(ask, SETTLE_MS);
  }

  #startEcho(resolve) {
    const own = [...this.#pending.values()].filter(was_sent).at(-1);
    const key = own?.key ?? (this.#pending.size === 0 ? this.#entries.keys().next().value : undefined);
    if (this.#state !== "Synced" || key === undefined) return resolve(undefined);
    this.#echo = { key, since_ms: this.#host.performance.now(), resolve };
    // If the own op is refused, so is its echo; the server knows any other key.
    if (own) own.is_echoed = true;
    const other = this.#entries.get(key).text === "null" ? "0" : "null";
    this.#send(own ? { key, text: own.text, timestamp: own.timestamp - 1 } : { key, text: other, timestamp: 0 });
  }

  #endEcho(took_ms) { this.#echo = void this.#echo?.resolve(took_ms); }

  async #open() {
    const mine = (this.#socket = {}); // If `#leave` is called in the meantime, this attempt is obsolete.
    this.#timer = this.#host.setTimeout(() => this.#retry("no response"), ANSWER_MS);
    this.#enter("Connecting");
    let status, token;
    try {
      token = typeof this.#source === "function" ? await this.#source(this.#refusal) : this.#source;
      if (this.#socket !== mine) return;
      if (!/^[\x21-\x7e]+$/.test(token)) return this.#end("Error", "the token is empty or malformed");
      // A page cannot see why a WebSocket failed, and the browser's console would show the URL with the token. So this sends a request first.
      const ask = { method: "HEAD", headers: { Authorization: `Bearer ${token}` }, cache: "no-store" };
      const answer = this.#host.fetch(`${this.#base}/v1/presence/${this.#segment}`, ask);
      ({ status } = await answer.catch(() => { throw new Error("no response"); }));
    } catch (error) { return void (this.#socket === mine && this.#retry(error.message)); }
    if (this.#socket === mine) this.#enter("Authenticating");
    if (this.#socket !== mine) return;
    if ([400, 401, 403].includes(status)) return this.#renew(REFUSALS[status], status === 401);
    if (status >= 500 || status === 429) return this.#retry(`the server responded with ${status}`);
    this.#query.set("token", token);
    const socket = new this.#host.WebSocket(`${this.#base.replace(/^http/, "ws")}/v1/sync/${this.#segment}?${this.#query}`);
    this.#socket = socket;
    const whileMine = (handle) => (event) => this.#socket === socket && handle(event);
    socket.onopen = whileMine(() => { this.#refusal = undefined; this.#enter("Connected"); });
    socket.onmessage = whileMine((event) => {
      const { type, data, payload } = JSON.parse(event.data);
      if (type === "init") this.#init(new Map(Object.entries(data)));
      else if (type === "op") this.#op(payload);
      else if (type === "error") this.#refuse(payload);
    });
    socket.onclose = whileMine((event) => this.#closed(event));
  }

  #closed({ code, reason }) {
    // The server has processed our close, so it has handled everything that was sent: the ops it accepted are in the next init.
    for (const own of code === RESYNC ? this.#doubtful : []) {
      if (this.#pending.get(own.key) !== own) continue;
      this.#pending.delete(own.key);
      this.#entries.get(own.key).timestamp = 0;
    }
    if (reason === TOO_MANY) this.#pace = 1;
    if (code === 4001) this.#renew(reason, true);
    else if (FATAL_CODES.includes(code) && reason !== TOO_MANY) this.#end("Error", `closed with ${code} ${reason}`);
    else this.#retry(`closed with ${code} ${reason}`.trim());
  }

  /** Retries with a new token, unless the refused token was already the new one. */
  #renew(reason, may_help) {
    if (!may_help || this.#refusal !== undefined || typeof this.#source !== "function") return this.#end("Error", reason);
    this.#refusal = reason;
    this.#retry(reason);
  }

  #retry(reason) {
    if (this.#host.performance.now() - this.#synced_ms > STABLE_MS) this.#attempt = 0;
    this.#leave();
    const retry_ms = this.#host.Math.random() * Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** this.#attempt++);
    this.#timer = this.#host.setTimeout(() => this.#open(), retry_ms);
    this.#enter("Disconnected", reason, retry_ms);
  }

  #end(state, reason) {
    this.#ended = true;
    this.#host.removeEventListener?.("online", this.#online);
    this.#leave();
    const edits = kept.get(this.#place) ?? new Map();
    for (const own of this.#pending.values()) if (!(edits.get(own.key)?.timestamp > own.timestamp)) edits.set(own.key, own);
    if (edits.size > 0) kept.set(this.#place, edits);
    this.#enter(state, reason, undefined, [...this.#pending.values()].map(editOf));
  }

  #leave() {
    const socket = this.#socket;
    this.#socket = undefined;
    this.#host.clearTimeout(this.#timer);
    [this.#settling, this.#pacing] = [this.#settling, this.#pacing].map((timer) => this.#host.clearTimeout(timer));
    [this.#doubtful, this.#synced_ms] = [[], Infinity];
    this.#endEcho();
    // Closing it while it is opening would print its URL in the browser's console.
    if (socket?.readyState === 0) socket.onopen = () => socket.close(1000);
    else socket?.close?.(1000);
  }

  #enter(state, reason, retry_ms, unsaved) {
    this.#state = state;
    if (state === "Connected") this.#host.clearTimeout(this.#timer);
    this.#emit("state", { state, reason, retry_ms, ...(unsaved && { unsaved }) });
  }

  #emit(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
