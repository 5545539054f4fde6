// A world without a clock for the client module: a naive server, sockets that delay and break,
// timers and randomness, all driven by one seed.

const LATENCY_MS = 40;

function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class World {
  constructor(seed, Server = NaiveServer) {
    this.random = randomOf(seed);
    this.now_ms = 0;
    this.events = [];
    this.server = new Server(this);
  }

  pick(choices) {
    return choices[Math.floor(this.random() * choices.length)];
  }

  after(delay_ms, run) {
    const event = { at_ms: this.now_ms + delay_ms, run };
    const later = this.events.findIndex(({ at_ms }) => at_ms > event.at_ms);
    this.events.splice(later < 0 ? this.events.length : later, 0, event);
    return event;
  }

  cancel(event) {
    const at = this.events.indexOf(event);
    if (at >= 0) this.events.splice(at, 1);
  }

  // Runs events that are due until `until_ms`, or until `done()`; returns false if nothing is left
  // to run.
  async run(until_ms, done = () => false) {
    // Continuations of the client's promises must run before the next event.
    await new Promise(setImmediate);
    while (!done()) {
      if (this.events.length === 0 || this.events[0].at_ms > until_ms) {
        this.now_ms = Math.max(this.now_ms, Number.isFinite(until_ms) ? until_ms : 0);
        return done();
      }
      const { at_ms, run } = this.events.shift();
      this.now_ms = at_ms;
      run();
      await new Promise(setImmediate);
    }
    return true;
  }

  // The environment that `connect` uses. `clock.ahead_ms` may be changed at any time, even
  // backwards.
  host(clock = { ahead_ms: 0 }) {
    const world = this;
    return {
      WebSocket: class extends Socket {
        constructor(url, protocols) {
          super(world, url, protocols);
        }
      },
      fetch: async (url, { headers }) => {
        await new Promise((resolve) => world.after(LATENCY_MS * world.random(), resolve));
        return world.server.answer(url, headers);
      },
      setTimeout: (run, delay_ms) => world.after(delay_ms, run),
      clearTimeout: (event) => world.cancel(event),
      Date: { now: () => 1_700_000_000_000 + Math.floor(world.now_ms) + clock.ahead_ms },
      performance: { now: () => world.now_ms },
      Math: { random: world.random },
    };
  }
}

// One direction of a connection: messages arrive in order, each with its own delay.
class Way {
  constructor(world, deliver) {
    Object.assign(this, { world, deliver, last_ms: 0, in_flight: new Set() });
  }

  send(message) {
    this.last_ms = Math.max(this.last_ms, this.world.now_ms + LATENCY_MS * this.world.random());
    const event = this.world.after(this.last_ms - this.world.now_ms, () => {
      this.in_flight.delete(event);
      this.deliver(message);
    });
    this.in_flight.add(event);
  }

  cut() {
    for (const event of this.in_flight) this.world.cancel(event);
    this.in_flight.clear();
  }
}

class Socket {
  constructor(world, url, protocols = []) {
    this.readyState = 0;
    this.protocol = '';
    this.protocols = protocols;
    this.world = world;
    this.url = new URL(url);
    this.up = new Way(world, (message) => world.server.receive(this, message));
    this.down = new Way(world, (event) => this.#happens(event));
    this.up.send({ opens: true });
  }

  send(text) {
    if (this.readyState === 0) throw new Error('a send before the socket is open');
    // As a browser does with a socket that is closing or closed.
    if (this.readyState === 1) this.up.send({ text });
  }

  close(code) {
    if (this.readyState >= 2) return;
    // A browser would show its URL, with the token, in the console.
    if (this.readyState === 0) throw new Error('closed while it opens');
    this.readyState = 2;
    this.up.send({ closes: code });
  }

  #happens({ opens, protocol = '', text, closes }) {
    // A browser fails a connection whose server has accepted none of the protocols that it offered.
    if (opens && this.readyState === 0 && this.protocols.length > 0 && protocol === '') {
      this.up.cut();
      this.world.server.drop(this);
    } else if (opens && this.readyState === 0) {
      this.readyState = 1;
      this.protocol = protocol;
      this.onopen?.({});
    } else if (text !== undefined && this.readyState === 1) {
      this.onmessage?.({ data: text });
    } else if (closes) {
      this.readyState = 3;
      this.onclose?.(closes);
    }
  }
}

// The protocol in its simplest form: one map and one list of sockets.
export class NaiveServer {
  constructor(world) {
    this.world = world;
    this.is_up = true;
    this.tokens = new Set(['good']);
    this.state = new Map();
    this.sockets = new Set();
    this.heard = [];
    // Limits such as a server may have.
    this.ops_per_second = Infinity;
    this.bytes_max = Infinity;
  }

  answer(url, headers) {
    if (!this.is_up) throw new TypeError('connection refused');
    return { status: this.tokens.has(headers.Authorization.slice('Bearer '.length)) ? 200 : 401 };
  }

  receive(socket, { opens, text, closes }) {
    if (opens) return this.open(socket);
    if (!this.sockets.has(socket)) return;
    if (closes) return this.close(socket, closes, '');
    this.heard.push(text);
    this.apply(socket, text);
  }

  open(socket) {
    if (!this.is_up || !this.tokens.has(socket.url.searchParams.get('token'))) return this.drop(socket);
    this.sockets.add(socket);
    socket.down.send({ opens: true });
    const entries = [...this.state].map(([key, { text }]) => `${JSON.stringify(key)}:${text}`);
    socket.down.send({ text: `{"type":"init","data":{${entries}}}` });
  }

  apply(socket, text) {
    const { key, value, timestamp } = JSON.parse(text).payload;
    const refuse = (code, message) => socket.down.send({ text: JSON.stringify({ type: 'error', payload: { code, message, key, timestamp } }) });
    if (!this.takes(socket, 'sent', this.ops_per_second, 2 * this.ops_per_second)) {
      if (this.takes(socket, 'refused', this.ops_per_second / 10, Math.max(256, 10 * this.ops_per_second))) return refuse(429, 'not so fast');
      return this.close(socket, 1008, 'too many messages');
    }
    const ahead_ms = timestamp / 1000 - 1_700_000_000_000 - this.world.now_ms;
    if (value === 'bad' || ahead_ms > 24 * 3600 * 1000) {
      return socket.down.send({ text: '{"type":"error","payload":{"code":400,"message":"payload.value is bad"}}' });
    }
    const op = { text: JSON.stringify(value), timestamp };
    const held = this.state.get(key);
    if (held && held.timestamp >= timestamp) {
      if (held.timestamp > timestamp || held.text !== op.text) this.tell(socket, key);
      return;
    }
    if (this.bytes() + op.text.length - (held?.text.length ?? -key.length) > this.bytes_max && op.text.length > (held?.text.length ?? 0)) {
      if (held) this.tell(socket, key);
      return refuse(413, 'no room for this');
    }
    this.state.set(key, op);
    for (const other of this.sockets) {
      if (other === socket) continue;
      if (other.missed) other.missed.delete(key), other.missed.add(key);
      else this.tell(other, key);
    }
  }

  // A leaky bucket with this rate per second and this capacity.
  takes(socket, name, per_second, most) {
    const { level, at_ms } = socket[name] ?? { level: 0, at_ms: this.world.now_ms };
    const left = Math.max(0, level - ((this.world.now_ms - at_ms) / 1000) * per_second) || 0;
    const takes = left + 1 <= most;
    socket[name] = { level: left + (takes ? 1 : 0), at_ms: this.world.now_ms };
    return takes;
  }

  bytes() {
    return [...this.state].reduce((sum, [key, { text }]) => sum + key.length + text.length, 0);
  }

  tell(socket, key) {
    const { text, timestamp } = this.state.get(key);
    socket.down.send({ text: `{"type":"op","payload":{"key":${JSON.stringify(key)},"value":${text},"timestamp":${timestamp}}}` });
  }

  // A slow client is sent the latest op of each key that has changed since.
  fallBehind(socket) {
    socket.missed ??= new Set();
  }

  catchUp(socket) {
    const { missed } = socket;
    socket.missed = undefined;
    for (const key of missed ?? []) this.tell(socket, key);
  }

  close(socket, code, reason) {
    this.sockets.delete(socket);
    socket.up.cut();
    socket.down.send({ closes: { code, reason, wasClean: true } });
  }

  // The connection breaks: each side may lose messages in transit.
  drop(socket) {
    this.sockets.delete(socket);
    socket.up.cut();
    if (this.world.random() < 0.5) socket.down.cut();
    socket.down.send({ closes: { code: 1006, reason: '', wasClean: false } });
  }

  kill() {
    this.is_up = false;
    for (const socket of this.sockets) this.drop(socket);
  }

  start() {
    this.is_up = true;
  }
}
