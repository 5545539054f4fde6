/**
 * EtherPly's client for browsers and, as a copy of this file, for Node.js 22 or later. It has no
 * dependencies.
 *
 *     import { connect } from "http://127.0.0.1:8080/client.mjs";
 *     const room = connect({ workspace: "demo", token });
 *     room.on("change", ({ key, value, source }) => console.log(source, key, value));
 *     room.set("title", "hello");
 *     await room.saved();
 *
 * A room is a map of keys to JSON values that all of its clients share. `set` and `delete` take
 * effect locally at once and are sent to the server as soon as there is a connection; until then,
 * only the newest op of each key is kept. The greater timestamp always wins. A local op is pending
 * until the server has reported its outcome; until then it is sent again after each reconnect,
 * which the server silently accepts. Numbers above 2^53 lose digits.
 *
 * The module speaks version 2 of the protocol, and version 1 to a server that does not support
 * version 2. A version 1 server can neither delete keys nor let them expire, has no presence and no
 * casts, and receives the token in the URL. Nor does it send `saved`: there, a local op counts as
 * saved once the server has returned it in reply to an `echo`.
 *
 * If a room ends (see `Error` and `close`) with pending ops, it lists them in its last `state`
 * event, or on the console if nothing listens, and keeps them for as long as the page lives. The
 * next room for the same server and workspace lists them in `unsaved`, except those that the server
 * turns out to have: `restore()` sends them with their original timestamps, so that later writes by
 * others win; `discard()` drops them. To always continue where the last room ended, call
 * `restore()` right after `connect`, unless another user may have signed in.
 *
 * @typedef {{key: string, value: any, timestamp: number, deleted?: true}} Edit @typedef
 * {"Disconnected" | "Connecting" | "Authenticating" | "Connected" | "Synced" | "Error" } State
 * `Error` is final: the token was refused, the server does not accept the messages of this client,
 * an administrator removed it (4003), or the workspace was deleted (4004). @typedef {"offline" |
 * "syncing" | "saving" | "saved"} Status `saved`: this client has the state of the server, and the
 * server has every edit of this client. @typedef {{key: string, value: any, timestamp: number,
 * source: "self" | "other" | "init", over?: {value: any, timestamp: number}}} Change `value` is
 * undefined when the key does not exist. `timestamp` is in Unix microseconds, or 0 if it is not
 * known. `source` is "init" for changes from a complete state. `over` is the pending op that lost
 * to this one or was refused; its `value` is undefined if it was a delete. @typedef {{connection:
 * string, user: string | null, value: any, is_self: boolean}} Peer @typedef {{url?: string,
 * workspace?: string, presence?: boolean, version?: 1 | 2, token?: string | ((refusal?: string) =>
 * string | Promise<string>)}} Options `url` is the address of the server (http, https, ws or wss),
 * by default the one that this module was loaded from; `workspace` defaults to the one in `url`.
 * `presence` makes this client a peer. With `version`, only that version of the protocol is spoken.
 * If `token` is a function, it is called before each connect. After one of its tokens was refused
 * (401) or has expired (4001), it is passed the reason, so that a function that caches tokens knows
 * that it needs a new one; if the new one is refused too, the room ends. If the function throws,
 * that counts as a failed connection, and it is called again later. With a string, both end the
 * room.
 */

const KEY_BYTES_MAX = 1024;
const VALUE_BYTES_MAX = (1 << 20) - 8 * KEY_BYTES_MAX; // A message of 1 MiB also has a key.
const PRESENCE_BYTES_MAX = 4 << 10, CAST_BYTES_MAX = 16 << 10;
const TTL_MS_MAX = 10 * 365 * 86_400_000;
const RETRY_MS = 250, RETRY_MS_MAX = 15_000, ANSWER_MS = 15_000;
const DAY_US = 86_400e6; // An op further ahead came from a wrong clock: a server refuses it.
const CLOCK_LEAD_US = 1e6; // The same, where the clock of the server is known.
// A shorter connection also counts as a failure, so that a struggling server is not hammered.
const STABLE_MS = 5_000;
const SILENCE_MS = 25_000; // After this long without a message, the server is asked for one.
// The time that a state may take. It may be one large message on a slow link, which nothing
// overtakes.
const PONG_MS = 10_000, PONG_IN_STATE_MS = 60_000;
const CLOCK_STEP_MS = 1_000, CLOCK_FRESH_MS = 600_000; // When a measured offset is measured again.
const SETTLE_MS = 500; // In version 1, from an op to asking whether it was accepted.
const PACE_MS = 1_000; // Between parts of a load that was too much for the server.
const PRESENCE_MS = 50; // The server sends presence no more often either.
const TOMBSTONES_MAX = 10_000; // That a client remembers.
const LEFT_MAX = 10_000; // The same for peers that have left.
const RESYNC = 4000; // The close code of a client that wants the state again.
const EXPIRED = 4001, REMOVED = 4003, DELETED = 4004, DRAINED = 1012;
// The same messages would cause these codes again, except for a 1008 with this reason: slower
// messages do not cause it.
const FATAL_CODES = [1002, 1003, 1007, 1008, 1009], TOO_MANY = "too many messages";
const REFUSALS = { 400: "invalid workspace", 401: "Unauthorized", 403: "origin not allowed" };
const UNSUPPORTED = "this server does not support deletes or expiry"; // It speaks version 1.
const V2 = "etherply.v2";
const SHOWS = ["state", "synced", "op", "saved"]; // The messages that may change what is held.
const TOKEN = /^[\x21-\x7e]+$/;
const PROTOCOL_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/; // What a browser accepts as a subprotocol.
const WAKE_EVENTS = ["online", "visibilitychange", "pageshow"];

/** Opens a room. A `url` is enough if it is complete: `ws://host:port/v1/sync/workspace?token=…`.
 * WebSocket, fetch, the timers, the clock, the random numbers and the console come from `host`.
 * @returns {Room} @param {string | Options} options */
export const connect = (options, host = globalThis) =>
  new Room(typeof options === "string" ? { url: options } : options, host);

const bytesOf = (text) => new TextEncoder().encode(text).length;
/** Returns a value as JSON of at most `bytes_max` bytes. */
const textOf = (value, bytes_max) => {
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError("a value must be representable in JSON");
  if (bytesOf(text) > bytes_max) throw new RangeError(`the value exceeds ${bytes_max} bytes`);
  return text;
};
const wasSent = ({ id }) => id < Infinity;
const needsVersion2 = ({ text, ttl_ms }) => text === undefined || ttl_ms !== undefined;
const valueOf = (text) => (text === undefined ? undefined : JSON.parse(text));
const editOf = ({ key, text, timestamp }) =>
  ({ key, value: valueOf(text), timestamp, ...(text === undefined && { deleted: true }) });
// For each workspace URL, the unsaved ops with which its rooms ended, by key.
const kept = new Map();

/** A client's copy of a workspace: the state of the server, overlaid with the client's own pending
 * ops. It has no clock, socket, timer or randomness: each input (an edit, a message, a connection
 * that opened or closed) changes it and adds outputs, which `drain` returns. The time is an
 * argument: `{us, is_server_time}`, Unix microseconds and whether the server's clock is known.
 *
 * Outputs: `{send}`, a message to send before anything else happens; `{timer}`, a name whose input
 * (`sendSome` or `settle`) is due later; `{change}`, `{error}` and `{presence}` to report;
 * `{synced}`; `{echoed}`, whether a version 1 echo was answered; `{close}`, a close code. */
export class Replica {
  #outputs = [];
  // The known state of the server, by key: `{value, text, timestamp}`. The value and text of a
  // deleted key are undefined. After a version 1 init the timestamp is 0: any op may replace it.
  #entries = new Map();
  #tombstones = new Set(); // The keys of deleted entries, oldest first.
  // The keys whose entries come from before the full state that is arriving.
  #unconfirmed = new Set();
  // The newest pending op of each key, in timestamp order. `id` is Infinity while it is not sent;
  // `is_hiding` if an older one was sent on an earlier connection and may be what the server has;
  // `first` is the number of the first edit that it includes.
  #pending = new Map();
  #sent = new Map(); // Version 2: every own op that this connection was sent, until it is settled.
  #doubtful = []; // Version 1: ops at least one of which the server has refused.
  #version = 0; #is_open = false; #is_full = false; // Whether ops may be sent; a state is arriving.
  #generation; #seq; #why; #connection;
  #is_exact = true; // Whether what is held is the state at `#seq`, not a mix with later ones.
  #is_done = false; // Whether this connection was told to close: what it still receives is ignored.
  #former = new Set(); // The ids of earlier connections.
  #peers = new Map(); #left = new Set();
  #pace = Infinity; #is_pacing = false; // How many waiting ops are sent at a time; if some wait.
  #is_over = false; // Whether the last batch was too much.
  #echo_key; #message_bytes_max = Infinity;
  #last_us = 0; #taken_us = 0; #last_id = 0; #edits_count = 0;

  /** Returns the outputs since the last call, in order. */
  drain() { return this.#outputs.splice(0); }

  get pending() { return [...this.#pending.values()]; }
  get pending_count() { return this.#pending.size; }
  get edits_count() { return this.#edits_count; }
  get version() { return this.#version; }
  get connection() { return this.#connection; }
  /** The position from which the next connection can resume: it covers only messages that have been
   * applied. @returns {{since: number, generation: string} | undefined} */
  get position() {
    const is_known = this.#seq !== undefined && this.#generation !== undefined;
    return is_known ? { since: this.#seq, generation: this.#generation } : undefined;
  }
  /** The number of the oldest edit that is not settled, or Infinity. */
  get oldest_unsettled() {
    return [...this.#pending.values(), ...this.#sent.values()]
      .reduce((oldest, own) => Math.min(oldest, own.first), Infinity);
  }
  get(key) { return this.#shown(key)?.value; }
  timestampOf(key) { return this.#shown(key)?.timestamp; }
  serverText(key) { return this.#entries.get(key)?.text; }
  has(key) { return this.#pending.has(key); }
  entries() {
    const keys = new Set([...this.#entries.keys(), ...this.#pending.keys()]);
    return Array.from(keys, (key) => [key, this.#shown(key)])
      .filter(([, { text }]) => text !== undefined).map(([key, { value }]) => [key, value]);
  }
  /** The peers by connection, without this client's own earlier connections. */
  get peers() {
    return [...this.#peers].filter(([connection]) => !this.#former.has(connection))
      .map(([connection, { user, value }]) =>
        ({ connection, user, value, is_self: connection === this.#connection }));
  }

  // ---- edits ----

  /** Writes a key, or deletes it if `text` is undefined. Returns the op's timestamp. */
  write(key, text, now, ttl_ms) {
    const [held, own] = [this.#shown(key), this.#pending.get(key)];
    // `base` is the value that the user saw while its timestamp was unknown: if that same value
    // wins, the edit came after it.
    const base = held?.timestamp === 0 || own?.is_doubtful ? held.text : own?.base;
    // The timestamp need not exceed that of an op that was never sent or was refused.
    const need_not_pass = own && (own.is_doubtful || own.is_new);
    const passed_us = need_not_pass
      ? Math.max(own.passed_us, this.#entries.get(key)?.timestamp ?? 0) : held?.timestamp ?? 0;
    return this.#stamp({ key, text, ttl_ms, base, passed_us }, now);
  }

  /** Adds an op that already has a timestamp. */
  put({ key, text, timestamp, base, passed_us, ttl_ms, is_local = false }) {
    const number = (this.#edits_count += 1);
    const older = this.#pending.get(key);
    // An op that was sent in version 2 is settled by its own id.
    const is_stand_in = older !== undefined && !this.#sent.has(older.id);
    const first = is_stand_in ? older.first : number;
    const is_hiding = is_stand_in && (older.is_hiding || !older.is_new);
    const own = {
      key, text, value: valueOf(text), timestamp, base, passed_us, ttl_ms, is_local, number, first,
      is_hiding, id: Infinity, is_new: true,
    };
    this.#pending.delete(key);
    this.#pending.set(key, own);
    this.#outputs.push({ change: { key, value: own.value, timestamp, source: "self" } });
    if (this.#is_open && !this.#is_pacing) this.#send(own);
    this.settle();
  }

  #stamp(op, { us, is_server_time }) {
    // Timestamps from a wrong clock that has since been corrected are ignored.
    const lead_us = is_server_time ? CLOCK_LEAD_US : DAY_US;
    const last_us = this.#last_us > us + lead_us ? 0 : this.#last_us;
    const timestamp = (this.#last_us = Math.max(us, last_us + 1, op.passed_us + 1));
    this.put({ ...op, timestamp, is_local: !is_server_time });
    return timestamp;
  }

  #send(own) {
    const { key, text, timestamp, ttl_ms } = own;
    const next_id = this.#last_id + 1;
    const id = this.#version === 2 ? `"id":${next_id},` : "";
    const what = text === undefined ? `"deleted":true` : `"value":${text}`;
    const ttl = ttl_ms === undefined ? "" : `,"ttl_ms":${ttl_ms}`;
    const payload = `{"key":${JSON.stringify(key)},${what},"timestamp":${timestamp}${ttl}}`;
    const send = `{"type":"op",${id}"payload":${payload}}`;
    // The server would close the connection, and the next one would be sent the same message.
    const may_be_large = 3 * send.length > this.#message_bytes_max;
    if (may_be_large && bytesOf(send) > this.#message_bytes_max) {
      return this.#undo(own, 413, `a message has at most ${this.#message_bytes_max} bytes`);
    }
    [own.id, own.is_new] = [(this.#last_id = next_id), false];
    if (this.#version === 2) this.#sent.set(own.id, own);
    this.#outputs.push({ send });
  }

  /** Sends the waiting ops, or some of them now and the rest at the next timer: half as many at a
   * time after a refusal, otherwise twice as many. */
  sendSome() {
    this.#pace = this.#is_over ? Math.max(1, Math.min(this.#pace, 32) / 2) : this.#pace * 2;
    this.#is_over = false;
    const waiting = this.pending.filter((own) => !wasSent(own));
    for (const own of waiting.slice(0, this.#pace)) this.#send(own);
    if (waiting.length === 0) this.#pace = Infinity;
    this.#is_pacing = this.#pace < Infinity;
    if (this.#is_pacing) this.#outputs.push({ timer: "sendSome" });
    this.settle();
  }

  // ---- the connection ----

  /** Begins a connection that speaks this version. */
  opened(version) {
    this.#version = version;
    this.#is_done = false;
    this.#last_id = 0;
    this.#message_bytes_max = Infinity; // As long as the server does not say.
  }

  /** Ends the connection; unsettled ops are sent again on the next one. If the server has processed
   * a close by this client, it has also processed all ops before it, so that the next init shows
   * those that it did not refuse. */
  closed({ is_answered = false, is_too_many = false } = {}) {
    for (const own of is_answered ? this.#doubtful : []) {
      if (this.#pending.get(own.key) !== own) continue;
      this.#pending.delete(own.key);
      this.#entries.set(own.key, { value: own.value, text: own.text, timestamp: 0 });
    }
    for (const own of this.#sent.values()) this.#unsend(own);
    for (const own of this.#pending.values()) own.id = Infinity;
    if (is_too_many) this.#pace = 1;
    [this.#is_open, this.#is_pacing, this.#doubtful] = [false, false, []];
    if (this.#connection !== undefined) this.#former.add(this.#connection);
    this.#endEcho(false);
  }

  /** Makes the next connection start with the complete state. */
  forgetPosition() { this.#seq = undefined; }

  /** Ends this connection, so that the next one starts with the complete state. */
  #startOver(message) {
    this.forgetPosition();
    [this.#is_open, this.#is_done] = [false, true];
    this.#outputs.push({ close: RESYNC, message });
  }

  /** Drops everything, because the workspace was deleted. */
  drop() {
    for (const [key] of this.entries()) {
      this.#outputs.push({ change: { key, value: undefined, timestamp: 0, source: "other" } });
    }
    for (const held of [this.#entries, this.#pending, this.#sent, this.#peers]) held.clear();
  }

  /** Applies a message from the server. The resume point advances last, so that it never passes
   * unapplied changes. Throws if the message cannot be understood. */
  receive(message, now) {
    const { type, payload, data, seq, id } = message;
    if (this.#version === 1) {
      if (type === "init") this.#init(new Map(Object.entries(data)));
      else if (type === "op") this.#receiveOp1(payload, now);
      else if (type === "error") this.#refuse1(payload);
      return;
    }
    const handlers = {
      welcome: () => this.#welcome(payload, now),
      state: () => this.#receiveState(payload, now),
      synced: () => this.#synced(),
      op: () => this.#receiveOp2(payload, id, now),
      saved: () => this.#saved(payload.id),
      error: () => this.#refuse2(id, payload),
      presence: () => this.#receivePresence(payload),
    };
    if (this.#is_done || !Object.hasOwn(handlers, type)) return;
    handlers[type]();
    const has_seq = Number.isSafeInteger(seq);
    if (has_seq) this.#seq = seq;
    // A part of a state leaves out what changes later, and what has no seq may be of any later
    // moment. All other messages with a seq come when everything before them was sent.
    if (SHOWS.includes(type)) this.#is_exact = has_seq && type !== "state";
  }

  // ---- version 2 ----

  #welcome({ state, why, generation, connection, limits }, { us, local_us = us }) {
    const is_other = this.#generation !== generation;
    // A restarted server may reuse the ids.
    if (is_other) this.#former.clear();
    this.#left.clear();
    [this.#connection, this.#generation, this.#why] = [connection, generation, why];
    // If the new history lacks what the old one had after the position, then it has something else
    // in its place, which may be from before the position and is not among the changes.
    const is_useless = state === "changes" && is_other && !this.#is_exact;
    if (is_useless) return this.#startOver("the server continues a different history");
    this.#message_bytes_max = limits?.message_bytes ?? Infinity;
    // If the last connection broke inside a full state, `changes` continue where that stopped.
    if (state === "full") {
      [this.#seq, this.#is_full] = [undefined, true];
      this.#unconfirmed = new Set(this.#entries.keys());
    }
    this.#is_open = true;
    this.#restamp(us - local_us);
    this.sendSome();
  }

  /** Corrects the timestamps of ops that were written before the server's clock was known. No other
   * client has seen those that were never sent. */
  #restamp(offset_us) {
    for (const own of this.#pending.values()) {
      if (!own.is_local || !own.is_new) continue;
      own.timestamp = Math.max(own.timestamp + offset_us, own.passed_us + 1);
      own.is_local = false;
    }
    this.#forget([]);
  }

  #receiveState({ entries = [], deleted = [] }, now) {
    const source = this.#is_full ? "init" : "other";
    for (const [key, value, timestamp] of entries) this.#merge(key, value, timestamp, source, now);
    for (const [key, timestamp] of deleted) this.#merge(key, undefined, timestamp, source, now);
  }

  #receiveOp2({ key, value, deleted = false, timestamp }, id, now) {
    if (value === undefined && !deleted) throw new TypeError("an op has no value");
    // If it answers an own op, that one has lost, whatever the timestamps are.
    const lost = this.#sent.get(id);
    this.#merge(key, deleted ? undefined : value, timestamp, "other", now, lost);
    this.#sent.delete(id);
  }

  /** Drops the entries that the full state did not confirm. */
  #synced() {
    for (const key of this.#unconfirmed) {
      const { text } = this.#entries.get(key);
      this.#entries.delete(key);
      this.#tombstones.delete(key);
      if (this.#pending.has(key) || text === undefined) continue;
      this.#outputs.push({ change: { key, value: undefined, timestamp: 0, source: "init" } });
    }
    this.#unconfirmed.clear();
    this.#is_full = false;
    this.#outputs.push({ synced: true, why: this.#why });
  }

  /** Settles every local op up to this id: each has won, since otherwise the winner or an error
   * would have come first. */
  #saved(id) {
    for (const own of this.#sent.values()) {
      if (own.id > id) break;
      this.#sent.delete(own.id);
      this.#take(own);
    }
  }

  #refuse2(id, { code, message, key }) {
    const own = this.#sent.get(id);
    if (own && (code === 429 || code === 500)) return this.#slowDown(own, code, message);
    this.#sent.delete(id);
    if (own) return this.#undo(own, code, message);
    this.#outputs.push({ error: { code, message, ...(key !== undefined && { key }) } });
  }

  /** Changes the peers. A peer that has left does not come back: its id is never reused. */
  #receivePresence({ all = false, peers = {}, left = [] }) {
    if (all) this.#peers.clear();
    for (const connection of left) {
      this.#left.add(connection);
      this.#peers.delete(connection);
    }
    for (const oldest of this.#left) {
      if (this.#left.size <= LEFT_MAX) break;
      this.#left.delete(oldest);
    }
    for (const [connection, { user = null, value = null }] of Object.entries(peers)) {
      if (!this.#left.has(connection)) this.#peers.set(connection, { user, value });
    }
    this.#outputs.push({ presence: true });
  }

  // ---- version 1 ----

  #init(state) {
    const changes = [];
    for (const [key, { text }] of this.#entries) {
      if (state.has(key)) continue;
      this.#entries.delete(key);
      if (this.#pending.has(key) || text === undefined) continue;
      changes.push({ key, value: undefined, timestamp: 0, source: "init" });
    }
    for (const [key, value] of state) {
      const [text, held] = [JSON.stringify(value), this.#entries.get(key)];
      this.#entries.set(key, { value, text, timestamp: 0 });
      if (this.#pending.has(key) || held?.text === text) continue;
      changes.push({ key, value, timestamp: 0, source: "init" });
    }
    this.#tombstones.clear();
    this.#unconfirmed.clear();
    this.#peers.clear();
    [this.#seq, this.#generation, this.#connection] = [];
    [this.#is_open, this.#is_full] = [true, false];
    for (const own of this.pending.filter(needsVersion2)) {
      this.#undo(own, 400, UNSUPPORTED);
    }
    this.sendSome();
    for (const change of changes) this.#outputs.push({ change });
    this.#outputs.push({ synced: true });
  }

  #receiveOp1({ key, value, timestamp }, now) {
    const own = this.#pending.get(key);
    if (this.#echo_key === key) {
      if (own?.text === JSON.stringify(value) && own.timestamp === timestamp) this.#returned(own);
      this.#endEcho(true);
    }
    this.#merge(key, value, timestamp, "other", now);
  }

  /** Handles a refusal. If the message does not say which op was refused, the next init shows it.
   * */
  #refuse1({ code, message, key, timestamp }) {
    const own = this.#pending.get(key);
    // Another op has replaced it, or it was an echo.
    if (key !== undefined && own?.timestamp !== timestamp) return this.#endEcho(false);
    if (key !== undefined && code === 429) return this.#slowDown(own, code, message);
    // An op may not have fit while its echo did.
    if (key !== undefined && !own.is_echoed) return this.#undo(own, code, message);
    // Ops refused with 500 or 429 are sent again. After a 500 the server closes the connection.
    if (code === 400 || code === 413) this.#forget((this.#doubtful = this.pending.filter(wasSent)));
    if (code !== 500) {
      this.#is_open = false;
      this.#outputs.push({ close: RESYNC, message });
    }
    this.#outputs.push({ error: { code, message } });
  }

  /** Handles a local op that the server returned: it has been applied, and everything that was sent
   * before it has been handled. */
  #returned({ id }) {
    for (const own of this.pending) if (wasSent(own) && own.id <= id) this.#take(own);
  }

  /** Schedules another call to find out which ops have been accepted, while that is unknown. */
  settle() {
    const asks = this.#version === 1 && this.#is_open && !this.#is_pacing && this.#pending.size > 0;
    if (asks) this.#outputs.push({ timer: "settle" });
  }

  /** Sends an op that cannot win, since it is older than its key's value: it changes nothing, and
   * the server replies with the winner. Returns whether there is a key that this works with. */
  startEcho() {
    const own = this.pending.filter(wasSent).at(-1);
    const any = [...this.#entries].find(([, { text }]) => text !== undefined)?.[0];
    const key = own?.key ?? (this.#pending.size === 0 ? any : undefined);
    if (!this.#is_open || key === undefined) return false;
    this.#echo_key = key;
    // If the local op is refused, so is its echo; any other key is known to the server.
    if (own) own.is_echoed = true;
    const other = this.#entries.get(key)?.text === "null" ? "0" : "null";
    this.#send({ key, text: own?.text ?? other, timestamp: own ? own.timestamp - 1 : 0 });
    return true;
  }

  #endEcho(echoed) {
    if (this.#echo_key === undefined) return;
    this.#echo_key = undefined;
    this.#outputs.push({ echoed });
  }

  // ---- both versions ----

  #shown(key) { return this.#pending.get(key) ?? this.#entries.get(key); }

  #setEntry(key, value, text, timestamp) {
    this.#entries.set(key, { value, text, timestamp });
    this.#tombstones.delete(key);
    if (text !== undefined) return;
    this.#tombstones.add(key);
    if (this.#tombstones.size <= TOMBSTONES_MAX) return;
    const [oldest] = this.#tombstones;
    for (const held of [this.#tombstones, this.#entries, this.#unconfirmed]) held.delete(oldest);
  }

  /** The merge rule: applies an entry unless the client's is newer. Unconfirmed entries are
   * replaced regardless of their timestamps, since the server may not have their history. */
  #merge(key, value, timestamp, source, now, lost) {
    const is_entry = typeof key === "string" && Number.isSafeInteger(timestamp);
    if (!is_entry) throw new TypeError("an entry is malformed");
    const text = JSON.stringify(value);
    const [held, own] = [this.#shown(key), this.#pending.get(key)];
    const known = this.#entries.get(key);
    if (!this.#unconfirmed.delete(key) && known?.timestamp > timestamp) return;
    this.#setEntry(key, value, text, timestamp);
    if (own !== lost && own?.timestamp > timestamp) return;
    if (own?.base !== undefined && own.base === text) {
      return void this.#stamp({ ...own, base: undefined, passed_us: timestamp }, now);
    }
    this.#pending.delete(key);
    const is_same = held?.timestamp === timestamp || held?.timestamp === 0 || text === undefined;
    if (held?.text === text && is_same) return;
    const over = own && { value: own.value, timestamp: own.timestamp };
    this.#outputs.push({ change: { key, value, timestamp, source, over } });
  }

  /** Makes a local op that the server has accepted part of the server's state. */
  #take(own) {
    const { key, value, text, timestamp } = own;
    this.#taken_us = Math.max(this.#taken_us, timestamp);
    if (this.#pending.get(key) === own) this.#pending.delete(key);
    const known = this.#entries.get(key);
    // Otherwise it has lost, and the winner came first.
    if (known && !this.#unconfirmed.has(key) && known.timestamp >= timestamp) return;
    this.#unconfirmed.delete(key);
    this.#setEntry(key, value, text, timestamp);
  }

  /** Makes an op wait to be sent again, or lets the newer op of its key replace it. */
  #unsend(own) {
    this.#sent.delete(own.id);
    const newest = this.#pending.get(own.key);
    if (newest === own) return void (own.id = Infinity);
    if (!newest) return;
    newest.first = Math.min(newest.first, own.first);
    newest.is_hiding = true;
  }

  /** Resends an op that the server could not accept, at a slower pace. */
  #slowDown(own, code, message) {
    const [{ key }, is_told] = [own, this.#is_over];
    this.#endEcho(false);
    this.#is_over = true;
    this.#unsend(own);
    if (!this.#is_pacing) this.#outputs.push({ timer: "sendSome" });
    this.#is_pacing = true;
    if (!is_told) this.#outputs.push({ error: { code, message, key } });
  }

  /** Undoes a refused op, which reveals an older op of the key that is still in transit, or else
   * the server's entry. */
  #undo(own, code, message) {
    const { key, timestamp, value, number } = own;
    this.#endEcho(false);
    this.#forget([own]);
    const is_newest = this.#pending.get(key) === own;
    if (is_newest) {
      this.#pending.delete(key);
      const older = [...this.#sent.values()].filter((sent) => sent.key === key).at(-1);
      if (older) this.#pending.set(key, older);
      const shown = this.#shown(key);
      this.#outputs.push({ change: {
        key, value: shown?.value, timestamp: shown?.timestamp ?? 0, source: "other",
        over: { value, timestamp },
      } });
    }
    // The server's entry for this key may be an op that this client has forgotten.
    if (this.#version === 2 && own.is_hiding) this.#startOver(message);
    this.#outputs.push({ error: { code, message, key }, ...(is_newest && { refused: number }) });
  }

  /** Marks ops as refused. Later timestamps need not exceed theirs, which may have come from a
   * wrong clock. */
  #forget(refused) {
    for (const own of refused) own.is_doubtful = true;
    this.#last_us = this.#taken_us;
    for (const { timestamp, is_doubtful } of this.#pending.values()) {
      if (!is_doubtful) this.#last_us = Math.max(this.#last_us, timestamp);
    }
  }
}

/** A replica and its connection, which is reopened until the room ends. */
class Room extends EventTarget {
  #replica = new Replica();
  #host; #base; #segment; #query; #source; #refusal; #is_peer; #only_version;
  #socket; #timers = {}; #state = "Disconnected"; #told_status = "offline"; #ended = false;
  #has_spoken_2 = false; #is_welcomed = false; #is_heeded = false; #is_settling = false;
  #attempt = 0; #synced_ms = Infinity; #dialed_ms = 0; #heard_ms = 0; #heard_count = 0;
  #echo; #echoes = Promise.resolve();
  #pings = []; // Those without an answer: `{since_ms, resolve}`.
  #clock; // How far the server's clock is ahead, as the fastest round trip has shown.
  #presence; #presence_waits = false;
  #waiting = []; // The promises of `saved` and `synced`.
  #wake = (event) => this.#woken(event?.type ?? "online");

  constructor({ url = import.meta.url, workspace, token, presence = false, version }, host) {
    super();
    const path = (url + "").split("?")[0].replace(/\/(client\.mjs)?$/, "");
    const [prefix, segment = ""] = path.split("/v1/sync/");
    [this.#host, this.#base] = [host, prefix.replace(/^ws/, "http")];
    this.#segment = workspace === undefined ? segment : encodeURIComponent(workspace);
    this.#query = new URL(url).searchParams;
    this.#source = token ?? this.#query.get("token") ?? "";
    [this.#is_peer, this.#only_version] = [presence, version];
    if (this.#segment === "") throw new TypeError("a workspace is required");
    for (const name of WAKE_EVENTS) host.addEventListener?.(name, this.#wake);
    // Deferred so that the caller can attach its listeners first.
    queueMicrotask(() => this.#ended || this.#open());
  }

  /** @returns {State} */
  get state() { return this.#state; }
  /** @returns {Status} */
  get status() {
    if (this.#state === "Connected") return "syncing";
    if (this.#state !== "Synced") return "offline";
    return this.pending === 0 ? "saved" : "saving";
  }
  /** The number of keys with a pending op. */
  get pending() { return this.#replica.pending_count; }
  /** The version of the protocol that the last connection spoke, or 0 before the first. */
  get version() { return this.#replica.version; }
  /** The id of this client among the peers, on a version 2 server. */
  get connection() { return this.#replica.connection; }
  /** The peers of the workspace, including this client, as last listed by the server. @returns
   * {Peer[]} */
  get peers() { return this.#replica.peers; }
  /** The unsaved ops of earlier rooms for this server and workspace, oldest first.
   * @returns {Edit[]} */
  get unsaved() { return this.#kept().map(editOf); }
  get(key) { return this.#replica.get(key); }
  /** @returns {[string, any][]} */
  entries() { return this.#replica.entries(); }

  /** Writes a key and returns the op's timestamp, which is greater than that of the value it
   * replaces, as far as this client knows. Null is a value too. With `ttl_ms`, the server deletes
   * the key that many milliseconds after it has accepted the op; the key exists until the server
   * reports the delete. */
  set(key, value, { ttl_ms } = {}) {
    const text = textOf(value, VALUE_BYTES_MAX);
    const is_duration = Number.isSafeInteger(ttl_ms) && ttl_ms > 0 && ttl_ms <= TTL_MS_MAX;
    const is_bad = ttl_ms !== undefined && !is_duration;
    if (is_bad) throw new RangeError("ttl_ms must be an integer from 1 to 10 years");
    return this.#write(key, text, ttl_ms);
  }

  /** Deletes a key and returns the op's timestamp. A key that does not exist can be deleted too,
   * which keeps earlier writes to it from coming back. */
  delete(key) { return this.#write(key, undefined); }

  /** Resolves once the server has settled every edit made until now: each is as durable as the
   * server's mode makes it, or has lost to a newer one. Rejects if one of them is refused, or if
   * the room ends first. */
  saved() {
    const last = this.#replica.edits_count;
    return this.#wait({ last, is_done: (oldest) => oldest > last });
  }
  /** Resolves while this client has the state of the server; rejects if the room ends first. */
  synced() { return this.#wait({ last: 0, is_done: () => this.#state === "Synced" }); }

  /** Sends the ops in `unsaved`, except for keys that have a newer value. */
  restore() {
    this.#check();
    const edits = this.#kept();
    this.discard();
    for (const { key, text, timestamp, base, ttl_ms } of edits) {
      if (this.#replica.has(key) || this.#replica.timestampOf(key) > timestamp) continue;
      const own = { key, text, timestamp, base, ttl_ms, passed_us: timestamp - 1 };
      this.#run(() => this.#replica.put(own));
    }
  }

  /** Drops the ops in `unsaved`. */
  discard() { kept.delete(this.#place); }

  /** Sets the value that other peers see for this one: JSON of at most 4 KiB. It is kept across
   * reconnects. Only the latest value is sent, at most once in 50 ms. */
  setPresence(value) {
    if (!this.#is_peer) throw new Error("presence requires the option presence: true");
    this.#presence = textOf(value, PRESENCE_BYTES_MAX);
    this.#sendPresence();
  }

  /** Sends a value to all other clients that are connected now; it is not stored. Returns whether
   * it was sent. */
  cast(value) {
    const text = textOf(value, CAST_BYTES_MAX);
    if (this.#is_welcomed) this.#socket.send(`{"type":"cast","payload":{"value":${text}}}`);
    return this.#is_welcomed;
  }

  /** Adds a listener and returns a function that removes it. `change` passes a Change; `state`
   * passes `{state, reason, retry_ms}`, with Synced in version 2 also `why` the server sent the
   * state or the changes ("first", "resumed", "other_generation", "too_old"), and at the end
   * `unsaved`, an Edit[]; `status` passes `{status}`; `presence` passes `{peers}`; `cast` passes
   * `{from, user, value}`; `error` passes the `{code, message, key}` of a refusal, with `key` if it
   * is known: the op is undone locally or, after a 429 or 500, sent again. */
  on(name, listener) {
    const handle = ({ detail }) => listener(detail);
    this.addEventListener(name, handle);
    return () => this.removeEventListener(name, handle);
  }
  addEventListener(name, ...rest) {
    if (name === "state") this.#is_heeded = true;
    super.addEventListener(name, ...rest);
  }

  /** Returns the round-trip time of a message to the server in milliseconds, or undefined if there
   * is no connection or, in version 1, no key. @returns {Promise<number | undefined>} */
  echo() {
    const one = () => new Promise((resolve) => this.#startEcho(resolve));
    return (this.#echoes = this.#echoes.then(one));
  }
  /** Ends the room for good; pending ops are kept for the next room. */
  close() { if (!this.#ended) this.#end("Disconnected", "closed by this client"); }

  get #place() { return `${this.#base}/v1/sync/${this.#segment}`; }
  #kept() {
    const edits = [...(kept.get(this.#place)?.values() ?? [])];
    return edits.sort((a, b) => a.timestamp - b.timestamp);
  }
  #check() { if (this.#ended) throw new Error("this room has ended"); }

  #write(key, text, ttl_ms) {
    this.#check();
    const is_key = typeof key === "string" && key !== "" && bytesOf(key) <= KEY_BYTES_MAX;
    if (!is_key) throw new TypeError("a key must be a string of 1 to 1024 bytes");
    const is_version_1 = this.#state === "Synced" && this.version === 1;
    if (is_version_1 && needsVersion2({ text, ttl_ms })) throw new Error(UNSUPPORTED);
    return this.#run(() => this.#replica.write(key, text, this.#now(), ttl_ms));
  }

  #wait({ last, is_done }) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ last, is_done, resolve, reject });
      this.#report();
    });
  }

  // ---- the replica's outputs ----

  /** Passes an input to the replica, and carries out the resulting outputs. */
  #run(input) {
    const result = input();
    const outputs = this.#replica.drain();
    if (outputs.some(({ synced }) => synced)) this.#becomeSynced(outputs);
    // Listeners may make more edits, which must not overtake these.
    for (const { send } of outputs) if (send !== undefined) this.#socket?.send(send);
    for (const { timer } of outputs) if (timer !== undefined) this.#setTimer(timer);
    for (const output of outputs) this.#perform(output);
    this.#report();
    return result;
  }

  #perform({ change, error, refused, presence, synced, why, echoed, close, message }) {
    if (change) this.#emit("change", change);
    if (close && this.#socket) {
      this.#socket.close(close);
      this.#enter("Connected", message);
    }
    if (refused !== undefined) this.#reject(error.message, ({ last }) => last >= refused);
    if (error?.code === 429) this.#after("presenceAgain", PACE_MS, () => this.#sendPresence());
    if (error) this.#emit("error", error);
    if (presence) this.#emit("presence", { peers: this.peers });
    // The echo may be that of a probe, for which nobody waits.
    const took_ms = echoed && this.#echo ? this.#now_ms() - this.#echo.since_ms : undefined;
    if (echoed !== undefined) this.#endEcho(took_ms);
    const is_synced = synced && this.#state === "Synced";
    if (is_synced) this.#emit("state", { state: "Synced", ...(why && { why }) });
  }

  #becomeSynced(outputs) {
    // A client that fell behind is synced again, which need not be reported.
    if (this.#state === "Synced") outputs.splice(outputs.findIndex(({ synced }) => synced), 1);
    else this.#synced_ms = this.#now_ms();
    this.#state = "Synced";
    for (const { key, text } of this.#kept()) {
      if (this.#replica.serverText(key) === text) kept.get(this.#place).delete(key);
    }
    this.#watch();
  }

  #setTimer(name) {
    if (name === "sendSome") {
      return this.#after(name, PACE_MS, () => this.#run(() => this.#replica.sendSome()));
    }
    if (this.#is_settling) return;
    this.#is_settling = true;
    this.#after(name, SETTLE_MS, () => this.echo().then(() => {
      this.#is_settling = false;
      this.#run(() => this.#replica.settle());
    }));
  }

  /** Emits a change of the status, and settles the promises that can be settled. */
  #report() {
    const { status } = this;
    const is_news = status !== this.#told_status;
    this.#told_status = status;
    if (is_news) this.#emit("status", { status });
    if (this.#waiting.length === 0) return;
    const oldest = this.#replica.oldest_unsettled;
    const done = new Set(this.#waiting.filter(({ is_done }) => is_done(oldest)));
    this.#waiting = this.#waiting.filter((one) => !done.has(one));
    for (const { resolve } of done) resolve();
    if (this.#ended) this.#reject("this room has ended", () => true);
  }

  #reject(message, concerns) {
    const failed = this.#waiting.filter(concerns);
    this.#waiting = this.#waiting.filter((one) => !concerns(one));
    for (const { reject } of failed) reject(new Error(message));
  }

  // ---- time ----

  #now_ms() { return this.#host.performance.now(); }

  #now() {
    const local_us = this.#host.Date.now() * 1000;
    // The machine has slept, or its clock was set: ask again.
    if (this.#clock && this.#isClockMoved() && this.#pings.length === 0) this.#ping();
    const us = local_us + (this.#clock?.offset_us ?? 0);
    return { us, local_us, is_server_time: this.#clock !== undefined };
  }

  #drift_ms() { return this.#host.Date.now() - this.#now_ms(); }
  #isClockMoved() { return Math.abs(this.#drift_ms() - this.#clock.drift_ms) > CLOCK_STEP_MS; }

  /** Measures the server's clock, which showed this time at some moment between `since_ms` and now.
   * */
  #measure(server_us, since_ms) {
    if (!Number.isSafeInteger(server_us)) return;
    const [now_ms, drift_ms] = [this.#now_ms(), this.#drift_ms()];
    const round_ms = now_ms - since_ms;
    const is_old = !this.#clock || now_ms - this.#clock.at_ms > CLOCK_FRESH_MS;
    if (!is_old && !this.#isClockMoved() && round_ms > this.#clock.round_ms) return;
    const offset_us = Math.round(server_us + round_ms * 500 - this.#host.Date.now() * 1000);
    this.#clock = { offset_us, round_ms, drift_ms, at_ms: now_ms };
  }

  /** Sends a ping. `resolve` is called with the round-trip time, or undefined. */
  #ping(resolve = () => {}) {
    if (!this.#is_welcomed) return resolve();
    this.#pings.push({ since_ms: this.#now_ms(), resolve });
    this.#socket.send('{"type":"ping"}');
  }

  #pong({ time } = {}) {
    const ping = this.#pings.shift();
    if (!ping) return;
    this.#measure(time, ping.since_ms);
    ping.resolve(this.#now_ms() - ping.since_ms);
  }

  #startEcho(resolve) {
    if (this.#state !== "Synced") return resolve();
    if (this.version === 2) return this.#ping(resolve);
    this.#echo = { since_ms: this.#now_ms(), resolve };
    if (!this.#run(() => this.#replica.startEcho())) this.#endEcho();
  }

  #endEcho(took_ms) { this.#echo = void this.#echo?.resolve(took_ms); }

  #after(name, delay_ms, run) {
    this.#timers[name] ??= this.#host.setTimeout(() => {
      this.#timers[name] = undefined;
      run();
    }, delay_ms);
  }

  #cancel(name) { this.#timers[name] = void this.#host.clearTimeout(this.#timers[name]); }

  // ---- the lifecycle of a connection ----

  /** Requests a sign of life after a silence. */
  #watch() {
    const silent_ms = this.#now_ms() - this.#heard_ms;
    if (silent_ms >= SILENCE_MS) this.#probe();
    const next_ms = silent_ms >= SILENCE_MS ? SILENCE_MS : SILENCE_MS - silent_ms;
    this.#after("watch", next_ms, () => this.#watch());
  }

  /** Finds out whether the connection is alive: any message that arrives soon is a sign. */
  #probe() {
    if (this.#timers.probe !== undefined) return;
    if (this.version === 2) this.#ping();
    else if (this.#echo || !this.#run(() => this.#replica.startEcho())) return;
    const heard_count = this.#heard_count;
    this.#after("probe", this.#state === "Synced" ? PONG_MS : PONG_IN_STATE_MS, () => {
      if (this.#heard_count === heard_count) this.#retry("the server is silent");
    });
  }

  /** The network is back, or the page is visible again. */
  #woken(type) {
    if (this.#host.document?.visibilityState === "hidden") return;
    if (["Connected", "Synced"].includes(this.#state)) return this.#probe();
    // A page that is shown for the first time is already connecting.
    if (type !== "online" && this.#timers.retry === undefined) return;
    this.#attempt = 0;
    this.#retry(type === "online" ? "back online" : "page shown again");
  }

  async #open() {
    const mine = (this.#socket = {}); // If `#leave` is called meanwhile, this attempt is obsolete.
    this.#after("answer", ANSWER_MS, () => this.#retry("no response"));
    this.#enter("Connecting");
    let status, token;
    try {
      token = typeof this.#source === "function" ? await this.#source(this.#refusal) : this.#source;
      if (this.#socket !== mine) return;
      if (!TOKEN.test(token)) return this.#end("Error", "the token is empty or malformed");
      // A page cannot see why a WebSocket failed, so this asks first.
      const headers = { Authorization: `Bearer ${token}` };
      const url = `${this.#base}/v1/presence/${this.#segment}`;
      const answer = this.#host.fetch(url, { method: "HEAD", headers, cache: "no-store" });
      ({ status } = await answer.catch(() => { throw new Error("no response"); }));
    } catch (error) { return void (this.#socket === mine && this.#retry(error.message)); }
    if (this.#socket === mine) this.#enter("Authenticating");
    if (this.#socket !== mine) return;
    if ([400, 401, 403].includes(status)) return this.#renew(REFUSALS[status], status === 401);
    if (status >= 500 || status === 429) return this.#retry(`the server responded with ${status}`);
    const may_be_1 = this.#only_version !== 2 && !this.#has_spoken_2;
    const is_1 = this.#only_version === 1 || (may_be_1 && !PROTOCOL_NAME.test(token));
    if (is_1) this.#dial(token, 1);
    else if (!PROTOCOL_NAME.test(token)) this.#end("Error", "the token is malformed");
    else this.#dial(token, 2, may_be_1);
  }

  /** Opens a WebSocket for this version. A browser fails a connection when the server accepts none
   * of the offered protocols, so version 1 is a second connection. */
  #dial(token, version, may_be_1 = false) {
    let socket;
    try {
      socket = this.#newSocket(token, version);
    } catch (error) {
      // The runtime has no WebSocket (Node.js before 22), or does not allow one to this address.
      return this.#end("Error", error.message);
    }
    [this.#socket, this.#dialed_ms] = [socket, this.#now_ms()];
    if (this.#clock) this.#clock.round_ms = Infinity; // It may be another server.
    let is_open = false;
    const whileMine = (handle) => (event) => this.#socket === socket && handle(event);
    socket.onopen = whileMine(() => {
      is_open = true;
      this.#refusal = undefined;
      this.#replica.opened(socket.protocol === V2 ? 2 : 1);
      this.#has_spoken_2 ||= this.version === 2;
      this.#heard_ms = this.#now_ms();
      if (this.version === 2) this.#watch();
      this.#enter("Connected");
    });
    socket.onmessage = whileMine((event) => this.#receive(event.data));
    socket.onclose = whileMine((event) => {
      if (is_open || !may_be_1) this.#closed(event);
      else this.#dial(token, 1);
    });
  }

  #newSocket(token, version) {
    const query = new URLSearchParams(this.#query);
    query.delete("token");
    const { position, connection } = this.#replica;
    const replaces = connection && { replaces: connection };
    const peer = this.#is_peer && { presence: 1, ...replaces };
    const added = version === 1 ? { token } : { ...position, ...peer };
    for (const [name, value] of Object.entries(added)) query.set(name, value);
    const url = `${this.#base.replace(/^http/, "ws")}/v1/sync/${this.#segment}`;
    const full_url = `${query}` === "" ? url : `${url}?${query}`;
    const { WebSocket } = this.#host;
    if (version === 1) return new WebSocket(full_url);
    return new WebSocket(full_url, [V2, `bearer.${token}`]);
  }

  #receive(text) {
    this.#heard_count += 1;
    this.#heard_ms = this.#now_ms();
    try {
      const message = JSON.parse(text);
      const { type, payload } = message;
      if (this.version === 2 && type === "pong") return this.#pong(payload);
      if (this.version === 2 && type === "cast") return this.#emit("cast", payload);
      if (this.version === 2 && type === "welcome") this.#measure(payload.time, this.#dialed_ms);
      this.#run(() => this.#replica.receive(message, this.#now()));
      if (this.version === 2 && type === "welcome") this.#welcomed();
    } catch (error) {
      // The copy may be incomplete: the next connection starts with the complete state.
      this.#replica.forgetPosition();
      this.#retry(`invalid message from the server: ${error.message}`);
    }
  }

  #welcomed() {
    if (!this.#socket) return;
    this.#is_welcomed = true;
    this.#ping(); // It measures the clock better than a handshake.
    this.#sendPresence();
  }

  #sendPresence() {
    if (!this.#is_welcomed || this.#presence === undefined) return;
    if (this.#timers.presence !== undefined) return void (this.#presence_waits = true);
    this.#presence_waits = false;
    this.#socket.send(`{"type":"presence","payload":{"value":${this.#presence}}}`);
    this.#after("presence", PRESENCE_MS, () => this.#presence_waits && this.#sendPresence());
  }

  #closed({ code, reason }) {
    // If the server has processed our close, it has handled everything that was sent.
    const ended = { is_answered: code === RESYNC, is_too_many: reason === TOO_MANY };
    this.#run(() => this.#replica.closed(ended));
    const told = `closed with ${code} ${reason}`.trim();
    if (code === EXPIRED) return this.#renew(reason, true);
    if (code === REMOVED) return this.#end("Error", reason || "removed by an administrator");
    if (code === DELETED) return this.#drop(reason || "the workspace was deleted");
    if (FATAL_CODES.includes(code) && reason !== TOO_MANY) return this.#end("Error", told);
    if (code === DRAINED) return this.#comeBack(told);
    this.#retry(told);
  }

  /** Another server takes over: all clients reconnect, spread over a second rather than all at
   * once. */
  #comeBack(reason) {
    this.#leave();
    this.#attempt = 0;
    this.#waitAndOpen(reason, 4 * RETRY_MS);
  }

  /** Ends the room and drops the local copy. The last `state` event has the pending edits. */
  #drop(reason) {
    const unsaved = this.#replica.pending.map(editOf);
    this.discard();
    this.#reject(reason, () => true);
    this.#run(() => this.#replica.drop());
    if (!this.#ended) this.#end("Error", reason, unsaved);
  }

  /** Retries with a new token, unless the refused token was already the new one. */
  #renew(reason, may_help) {
    const may_ask = typeof this.#source === "function" && this.#refusal === undefined;
    if (!may_help || !may_ask) return this.#end("Error", reason);
    this.#refusal = reason;
    this.#retry(reason);
  }

  #retry(reason) {
    if (this.#now_ms() - this.#synced_ms > STABLE_MS) this.#attempt = 0;
    this.#leave();
    this.#waitAndOpen(reason, Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** this.#attempt++));
  }

  #waitAndOpen(reason, most_ms) {
    const retry_ms = this.#host.Math.random() * most_ms;
    this.#after("retry", retry_ms, () => this.#open());
    this.#enter("Disconnected", reason, retry_ms);
  }

  #end(state, reason, unsaved = this.#replica.pending.map(editOf)) {
    this.#ended = true;
    for (const name of WAKE_EVENTS) this.#host.removeEventListener?.(name, this.#wake);
    this.#leave();
    const edits = kept.get(this.#place) ?? new Map();
    for (const own of this.#replica.pending) {
      if (!(edits.get(own.key)?.timestamp > own.timestamp)) edits.set(own.key, own);
    }
    if (edits.size > 0) kept.set(this.#place, edits);
    if (!this.#is_heeded && (state === "Error" || unsaved.length > 0)) this.#log(reason, unsaved);
    this.#enter(state, reason, undefined, unsaved);
  }

  /** Nothing listens, so the console reports that the room has ended and which keys were not saved.
   * */
  #log(reason, unsaved) {
    const keys = unsaved.slice(0, 20).map(({ key }) => JSON.stringify(key)).join(", ");
    const more = unsaved.length > 20 ? ", …" : "";
    const lost = unsaved.length === 0 ? "" : `; not saved: ${keys}${more} (${unsaved.length} keys)`;
    const workspace = decodeURIComponent(this.#segment);
    const ended = `the room of workspace ${workspace} has ended`;
    this.#host.console?.error(`EtherPly: ${ended}: ${reason}${lost}`);
  }

  #leave() {
    const socket = this.#socket;
    [this.#socket, this.#is_welcomed, this.#synced_ms] = [undefined, false, Infinity];
    for (const name of Object.keys(this.#timers)) this.#cancel(name);
    this.#is_settling = this.#presence_waits = false;
    this.#run(() => this.#replica.closed());
    for (const { resolve } of this.#pings.splice(0)) resolve();
    // Closing it while it is opening would print its URL in the browser's console.
    if (socket?.readyState === 0) socket.onopen = () => socket.close(1000);
    else socket?.close?.(1000);
  }

  #enter(state, reason, retry_ms, unsaved) {
    this.#state = state;
    if (state === "Connected") this.#cancel("answer");
    this.#emit("state", { state, reason, retry_ms, ...(unsaved && { unsaved }) });
    this.#report();
  }

  #emit(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
