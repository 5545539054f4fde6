// A version 2 server in its simplest form, for the simulated world: one workspace, a map in the
// order of the last change, and a batch of ops that is applied, synced and sent in one step. It
// checks the messages that clients send.
import assert from 'node:assert/strict';

import { NaiveServer } from './simulated.mjs';

const EPOCH_MS = 1_700_000_000_000;
const COMMIT_MS = 10;
const PRESENCE_MS = 50;
const ENTRIES_PER_CHUNK = 2;
const DAY_US = 86_400e6;
const YEAR_2001_US = 978_307_200_000_000;

const textOf = (value) => JSON.stringify(value);

export class NaiveServer2 extends NaiveServer {
  constructor(world) {
    super(world);
    this.users = new Map([['good', 'ann'], ['other', 'ben'], ['nobody', null]]);
    this.tokens = new Set(this.users.keys());
    Object.assign(this, { seq: 0, floor: 0, dropped_seq: 0, begun_seq: 0, previous: undefined });
    this.generation = this.#newGeneration();
    this.connections_count = 0;
    this.batch = [];
    this.peers = new Map();
    this.chunk_ms = 5;
    // The parameters with which each connection was opened, for the tests.
    this.opened = [];
  }

  #newGeneration() {
    return Math.floor(this.world.random() * 2 ** 32).toString(16).padStart(16, '0');
  }

  get now_us() {
    return (EPOCH_MS + Math.floor(this.world.now_ms)) * 1000;
  }

  // ---- the lifecycle of a server ----

  // Unsynced ops are lost, and so is presence.
  kill() {
    this.batch = [];
    this.peers.clear();
    super.kill();
  }

  start() {
    if (this.is_up) return;
    super.start();
    [this.previous, this.generation] = [this.generation, this.#newGeneration()];
    this.begun_seq = this.seq;
    // Ids continue across restarts: a `replaces` that refers to the previous server must not remove
    // a peer of this one.
    this.expireDue();
  }

  // A copy of the data directory, from which a server starts later.
  copy() {
    const { seq, floor, dropped_seq, generation } = this;
    return { seq, floor, dropped_seq, generation, state: new Map(this.state) };
  }

  restore(copy) {
    this.kill();
    Object.assign(this, copy, { state: new Map(copy.state) });
    this.start();
  }

  dropTombstones() {
    for (const [key, { text, timestamp, seq }] of this.state) {
      if (text !== undefined) continue;
      this.state.delete(key);
      this.floor = Math.max(this.floor, timestamp);
      this.dropped_seq = seq;
    }
    // A client that fell behind before a tombstone was dropped would never receive it.
    for (const socket of this.sockets) if (!socket.is_live && socket.cursor < this.dropped_seq) this.drop(socket);
  }

  expireDue() {
    for (const [key, { expires_us, timestamp }] of this.state) {
      if (!(expires_us <= this.now_us)) continue;
      this.#change(key, { text: undefined, timestamp: timestamp + 1 });
    }
  }

  live() {
    const live = [...this.state].filter(([, { text }]) => text !== undefined);
    return Object.fromEntries(live.map(([key, { text }]) => [key, JSON.parse(text)]));
  }

  // ---- a connection ----

  open(socket) {
    const token = socket.protocols.find((name) => name.startsWith('bearer.'))?.slice('bearer.'.length);
    const { searchParams: query } = socket.url;
    assert.equal(query.get('token'), null, 'a token in the URL');
    assert.deepEqual(socket.protocols, ['etherply.v2', `bearer.${token}`]);
    this.opened.push(Object.fromEntries(query));
    if (!this.is_up || !this.tokens.has(token)) return this.drop(socket);
    this.expireDue();
    this.sockets.add(socket);
    const connection = `${(this.connections_count += 1)}`;
    Object.assign(socket, { connection, user: this.users.get(token), last_id: 0, settled_id: 0, told_id: 0 });
    socket.down.send({ opens: true, protocol: 'etherply.v2' });
    const [state, why] = this.#join(socket, query);
    this.say(socket, {
      type: 'welcome',
      payload: { connection, user: socket.user, generation: this.generation, time: this.now_us, state, why, durability: 'always' },
    });
    if (query.get('presence') === '1') this.#addPeer(socket, query.get('replaces'));
    this.#feed(socket);
  }

  #join(socket, query) {
    const [since, generation] = [query.get('since'), query.get('generation')];
    assert.equal(since === null, generation === null, 'since and generation, or neither');
    const decide = () => {
      if (since === null) return 'first';
      const is_next = generation === this.previous && since <= this.begun_seq;
      if (generation !== this.generation && !is_next) return 'other_generation';
      if (Number(since) > this.seq) return 'other_generation';
      return Number(since) < this.dropped_seq ? 'too_old' : 'resumed';
    };
    const why = decide();
    const is_resumed = why === 'resumed';
    Object.assign(socket, { cursor: is_resumed ? Number(since) : 0, is_live: false });
    socket.skips_tombstones_to = is_resumed ? 0 : this.seq;
    return [is_resumed ? 'changes' : 'full', why];
  }

  // Sends a chunk of the state that the connection lacks, and the next one once the socket has
  // drained.
  #feed(socket) {
    if (!this.sockets.has(socket) || socket.is_slow) return;
    const missing = [...this.state].filter(([, { seq }]) => seq > socket.cursor);
    const chunk = missing.slice(0, ENTRIES_PER_CHUNK);
    if (chunk.length === 0) {
      socket.cursor = this.seq;
      socket.is_live = true;
      return this.say(socket, { type: 'synced', payload: {}, seq: this.seq });
    }
    const told = chunk.filter(([, { text, seq }]) => text !== undefined || seq > socket.skips_tombstones_to);
    const entries = told.filter(([, { text }]) => text !== undefined).map(([key, { text, timestamp }]) => [key, JSON.parse(text), timestamp]);
    const deleted = told.filter(([, { text }]) => text === undefined).map(([key, { timestamp }]) => [key, timestamp]);
    socket.cursor = chunk.at(-1)[1].seq;
    this.say(socket, { type: 'state', payload: { entries, deleted }, seq: socket.cursor });
    this.world.after(this.chunk_ms, () => this.#feed(socket));
  }

  say(socket, message) {
    socket.down.send({ text: JSON.stringify(message) });
  }

  fallBehind(socket) {
    [socket.is_slow, socket.is_live] = [true, false];
  }

  catchUp(socket) {
    if (!socket.is_slow) return;
    socket.is_slow = false;
    this.#feed(socket);
  }

  close(socket, code, reason) {
    this.#removePeer(socket);
    super.close(socket, code, reason);
  }

  drop(socket) {
    this.#removePeer(socket);
    super.drop(socket);
  }

  // ---- messages ----

  apply(socket, text) {
    const { type, id, payload } = JSON.parse(text);
    if (id !== undefined) {
      assert(Number.isSafeInteger(id) && id > socket.last_id, `id ${id} after ${socket.last_id}`);
      socket.last_id = id;
    }
    if (type === 'ping') return this.say(socket, { type: 'pong', payload: { time: this.now_us } });
    if (type === 'presence') return this.#setPresence(socket, payload.value);
    if (type === 'cast') return this.#cast(socket, payload.value);
    assert.equal(type, 'op');
    if (this.batch.length === 0) this.world.after(COMMIT_MS, () => this.commit());
    this.batch.push({ socket, id, payload });
  }

  commit() {
    for (const { socket, id, payload } of this.batch.splice(0)) {
      // Messages that have arrived count, even if the sender has gone.
      this.#op(socket, id, payload);
      socket.settled_id = id;
    }
    for (const socket of this.sockets) {
      if (socket.settled_id === socket.told_id) continue;
      socket.told_id = socket.settled_id;
      const saved = { type: 'saved', payload: { id: socket.told_id } };
      this.say(socket, { ...saved, ...(socket.is_live && { seq: this.seq }) });
    }
  }

  #op(socket, id, { key, value, deleted = false, timestamp, ttl_ms }) {
    const refuse = (code, message) => this.say(socket, { type: 'error', id, payload: { code, message, key } });
    if (!this.takes(socket, 'sent', this.ops_per_second, 2 * this.ops_per_second)) {
      return refuse(429, 'not so fast');
    }
    if (timestamp > this.now_us + DAY_US || value === 'bad') return refuse(400, 'payload is bad');
    if (timestamp < YEAR_2001_US) return refuse(400, 'looks like milliseconds');
    assert.equal(value === undefined, deleted, 'exactly one of value and deleted');
    const [held, text] = [this.state.get(key), deleted ? undefined : textOf(value)];
    if (!held && timestamp <= this.floor) return this.#tell(socket, key, { timestamp: this.floor }, { id });
    if (held && held.timestamp >= timestamp) {
      const is_same = held.timestamp === timestamp && held.text === text;
      return is_same ? undefined : this.#tell(socket, key, held, { id });
    }
    const grown = (text?.length ?? 0) - (held?.text?.length ?? -key.length);
    if (!deleted && grown > 0 && this.bytes() + grown > this.bytes_max) {
      if (held) this.#tell(socket, key, held);
      return refuse(413, 'no room for this');
    }
    const expires_us = ttl_ms === undefined ? undefined : this.now_us + ttl_ms * 1000;
    this.#change(key, { text, timestamp, expires_us }, socket);
    if (expires_us) this.world.after(ttl_ms, () => this.is_up && this.expireDue());
  }

  #change(key, entry, writer) {
    this.seq += 1;
    this.state.delete(key);
    this.state.set(key, { ...entry, seq: this.seq });
    for (const socket of this.sockets) {
      if (socket === writer) continue;
      if (socket.is_live) this.#tell(socket, key, entry, { seq: this.seq });
      // A server may send a live op in the middle of a state, which does not advance the resume
      // point.
      else if (!socket.is_slow && this.world.random() < 0.3) this.#tell(socket, key, entry);
    }
  }

  #tell(socket, key, { text, timestamp }, more) {
    const what = text === undefined ? { deleted: true } : { value: JSON.parse(text) };
    this.say(socket, { type: 'op', payload: { key, ...what, timestamp }, ...more });
  }

  bytes() {
    return [...this.state].reduce((sum, [key, { text = '' }]) => sum + key.length + text.length, 0);
  }

  // ---- presence ----

  #addPeer(socket, replaces) {
    const left = [];
    const old = this.peers.get(replaces);
    if (old && old.user === socket.user && socket.user !== null) {
      this.peers.delete(replaces);
      left.push(replaces);
    }
    this.peers.set(socket.connection, { user: socket.user, value: null, socket });
    const peers = Object.fromEntries([...this.peers].map(([id, { user, value }]) => [id, { user, value }]));
    this.say(socket, { type: 'presence', payload: { all: true, peers } });
    this.#announce({ [socket.connection]: { user: socket.user, value: null } }, left, socket);
  }

  #removePeer(socket) {
    if (this.peers.get(socket.connection)?.socket !== socket) return;
    this.peers.delete(socket.connection);
    this.#announce({}, [socket.connection], socket);
  }

  #setPresence(socket, value) {
    const peer = this.peers.get(socket.connection);
    // A connection that was replaced may still have sent something.
    if (peer?.socket !== socket) return;
    peer.value = value;
    if (peer.is_due) return;
    peer.is_due = true;
    this.world.after(PRESENCE_MS, () => {
      peer.is_due = false;
      if (this.peers.get(socket.connection) !== peer) return;
      this.#announce({ [socket.connection]: { user: peer.user, value: peer.value } }, []);
    });
  }

  #announce(peers, left, except) {
    for (const { socket } of this.peers.values()) {
      if (socket !== except) this.say(socket, { type: 'presence', payload: { peers, left } });
    }
  }

  #cast(socket, value) {
    for (const other of this.sockets) {
      if (other === socket || !other.is_live) continue;
      this.say(other, { type: 'cast', payload: { from: socket.connection, user: socket.user, value } });
    }
  }
}
