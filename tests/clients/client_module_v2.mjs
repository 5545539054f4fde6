// The client module with a naive version 2 server, in a simulated world without a real clock: `node
// client_module_v2.mjs`. The last step plays many random stories; `SEED=17 node
// client_module_v2.mjs` plays only that one. The rules are those of src/wire/protocol.md.
import assert from 'node:assert/strict';

import { Replica } from '../../src/admin/client.mjs';
import { FOR_EVER_MS, join, runCases, runSeeds, settled, shownBy, synced } from './cases.mjs';
import { World } from './simulated.mjs';
import { NaiveServer2 } from './simulated_v2.mjs';

const SEEDS_COUNT = 600;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const START_US = 1_700_000_000_000_000;

const worldOf = (seed) => new World(seed, NaiveServer2);
const soon = (world, done, ms = 1000) => world.run(world.now_ms + ms, done);
const socketsOf = ({ server }) => [...server.sockets];
const socketOf = (world, room) => socketsOf(world).find(({ connection }) => connection === room.connection);
const reasons = ({ heard }) => heard.state.map(({ reason }) => reason).filter(Boolean);

async function restart(world, ...rooms) {
  world.server.kill();
  await soon(world, () => rooms.every(({ state }) => state === 'Disconnected'));
  world.server.start();
  await synced(world, ...rooms);
}

// A replica on its own, with a connection simulated by the test.
function replicaOf(...messages) {
  const replica = new Replica();
  replica.opened(2);
  const now = { us: START_US, is_server_time: true };
  const hear = (type, payload, more) => replica.receive({ type, payload, ...more }, now);
  for (const message of messages) hear(...message);
  replica.drain();
  return { replica, now, hear };
}

const welcome = (state, generation = 'a', connection = '1') => ['welcome', { state, generation, connection }];
const changesOf = (outputs) => outputs.filter(({ change }) => change).map(({ change }) => [change.key, change.value]);

// Bugs that other systems had in this feature.
const known_bugs = {
  // P130.
  async 'the position advances only after the data was applied'() {
    const { replica, hear } = replicaOf(welcome('full'), ['state', { entries: [['k', 1, 10]] }, { seq: 1 }]);
    assert.deepEqual(replica.position, { since: 1, generation: 'a' });
    // The second entry is malformed, so the position in the message must not count.
    assert.throws(() => hear('state', { entries: [['l', 2, 11], ['m', 3]] }, { seq: 3 }));
    assert.throws(() => hear('op', { key: 'k', timestamp: 12 }, { seq: 4 }));
    // Nor must the position in a message that this client does not understand.
    hear('from the future', {}, { seq: 5 });
    assert.deepEqual(replica.position, { since: 1, generation: 'a' });
  },

  // P130.
  async 'a message that cannot be applied: the state is sent again from the beginning'() {
    const world = worldOf(1);
    const room = join(world);
    await synced(world, room);
    room.set('k', 1);
    await settled(world, room);
    for (const text of ['{', '{"type":"op","payload":{"key":"k","timestamp":1},"seq":9}', '{"type":"state","payload":{"entries":[["x"]]},"seq":9}']) {
      socketsOf(world)[0].down.send({ text });
      assert(await soon(world, () => room.state === 'Disconnected'));
      assert.match(reasons(room).at(-1), /invalid message/);
      await synced(world, room);
      assert.equal(world.server.opened.at(-1).since, undefined);
    }
    assert.deepEqual(shownBy(room), { k: 1 });
  },

  // P104.
  async 'a resume with an expired token requests a new one, and resumes'() {
    const world = worldOf(2);
    const asked = [];
    const tokens = ['good', 'good', 'other'];
    const room = join(world, { token: (reason) => tokens[asked.push(reason) - 1] });
    await synced(world, room);
    room.set('k', 1);
    await settled(world, room);
    world.server.tokens.delete('good');
    await restart(world, room);
    assert.deepEqual(asked, [undefined, undefined, 'Unauthorized']);
    assert.equal(world.server.opened.at(-1).since, '1');
    assert.deepEqual(shownBy(room), { k: 1 });
  },

  // P104, P134.
  async 'an empty workspace is resumed: 0 is a valid position'() {
    const world = worldOf(3);
    const room = join(world);
    await synced(world, room);
    await restart(world, room);
    assert.deepEqual(world.server.opened.map(({ since }) => since), [undefined, '0']);
    assert.deepEqual(shownBy(room), {});
  },

  // P136, P141.
  async 'a position ahead of the server, in a copy of its data: the state of the server counts, with no loop'() {
    const world = worldOf(4);
    const room = join(world);
    await synced(world, room);
    room.set('old', 1);
    await settled(world, room);
    const copy = world.server.copy();
    room.set('old', 2);
    room.set('new', 1);
    room.delete('gone');
    await settled(world, room);
    world.server.restore(copy);
    await soon(world, () => room.state === 'Disconnected');
    // The older value replaces the newer one, whose history no longer exists.
    room.set('offline', 1);
    await settled(world, room);
    assert.deepEqual(shownBy(room), { old: 1, offline: 1 });
    assert.deepEqual(world.server.live(), { old: 1, offline: 1 });
    assert.equal(world.server.opened.length, 2);
  },

  // P136.
  async 'a state that starts over reports each difference exactly once'() {
    const world = worldOf(5);
    const room = join(world);
    await synced(world, room);
    for (const key of ['a', 'b', 'c', 'd']) room.set(key, 1);
    await settled(world, room);
    const copy = world.server.copy();
    room.set('b', 2);
    room.set('new', 2);
    room.delete('d');
    await settled(world, room);
    room.heard.change.length = 0;
    world.server.restore(copy);
    await soon(world, () => room.state === 'Disconnected');
    await synced(world, room);
    const changes = room.heard.change.map(({ key, value, source }) => [key, value, source]);
    assert.deepEqual(changes.sort(), [['b', 1, 'init'], ['d', 1, 'init'], ['new', undefined, 'init']]);
  },

  // P127, P141.
  async 'a client that predates the dropped tombstones keeps no ghosts, and brings none back'() {
    const world = worldOf(6);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    for (const key of ['deleted', 'edited', 'kept']) other.set(key, 1);
    await settled(world, room, other);
    // This client is away.
    const fetch = async () => { throw new Error('offline'); };
    const away = join(world, { host: {} });
    await synced(world, away);
    away.set('edited', 'while away, but before it was deleted');
    const is_up = world.server.answer;
    world.server.answer = fetch;
    world.server.drop(socketsOf(world).at(-1));
    await soon(world, () => away.state === 'Disconnected', 50);
    world.server.answer = is_up;
    for (const key of ['deleted', 'edited']) other.delete(key);
    await settled(world, other);
    world.server.dropTombstones();
    await settled(world, away, other, room);
    for (const one of [room, other, away]) assert.deepEqual(shownBy(one), { kept: 1 });
    assert.deepEqual(world.server.live(), { kept: 1 });
  },

  // P133.
  async 'a state that takes longer than the liveness timeout arrives'() {
    const world = worldOf(7);
    const writer = join(world);
    await synced(world, writer);
    for (let i = 0; i < 12; i += 1) writer.set(`k${i}`, i);
    await settled(world, writer);
    world.server.chunk_ms = 45_000;
    const room = join(world);
    await synced(world, room);
    assert.deepEqual([shownBy(room), room.states().length], [world.server.live(), 4]);
    assert(world.now_ms > 4 * 45_000);
  },

  // P139.
  async 'a connection that breaks inside a full state continues there, and drops keys that the state lacks'() {
    for (let seed = 8; seed < 40; seed += 1) {
      const world = worldOf(seed);
      const [room, writer] = [join(world), join(world)];
      await synced(world, room, writer);
      for (let i = 0; i < 9; i += 1) writer.set(`k${i}`, i);
      await settled(world, room, writer);
      const copy = world.server.copy();
      writer.set('ghost', 1);
      writer.set('k3', 'of another history');
      await settled(world, writer);
      await soon(world, () => room.get('k3') !== 3);
      world.server.chunk_ms = 100;
      world.server.restore(copy);
      await world.run(FOR_EVER_MS, () => room.state === 'Connected' && world.server.opened.length >= 3);
      await world.run(world.now_ms + world.random() * 600);
      for (const socket of socketsOf(world)) world.server.drop(socket);
      await synced(world, room, writer);
      for (const one of [room, writer]) assert.deepEqual(shownBy(one), world.server.live());
      assert.equal(room.get('ghost'), undefined);
    }
  },

  // P144.
  async 'a state that breaks off is not resumed in another history: it may lack what that one has instead'() {
    for (const joins_late of [true, false]) {
      for (let seed = 70; seed < 90; seed += 1) {
        const world = worldOf(seed);
        const { server } = world;
        const [writer, other] = [join(world), join(world)];
        await synced(world, writer, other);
        for (let i = 0; i < 9; i += 1) writer.set(`k${i}`, 'old');
        await settled(world, writer, other);
        await soon(world);
        const copy = server.copy();
        server.chunk_ms = 100;
        let room = other;
        // It is sent the state, or what it missed, without k0, which is written again and comes last.
        if (joins_late) room = join(world);
        else server.fallBehind(socketOf(world, other));
        writer.set('k0', 'lost');
        for (let i = 1; i < 9; i += 1) if (!joins_late) writer.set(`k${i}`, 'lost');
        await settled(world, writer);
        server.catchUp(socketOf(world, other));
        const { length } = server.opened;
        await soon(world, undefined, 250 * world.random());
        server.restore(copy);
        await soon(world, () => room.state === 'Disconnected');
        await synced(world, room, writer);
        assert.deepEqual(shownBy(room), server.live());
        assert(server.opened.length > length);
      }
    }
  },

  // P144.
  async 'only a position that is exact is resumed in another history'() {
    const part = ['state', { entries: [['l', 2, 20]] }, { seq: 5 }];
    const correction = ['op', { key: 'k', value: 2, timestamp: 20 }];
    for (const [messages, is_exact] of [
      [[], true],
      [[part], false],
      [[part, ['synced', {}, { seq: 5 }]], true],
      [[part, ['op', { key: 'k', value: 2, timestamp: 20 }, { seq: 6 }]], true],
      [[correction], false],
      [[correction, ['saved', { id: 1 }, { seq: 4 }]], true],
      [[['saved', { id: 1 }]], false],
      [[['saved', { id: 1 }], part], false],
      // These do not show the workspace.
      [[['presence', {}], ['error', { code: 413, message: 'too many peers' }]], true],
      [[part, ['presence', {}]], false],
    ]) {
      for (const generation of ['a', 'b']) {
        const { replica, now, hear } = replicaOf(welcome('full'), ['state', { entries: [['k', 1, 10]] }, { seq: 4 }], ['synced', {}, { seq: 4 }]);
        for (const message of messages) hear(...message);
        const { since } = replica.position;
        replica.closed();
        replica.write('m', '1', now);
        replica.opened(2);
        replica.drain();
        hear(...welcome('changes', generation, '2'));
        const outputs = replica.drain();
        const is_useless = generation === 'b' && !is_exact;
        const text = JSON.stringify([messages, generation]);
        assert.deepEqual(outputs.map((output) => output.close ?? 'send' in output), [is_useless ? 4000 : true], text);
        // What arrives before the connection has closed does not count.
        if (is_useless) hear(...part);
        assert.deepEqual(replica.position, is_useless ? undefined : { since, generation }, text);
        assert.equal(replica.pending_count, 1);
      }
    }
  },

  // P180.
  async 'a state in one large message may take a minute, during which nothing can be answered'() {
    const world = worldOf(8);
    const feed_ms = 70_000;
    const say = world.server.say.bind(world.server);
    // Messages sent after `welcome` wait for the large one.
    world.server.say = (socket, message) => (message.type === 'welcome' ? say(socket, message) : world.after(Math.max(0, feed_ms - world.now_ms), () => say(socket, message)));
    const room = join(world);
    await synced(world, room);
    assert(world.now_ms >= feed_ms);
    assert.equal(room.states().length, 4);
  },

  // P136.
  async 'a full state that breaks off before its first part leaves no position'() {
    const { replica, hear } = replicaOf(welcome('full'), ['state', { entries: [['k', 1, 10]] }, { seq: 4 }], ['synced', {}, { seq: 4 }]);
    replica.closed();
    replica.opened(2);
    hear(...welcome('full', 'b'));
    assert.equal(replica.position, undefined);
  },

  // P136, P150.
  async 'an own op that was saved while a full state arrives is part of it'() {
    for (const after of [[], ['other']]) {
      const { replica, now, hear } = replicaOf(welcome('full'), ['state', { entries: [['k', 'of an old history', START_US + 9e9]] }, { seq: 4 }], ['synced', {}, { seq: 4 }]);
      replica.closed();
      replica.opened(2);
      hear(...welcome('full', 'b'));
      replica.write('k', '"mine"', now);
      hear('saved', { id: 1 });
      for (const value of after) hear('state', { entries: [['l', value, 11]] }, { seq: 5 });
      hear('synced', {}, { seq: 5 });
      assert.equal(replica.get('k'), 'mine');
    }
  },

  // P155.
  async 'an op that hides one from an earlier connection is refused: the position, which may be past it, is forgotten'() {
    for (const is_written_before of [true, false]) {
      const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
      replica.write('k', '"taken, but not told"', now);
      if (is_written_before) replica.write('k', '"bad"', now);
      hear('op', { key: 'l', value: 1, timestamp: 10 }, { seq: 2 });
      replica.closed();
      if (!is_written_before) replica.write('k', '"bad"', now);
      replica.opened(2);
      hear(...welcome('changes'));
      replica.drain();
      hear('error', { code: 400, message: 'bad', key: 'k' }, { id: 1 });
      assert.equal(replica.position, undefined);
      assert(replica.drain().some(({ close }) => close === 4000));
    }
  },

  // P106, P166.
  async 'a peer that comes back is shown only once'() {
    for (const [token, replaces] of [['good', true], ['nobody', false]]) {
      const world = worldOf(9);
      const [room, other] = [join(world, { token, presence: true }), join(world, { token: 'other', presence: true })];
      await synced(world, room, other);
      room.setPresence({ name: 'A' });
      assert(await soon(world, () => other.peers.some(({ value }) => value?.name === 'A')));
      // The server does not notice that this connection is dead.
      const dead = socketOf(world, room);
      const { peers } = world.server;
      dead.up.cut();
      dead.down.cut();
      dead.down.send({ closes: { code: 1006, reason: '' } });
      await soon(world, () => room.state === 'Disconnected');
      await synced(world, room);
      await soon(world);
      assert.equal(world.server.opened.at(-1).replaces, dead.connection);
      assert.equal(peers.has(dead.connection), !replaces, 'replaced only for the same user');
      for (const one of replaces ? [room, other] : [room]) {
        assert.deepEqual(one.peers.map(({ value }) => value?.name).sort(), ['A', undefined]);
        assert.equal(one.peers.filter(({ is_self }) => is_self).length, 1);
      }
    }
  },

  // P165.
  async 'a late update does not bring back a peer that has left'() {
    const { replica, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    hear('presence', { all: true, peers: { 1: { user: 'ann', value: null }, 5: { user: 'ben', value: 1 } } });
    assert.deepEqual(replica.peers.map(({ connection }) => connection), ['1', '5']);
    hear('presence', { left: ['5'], peers: { 5: { user: 'ben', value: 2 } } });
    hear('presence', { peers: { 5: { user: 'ben', value: 3 } } });
    assert.deepEqual(replica.peers, [{ connection: '1', user: 'ann', value: null, is_self: true }]);
    // A list of all peers must not bring it back either, on the same connection.
    hear('presence', { all: true, peers: { 1: { user: 'ann', value: null }, 5: { user: 'ben', value: 3 } } });
    assert.equal(replica.peers.length, 1);
    // After a restart of the server the id may be that of another client.
    replica.closed();
    replica.opened(2);
    hear(...welcome('full', 'b', '7'));
    hear('presence', { all: true, peers: { 1: { user: 'eve', value: null }, 5: { user: 'ben', value: 3 }, 7: { user: 'ann', value: 0 } } });
    assert.deepEqual(replica.peers.map(({ user }) => user), ['eve', 'ben', 'ann']);
  },

  // P150, P155.
  async 'saved is correct after a reconnect: ids start over, and those of the old connection do not count'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    for (const key of ['a', 'b', 'c']) replica.write(key, '1', now);
    hear('saved', { id: 2 });
    assert.equal(replica.pending_count, 1);
    replica.closed();
    replica.write('a', '2', now);
    replica.opened(2);
    hear(...welcome('changes'));
    const sent = replica.drain().filter(({ send }) => send).map(({ send }) => JSON.parse(send));
    assert.deepEqual(sent.slice(-2).map(({ id, payload }) => [id, payload.key]), [[1, 'c'], [2, 'a']]);
    hear('saved', { id: 1 });
    assert.equal(replica.pending_count, 1);
    hear('saved', { id: 2 });
    assert.equal(replica.pending_count, 0);
  },

  // P119, P124.
  async 'only the server decides an expiry, whatever the clock of the client'() {
    for (const ahead_ms of [0, HOUR_MS, -HOUR_MS]) {
      const world = worldOf(10);
      const clock = { ahead_ms };
      const [room, other] = [join(world, { clock }), join(world)];
      await synced(world, room, other);
      room.set('k', 1, { ttl_ms: 60_000 });
      room.set('renewed', 1, { ttl_ms: 60_000 });
      await settled(world, room);
      room.set('renewed', 2);
      await soon(world, undefined, 59_000);
      clock.ahead_ms += 30 * 60_000;
      for (const one of [room, other]) assert.equal(one.get('k'), 1);
      await soon(world, undefined, 5000);
      for (const one of [room, other]) assert.deepEqual(shownBy(one), { renewed: 2 });
    }
  },
};

const cases = {
  // P103, P111.
  async 'no URL contains the token, and messages carry increasing ids'() {
    const world = worldOf(20);
    const room = join(world);
    await synced(world, room);
    room.set('k', 1);
    room.delete('l');
    await settled(world, room);
    assert.deepEqual([room.version, world.server.opened], [2, [{}]]);
    const ops = world.server.heard.map((text) => JSON.parse(text)).filter(({ type }) => type === 'op');
    assert.deepEqual(ops.map(({ id, payload }) => [id, payload.key, payload.value, payload.deleted]), [[1, 'k', 1, undefined], [2, 'l', undefined, true]]);
  },

  // P100, P102.
  async 'the client speaks version 1 to a version 1 server, unless the app requires version 2'() {
    for (const [version, state] of [[undefined, 'Synced'], [1, 'Synced'], [2, 'Disconnected']]) {
      const world = new World(21);
      const room = join(world, { version });
      await soon(world, () => room.state === state);
      assert.equal(room.state, state);
      if (version === undefined) assert.deepEqual(room.states(), ['Connecting', 'Authenticating', 'Connected', 'Synced']);
      if (state === 'Synced') assert.equal(room.version, 1);
    }
  },

  // P102.
  async 'a client library that follows the RFC accepts a 101 without a protocol: version 1'() {
    const world = new World(22);
    world.server.tokens.add(null);
    const room = join(world, { host: { WebSocket: class extends (world.host().WebSocket) {
      constructor(url, protocols) {
        super(url);
        this.offered = protocols;
      }
    } } });
    await synced(world, room);
    assert.equal(room.version, 1);
    room.set('k', 1);
    await settled(world, room);
    assert.equal(world.server.sockets.size, 1);
  },

  async 'a server that has spoken version 2 is never given the token in the URL'() {
    const world = worldOf(23);
    const room = join(world);
    await synced(world, room);
    world.server.open = (socket) => {
      assert.equal(socket.url.searchParams.get('token'), null);
      world.server.drop(socket);
    };
    world.server.drop(socketsOf(world)[0]);
    await soon(world, undefined, 60_000);
    assert.equal(room.state === 'Synced', false);
  },

  // P121.
  async 'on a version 1 server: no delete, no expiry; those made offline are refused, and the rest works'() {
    const world = new World(24);
    world.server.kill();
    const room = join(world);
    room.set('a', 1);
    room.delete('b');
    room.set('c', 1, { ttl_ms: 1000 });
    world.server.start();
    await settled(world, room);
    assert.deepEqual(room.heard.error.map(({ code, key }) => [code, key]), [[400, 'b'], [400, 'c']]);
    assert.deepEqual(shownBy(room), { a: 1 });
    assert.throws(() => room.delete('a'), /does not support deletes/);
    assert.throws(() => room.set('a', 1, { ttl_ms: 1 }), /does not support deletes/);
    assert.equal(room.cast(1), false);
  },

  // P115, P120, P122.
  async 'a delete reaches the others, beats older ops, and loses to newer ones'() {
    const world = worldOf(25);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    for (const key of ['a', 'b']) room.set(key, 1);
    await settled(world, room);
    await soon(world, () => other.entries().length === 2);
    other.delete('a');
    other.delete('never was');
    assert.equal(other.get('a'), undefined);
    await settled(world, room, other);
    await soon(world);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), { b: 1 });
    const { key, value, source } = room.heard.change.at(-1);
    assert.deepEqual([key, value, source], ['a', undefined, 'other']);
    room.set('a', 2);
    await settled(world, room);
    await soon(world);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), { a: 2, b: 1 });
  },

  // P120, P123.
  async 'edited offline and deleted in the meantime: the later op wins, and the loser is notified'() {
    const world = worldOf(26);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    for (const key of ['a', 'b']) room.set(key, 1);
    await settled(world, room);
    world.server.kill();
    await soon(world, () => [room, other].every(({ state }) => state === 'Disconnected'));
    room.set('a', 2);
    other.delete('b');
    await soon(world, undefined, 1000);
    other.delete('a');
    room.set('b', 2);
    world.server.start();
    await settled(world, room, other);
    await soon(world);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), { b: 2 });
    const lost = room.heard.change.find(({ over }) => over);
    assert.deepEqual([lost.key, lost.value, lost.over.value], ['a', undefined, 2]);
  },

  // P121.
  async 'null is a value, and a delete is not a write of null'() {
    const world = worldOf(27);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    room.set('k', null);
    await settled(world, room);
    await soon(world);
    assert.deepEqual(shownBy(other), { k: null });
    other.delete('k');
    await settled(world, room, other);
    await soon(world);
    assert.deepEqual(room.entries(), []);
  },

  // P137.
  async 'after a lost connection only changes are sent, including deletes'() {
    const world = worldOf(28);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    for (let i = 0; i < 20; i += 1) other.set(`k${i}`, i);
    await settled(world, room, other);
    await soon(world);
    const mine = socketOf(world, room);
    world.server.drop(mine);
    await soon(world, () => room.state === 'Disconnected');
    for (let i = 0; i < 3; i += 1) other.delete(`k${i}`);
    other.set('k5', 'changed');
    room.heard.change.length = 0;
    await settled(world, room, other);
    assert.deepEqual(shownBy(room), world.server.live());
    assert.equal(world.server.opened.at(-1).since, '20');
    const changed = room.heard.change.map(({ key, source }) => [key, source]).sort();
    assert.deepEqual(changed, ['k0', 'k1', 'k2', 'k5'].map((key) => [key, 'other']));
  },

  // P112, P113.
  async 'after a refused op the value of the server is shown again, without requesting the state'() {
    const world = worldOf(29);
    const room = join(world);
    await synced(world, room);
    room.set('k', 1);
    await settled(world, room);
    // The first op is in transit when the second is refused.
    room.set('k', 2);
    room.set('k', 'bad');
    room.set('new', 'bad');
    await soon(world, () => room.heard.error.length === 2);
    assert.deepEqual(shownBy(room), { k: 2 });
    await settled(world, room);
    assert.deepEqual([shownBy(room), world.server.live()], [{ k: 2 }, { k: 2 }]);
    assert.deepEqual(room.heard.error.map(({ code, key }) => [code, key]), [[400, 'k'], [400, 'new']]);
    assert.deepEqual(room.heard.change.at(-1).over.value, 'bad');
    assert.equal(world.server.opened.length, 1);
  },

  // P155.
  async 'a refused op that hides one from an earlier connection: the state is sent again'() {
    const world = worldOf(30);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    room.set('k', 'taken, but not told');
    await soon(world, () => world.server.batch.length === 1);
    const socket = socketOf(world, room);
    world.server.commit();
    other.set('l', 1);
    await soon(world, () => room.get('l') === 1);
    // Its position is after the op, whose `saved` was lost.
    room.set('k', 'bad');
    world.server.drop(socket);
    await settled(world, room, other);
    await soon(world);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), world.server.live());
  },

  // P113, P152.
  async 'too many (429) and failed (500) ops are sent again'() {
    const world = worldOf(31);
    world.server.ops_per_second = 10;
    const room = join(world);
    await synced(world, room);
    for (let i = 0; i < 60; i += 1) room.set(`k${i}`, i);
    let is_saved = false;
    room.saved().then(() => { is_saved = true; });
    await settled(world, room);
    await soon(world);
    assert.deepEqual([is_saved, shownBy(room)], [true, world.server.live()]);
    assert.equal(room.entries().length, 60);
    room.set('k', 1);
    const [socket] = socketsOf(world);
    await soon(world, () => world.server.batch.length === 1);
    const [{ id }] = world.server.batch.splice(0);
    for (const message of [{ type: 'error', id, payload: { code: 500, message: 'the disk', key: 'k' } }, { type: 'saved', payload: { id } }]) world.server.say(socket, message);
    await soon(world, undefined, 100);
    assert.deepEqual([room.pending, room.heard.error.at(-1).code], [1, 500]);
    await settled(world, room);
    assert.equal(world.server.live().k, 1);
  },

  // P134, P150.
  async 'the status: offline, syncing, saving, saved'() {
    const world = worldOf(32);
    const room = join(world);
    assert.equal(room.status, 'offline');
    room.set('k', 1);
    await settled(world, room);
    room.set('k', 2);
    await settled(world, room);
    world.server.kill();
    await soon(world, () => room.state === 'Disconnected');
    room.set('k', 3);
    world.server.start();
    await settled(world, room);
    room.close();
    const told = room.heard.status.map(({ status }) => status);
    assert.deepEqual(told.filter((status) => status !== 'saving'), ['syncing', 'saved', 'saved', 'offline', 'syncing', 'saved', 'offline']);
    assert(told.every((status, i) => status !== told[i - 1]), `${told}`);
    assert(told.includes('saving'));
  },

  // P150.
  async 'saved() waits for earlier writes, not for later ones'() {
    const world = worldOf(33);
    const room = join(world);
    const done = [];
    await room.saved().then(() => done.push('nothing'));
    room.set('a', 1);
    room.saved().then(() => done.push('a'));
    await synced(world, room);
    assert(await soon(world, () => done.length === 2));
    // If a key is written again and again, each write is waited for.
    for (let i = 0; i < 200; i += 1) {
      room.set('a', i);
      if (i === 5) room.saved().then(() => done.push(`a5 with ${world.server.live().a}`));
      await soon(world, undefined, 3);
    }
    assert.match(done[2] ?? '', /^a5 with (\d+)$/);
    await settled(world, room);
    // The same holds across a lost connection, after which only the newest is sent again.
    room.set('b', 1);
    let is_saved = false;
    room.saved().then(() => { is_saved = world.server.live().b; });
    await soon(world, undefined, 1);
    world.server.drop(socketsOf(world)[0]);
    room.set('b', 2);
    await settled(world, room);
    await soon(world);
    assert(is_saved, 'not saved');
  },

  async 'saved() fails if an edit is refused, and both calls fail if the room ends'() {
    const world = worldOf(34);
    const room = join(world);
    const ends = [];
    const watch = (name, promise) => promise.then(() => ends.push(name), ({ message }) => ends.push(`${name}: ${message}`));
    watch('synced', room.synced());
    await synced(world, room);
    watch('again', room.synced());
    room.set('k', 'bad');
    watch('bad', room.saved());
    await soon(world);
    room.set('l', 'bad');
    room.set('l', 'good');
    watch('good', room.saved());
    await settled(world, room);
    world.server.kill();
    await soon(world, () => room.state === 'Disconnected');
    room.set('k', 2);
    watch('lost', room.saved());
    watch('never', room.synced());
    room.close();
    await soon(world);
    assert.deepEqual(ends, ['synced', 'again', 'bad: payload is bad', 'good', 'lost: this room has ended', 'never: this room has ended']);
  },

  // P180.
  async 'a dead connection is noticed after 25 s of silence and 10 s without an answer'() {
    const world = worldOf(35);
    const room = join(world);
    await synced(world, room);
    await soon(world, undefined, 10 * 60_000);
    assert.equal(room.states().length, 4, 'a quiet connection is left alone');
    const since_ms = world.now_ms;
    const [socket] = socketsOf(world);
    for (const way of [socket.up, socket.down]) way.cut();
    world.server.peers.delete(socket.connection);
    world.server.receive = (from, message) => from !== socket && NaiveServer2.prototype.receive.call(world.server, from, message);
    assert(await world.run(FOR_EVER_MS, () => room.state === 'Disconnected'));
    const took_ms = world.now_ms - since_ms;
    assert(took_ms >= 10_000 && took_ms <= 60_000, `${took_ms}`);
    assert.equal(reasons(room).at(-1), 'the server is silent');
    await synced(world, room);
  },

  async 'the network is back, or the page is shown: a dead connection is detected within 10 s, a live one is kept'() {
    for (const type of ['online', 'visibilitychange', 'pageshow']) {
      const world = worldOf(36);
      const listeners = {};
      const page = { visibilityState: 'hidden' };
      const room = join(world, { host: { document: page, addEventListener: (name, run) => { listeners[name] = run; }, removeEventListener: (name) => { delete listeners[name]; } } });
      // As every page does when it loads.
      await soon(world, () => room.state === 'Connecting');
      page.visibilityState = 'visible';
      listeners.pageshow({ type: 'pageshow' });
      page.visibilityState = 'hidden';
      await synced(world, room);
      await soon(world);
      listeners[type]({ type });
      page.visibilityState = 'visible';
      listeners[type]({ type });
      await soon(world, undefined, 15_000);
      assert.equal(room.states().length, 4);
      const [socket] = socketsOf(world);
      world.server.receive = (from, message) => from !== socket && NaiveServer2.prototype.receive.call(world.server, from, message);
      listeners[type]({ type });
      const since_ms = world.now_ms;
      assert(await world.run(FOR_EVER_MS, () => room.state === 'Disconnected'));
      assert(world.now_ms - since_ms <= 10_001, `${world.now_ms - since_ms}`);
      await synced(world, room);
      // If it is waiting to retry, it retries immediately.
      world.server.kill();
      await soon(world, () => room.state === 'Disconnected');
      await soon(world, undefined, 120_000);
      world.server.start();
      listeners[type]({ type });
      const back_ms = world.now_ms;
      await synced(world, room);
      assert(world.now_ms - back_ms < 1000);
      room.close();
      assert.deepEqual(listeners, {});
    }
  },

  // P131, P180.
  async 'ops are stamped with the time of the server'() {
    for (const ahead_ms of [0, HOUR_MS, -HOUR_MS, 400 * DAY_MS, -5 * 365 * DAY_MS]) {
      const world = worldOf(37);
      const room = join(world, { clock: { ahead_ms } });
      // An op that was written before the first message from the server gets a new timestamp.
      room.set('early', 1);
      const early_us = world.server.now_us;
      await synced(world, room);
      await soon(world);
      const late_us = world.server.now_us;
      const stamp_us = room.set('late', 1);
      await settled(world, room);
      assert(Math.abs(stamp_us - late_us) <= 40_000, `${stamp_us - late_us}`);
      const { timestamp } = world.server.state.get('early');
      assert(Math.abs(timestamp - early_us) <= 200_000, `${timestamp - early_us}`);
      assert.deepEqual([room.heard.error, room.states().length], [[], 4]);
    }
  },

  async 'an edit beats one of the same key sent before a lost connection, even if the clock has gone back'() {
    const { replica, now } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    const sent_us = replica.write('k', '1', { ...now, us: now.us + 9e6 });
    replica.closed();
    assert(replica.write('k', '2', now) > sent_us);
  },

  // P180.
  async 'the fastest round trip counts; after the clock is set, it is measured again'() {
    const world = worldOf(38);
    const clock = { ahead_ms: 0 };
    const room = join(world, { clock });
    await synced(world, room);
    const took = [];
    for (let i = 0; i < 40; i += 1) {
      room.echo().then((took_ms) => took.push(took_ms));
      assert(await soon(world, () => took.length === i + 1));
    }
    const off_ms = () => Math.abs(room.set(`k${world.now_ms}`, 1) - world.server.now_us) / 1000;
    assert(off_ms() <= Math.min(...took) / 2 + 1, `${off_ms()} ms off, though one of ${took} was so fast`);
    for (const ahead_ms of [HOUR_MS, 0, -HOUR_MS]) {
      clock.ahead_ms = ahead_ms;
      // This client notices.
      room.set('k', 1);
      await soon(world, undefined, 100);
      await settled(world, room);
      assert(off_ms() <= 41, `${off_ms()} ms off after ${ahead_ms}`);
      await settled(world, room);
    }
    assert.deepEqual(room.heard.error, []);
  },

  async 'after a reconnect the clock is that of the new server'() {
    for (let seed = 46; seed < 66; seed += 1) {
      const world = worldOf(seed);
      const room = join(world);
      await synced(world, room);
      await soon(world);
      Object.defineProperty(world.server, 'now_us', { get: () => START_US + Math.floor(world.now_ms) * 1000 + 5e6 });
      await restart(world, room);
      await soon(world);
      const off_us = Math.abs(room.set('k', 1) - world.server.now_us);
      assert(off_us < 100_000, `${off_us}`);
    }
  },

  async 'a timestamp that was refused is forgotten'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    const right = replica.write('a', '1', now);
    hear('saved', { id: 1 });
    const wrong = replica.write('b', '1', { us: now.us + 2 * DAY_MS * 1000, is_server_time: false });
    hear('error', { code: 400, message: 'too far ahead', key: 'b' }, { id: 2 });
    hear('saved', { id: 2 });
    const next = ['a', 'b', 'c'].map((key) => replica.write(key, '2', now));
    assert(next.every((timestamp) => timestamp > right && timestamp < right + 10), `${next} after ${right}, ${wrong}`);
  },

  // P161 to P163.
  async 'presence: the connected peers, with the latest value of each'() {
    const world = worldOf(39);
    const [a, b] = [join(world, { presence: true }), join(world, { token: 'other', presence: true })];
    const silent = join(world);
    assert.throws(() => silent.setPresence(1), /presence: true/);
    a.setPresence({ x: 0 });
    await synced(world, a, b, silent);
    for (let x = 1; x <= 50; x += 1) {
      a.setPresence({ x });
      await soon(world, undefined, 2);
    }
    await soon(world);
    const seen = (room) => room.peers.map(({ user, value, is_self }) => [user, value, is_self]).sort();
    assert.deepEqual(seen(a), [['ann', { x: 50 }, true], ['ben', null, false]]);
    assert.deepEqual(seen(b), [['ann', { x: 50 }, false], ['ben', null, true]]);
    assert.deepEqual(silent.peers, []);
    const count = world.server.heard.filter((text) => text.includes('"presence"')).length;
    assert(count < 10, `${count} messages`);
    // It is kept across a reconnect, and removed with the room.
    await restart(world, a, b);
    await soon(world);
    assert.deepEqual(seen(b), [['ann', { x: 50 }, false], ['ben', null, true]]);
    a.close();
    await soon(world);
    assert.deepEqual(seen(b), [['ben', null, true]]);
    assert.deepEqual(b.heard.presence.at(-1).peers, b.peers);
    for (const value of [undefined, 'x'.repeat(4096)]) assert.throws(() => b.setPresence(value));
  },

  // P167.
  async 'a cast reaches the other clients, once'() {
    const world = worldOf(40);
    const [a, b, c] = [join(world), join(world), join(world, { token: 'nobody' })];
    assert.equal(a.cast(1), false);
    await synced(world, a, b, c);
    assert.equal(a.cast({ wave: true }), true);
    await soon(world);
    assert.deepEqual(a.heard.cast, []);
    for (const one of [b, c]) assert.deepEqual(one.heard.cast, [{ from: a.connection, user: 'ann', value: { wave: true } }]);
    for (const value of [undefined, 'x'.repeat(16_384)]) assert.throws(() => a.cast(value));
  },

  async 'a runtime without WebSocket, or one that forbids this socket: the room ends and states the reason'() {
    const forbidden = class { constructor() { throw new Error('SecurityError'); } };
    for (const [WebSocket, reason] of [[undefined, /WebSocket is not a constructor/], [forbidden, /SecurityError/]]) {
      const world = worldOf(47);
      const room = join(world, { host: { WebSocket } });
      await soon(world);
      assert.equal(room.state, 'Error');
      assert.match(reasons(room).at(-1), reason);
    }
  },

  // P183.
  async 'a client of a drained server (1012) reconnects to another one within a second'() {
    const seen = [];
    for (let seed = 0; seed < 20; seed += 1) {
      const world = worldOf(seed);
      const room = join(world);
      await synced(world, room);
      world.server.close(socketsOf(world)[0], 1012, 'draining');
      await soon(world, () => room.state === 'Disconnected');
      seen.push(room.heard.state.at(-1).retry_ms);
      await synced(world, room);
    }
    assert(seen.every((retry_ms) => retry_ms >= 0 && retry_ms <= 1000), `${seen}`);
    assert(Math.max(...seen) - Math.min(...seen) > 500, 'all at once');
  },

  // P183.
  async 'removed by an administrator (4003): the client does not reconnect, and keeps its state'() {
    const world = worldOf(41);
    const room = join(world, { workspace: 'removed' });
    room.set('k', 1);
    await settled(world, room);
    world.server.close(socketsOf(world)[0], 4003, 'removed');
    await soon(world, undefined, HOUR_MS);
    assert.deepEqual([room.state, shownBy(room), world.server.opened.length], ['Error', { k: 1 }, 1]);
  },

  // P183.
  async 'the workspace was deleted (4004): the copy is dropped, with all pending edits'() {
    const world = worldOf(42);
    const room = join(world, { workspace: 'deleted' });
    room.set('k', 1);
    await settled(world, room);
    const timestamp = room.set('pending', 1);
    const ends = [];
    room.saved().then(() => ends.push('saved'), ({ message }) => ends.push(message));
    world.server.close(socketsOf(world)[0], 4004, 'deleted');
    await soon(world, undefined, HOUR_MS);
    assert.deepEqual([room.state, shownBy(room), room.unsaved, world.server.opened.length], ['Error', {}, [], 1]);
    assert.deepEqual(room.heard.state.at(-1).unsaved, [{ key: 'pending', value: 1, timestamp }]);
    assert.deepEqual(ends, ['deleted']);
    assert.deepEqual(room.heard.change.slice(-2).map(({ key, value }) => [key, value]), [['k', undefined], ['pending', undefined]]);
    assert.deepEqual(join(world, { workspace: 'deleted' }).unsaved, []);
  },

  async 'a room without listeners that ends reports unsaved edits once, and never a value or a token'() {
    for (const [is_heeded, edits_count, lines_count] of [[false, 2, 1], [false, 0, 1], [true, 2, 0]]) {
      const world = worldOf(43);
      const said = [];
      const host = { ...world.host(), console: { error: (text) => said.push(text) } };
      const { connect } = await import('../../src/admin/client.mjs');
      const room = connect({ url: 'http://server', workspace: `silent ${edits_count}`, token: 'secret' }, host);
      if (is_heeded) room.on('state', () => {});
      for (let i = 0; i < edits_count; i += 1) room.set(`k${i}`, 'confidential');
      await soon(world, undefined, HOUR_MS);
      assert.deepEqual([room.state, said.length], ['Error', lines_count]);
      assert(said.every((text) => text.includes('Unauthorized') && !/secret|confidential/.test(text)), `${said}`);
      if (lines_count === 1 && edits_count === 2) assert.match(said[0], /not saved: "k0", "k1" \(2 keys\)/);
      room.discard();
    }
  },

  // P120.
  async 'a delete that a room could not save is offered to the next one, and restored'() {
    const world = worldOf(44);
    const workspace = 'unsaved delete';
    const room = join(world, { workspace });
    for (const key of ['k', 'gone anyway']) room.set(key, 1);
    await settled(world, room);
    world.server.kill();
    await soon(world, () => room.state === 'Disconnected');
    const timestamp = room.delete('k');
    room.delete('gone anyway');
    room.close();
    assert.deepEqual(room.unsaved[0], { key: 'k', value: undefined, timestamp, deleted: true });
    world.server.start();
    const other = join(world);
    await synced(world, other);
    other.delete('gone anyway');
    await settled(world, other);
    const next = join(world, { workspace });
    await synced(world, next);
    assert.deepEqual(next.unsaved.map(({ key }) => key), ['k']);
    next.restore();
    await settled(world, next);
    assert.deepEqual(world.server.live(), {});
  },

  // P156.
  async 'an op that has lost does not come back, though the client has forgotten the winner when it is saved'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    replica.write('k', '1', now);
    hear('op', { key: 'k', deleted: true, timestamp: START_US + 1 }, { id: 1 });
    for (let i = 0; i < 10_000; i += 1) hear('op', { key: `k${i}`, deleted: true, timestamp: START_US }, { seq: i + 1 });
    hear('saved', { id: 1 }, { seq: 10_000 });
    assert.deepEqual([replica.entries(), replica.pending_count], [[], 0]);
  },

  // P156.
  async 'an op that has lost is taken back even if its timestamp is the greater one'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    replica.write('k', '1', now);
    replica.write('k', '2', now);
    // The first one, on which nothing hangs any more.
    hear('op', { key: 'k', value: 'winner', timestamp: 10 }, { id: 1 });
    assert.equal(replica.get('k'), 2);
    hear('op', { key: 'k', value: 'winner', timestamp: 10 }, { id: 2 });
    assert.deepEqual([replica.get('k'), replica.pending_count, replica.oldest_unsettled], ['winner', 0, Infinity]);
  },

  // P135.
  async 'the number of tombstones that the client keeps is bounded'() {
    const { replica, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    // A key that is written again is no longer one of them.
    hear('op', { key: 'back', deleted: true, timestamp: 1 }, { seq: 1 });
    hear('op', { key: 'back', value: 1, timestamp: 2 }, { seq: 2 });
    for (let i = 0; i < 30_000; i += 1) {
      hear('op', { key: `k${i}`, value: 1, timestamp: 2 * i }, { seq: 2 * i });
      hear('op', { key: `k${i}`, deleted: true, timestamp: 2 * i + 1 }, { seq: 2 * i + 1 });
      replica.drain();
    }
    assert.deepEqual(replica.entries(), [['back', 1]]);
    // The oldest are forgotten, but not the newest.
    hear('op', { key: 'k0', value: 'old', timestamp: 0 });
    assert.equal(replica.get('k0'), 'old');
    replica.drain();
    hear('op', { key: 'k29999', value: 'old', timestamp: 59_998 });
    assert.equal(replica.get('k29999'), undefined);
    assert.deepEqual(changesOf(replica.drain()), []);
  },

  // P180.
  async 'an unsolicited pong, or one without a time, changes nothing'() {
    const world = worldOf(48);
    const room = join(world);
    await synced(world, room);
    for (const payload of [{}, undefined, { time: 'noon' }, { time: 1 }]) world.server.say(socketsOf(world)[0], { type: 'pong', payload });
    await soon(world);
    assert(Math.abs(room.set('k', 1) - world.server.now_us) < 100_000);
    assert.equal(room.states().length, 4);
  },

  // P131.
  async 'an op longer than the server accepts is refused by the client, and the connection stays open'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    replica.write('k', '1', now);
    replica.closed();
    replica.write('offline', JSON.stringify('x'.repeat(100)), now);
    replica.write('ü', JSON.stringify('ü'.repeat(20)), now);
    replica.opened(2);
    replica.drain();
    hear('welcome', { ...welcome('changes')[1], limits: { message_bytes: 130 } });
    replica.write('now', JSON.stringify('ü'.repeat(40)), now);
    const outputs = replica.drain();
    const sent = outputs.filter(({ send }) => send).map(({ send }) => JSON.parse(send));
    assert.deepEqual(sent.map(({ id, payload }) => [id, payload.key]), [[1, 'k'], [2, 'ü']]);
    assert.deepEqual(outputs.filter(({ error }) => error).map(({ error }) => [error.code, error.key]), [[413, 'offline'], [413, 'now']]);
    assert.deepEqual(changesOf(outputs).at(-1), ['now', undefined]);
    assert.deepEqual([replica.pending_count, replica.entries().map(([key]) => key)], [2, ['k', 'ü']]);
  },

  // P113.
  async 'an error that concerns no op is reported, and undoes nothing'() {
    const world = worldOf(49);
    const room = join(world, { presence: true });
    await synced(world, room);
    world.server.say(socketsOf(world)[0], { type: 'error', payload: { code: 413, message: 'too many peers' } });
    room.set('k', 1);
    await settled(world, room);
    assert.deepEqual([room.heard.error, shownBy(room)], [[{ code: 413, message: 'too many peers' }], { k: 1 }]);
  },

  // P155.
  async 'edits made during and after a silent connection are sent on the next one'() {
    const world = worldOf(50);
    const room = join(world);
    await synced(world, room);
    await soon(world);
    const [socket] = socketsOf(world);
    world.server.receive = (from, message) => from !== socket && NaiveServer2.prototype.receive.call(world.server, from, message);
    room.set('a', 1);
    room.set('b', 1);
    assert(await world.run(FOR_EVER_MS, () => room.state === 'Disconnected'));
    assert.equal(reasons(room).at(-1), 'the server is silent');
    room.set('b', 2);
    room.set('c', 2);
    await settled(world, room);
    assert.deepEqual(world.server.live(), { a: 1, b: 2, c: 2 });
  },

  async 'after a refusal, edits still supersede pending ones'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    const ahead = { ...now, us: now.us + 5e5 };
    const pending_us = replica.write('a', '1', ahead);
    replica.write('b', '"bad"', ahead);
    hear('error', { code: 400, message: 'bad', key: 'b' }, { id: 2 });
    assert(replica.write('c', '1', now) > pending_us);
  },

  // P136, P138.
  async 'synced again after ghosts were dropped'() {
    const { replica, hear } = replicaOf(welcome('full'), ['state', { entries: [['ghost', 1, 10]] }, { seq: 1 }], ['synced', {}, { seq: 1 }]);
    replica.closed();
    replica.opened(2);
    hear(...welcome('full', 'b'));
    hear('synced', {}, { seq: 0 });
    hear('synced', {}, { seq: 0 });
    assert.deepEqual([replica.entries(), replica.position], [[], { since: 0, generation: 'b' }]);
  },

  async 'a server that now speaks version 1: no position, no peers, and the state is that of its init'() {
    const { replica, now } = replicaOf(welcome('full'), ['state', { entries: [['k', 1, 10], ['l', 1, 11]] }, { seq: 2 }], ['synced', {}, { seq: 2 }],
      ['presence', { all: true, peers: { 1: { user: 'ann', value: null } } }]);
    replica.closed();
    replica.opened(1);
    replica.receive({ type: 'init', data: { k: 2 } }, now);
    assert.deepEqual([replica.entries(), replica.position, replica.peers], [[['k', 2]], undefined, []]);
    assert.deepEqual(changesOf(replica.drain()), [['l', undefined], ['k', 2]]);
  },

  // P50, P114.
  async 'types and members that are not known are ignored, and members come in any order'() {
    const { replica, now, hear } = replicaOf(welcome('full'), ['synced', {}, { seq: 0 }]);
    for (const type of ['from the future', 'init', 'constructor', '__proto__', undefined]) {
      hear(type, { key: 'k', value: 'wrong', timestamp: 99, data: {} }, { seq: 9 });
    }
    replica.receive({ seq: 1, payload: { more: 1, timestamp: 10, value: 1, key: 'k' }, more: {}, type: 'op' }, now);
    replica.receive({ payload: { deleted: [['k', 11, 'more']], entries: [['l', 2, 12, 'more']], more: [] }, seq: 3, type: 'state' }, now);
    assert.deepEqual([replica.entries(), replica.position], [[['l', 2]], { since: 3, generation: 'a' }]);
    const old = new Replica();
    old.opened(1);
    old.receive({ more: 1, data: { k: 1 }, type: 'init' }, now);
    for (const type of ['from the future', 'welcome', undefined]) old.receive({ type, payload: {} }, now);
    old.receive({ payload: { more: 1, timestamp: 10, value: 2, key: 'k' }, type: 'op', seq: 1 }, now);
    assert.deepEqual(old.entries(), [['k', 2]]);
  },

  // P119.
  async 'an impossible ttl_ms or key is not set'() {
    const room = join(worldOf(45));
    for (const ttl_ms of [0, -1, 1.5, '1000', Infinity, 11 * 365 * DAY_MS]) assert.throws(() => room.set('k', 1, { ttl_ms }), RangeError);
    for (const key of ['', 7, 'ü'.repeat(513)]) assert.throws(() => room.delete(key), TypeError);
  },
};

// The faults that may occur at any time.
const troubles = [
  ({ server }) => { server.kill(); },
  ({ server }) => { server.start(); },
  ({ server }) => { server.start(); },
  ({ server }) => { server.dropTombstones(); },
  (world) => { each(world, (socket) => world.server.drop(socket)); },
  (world) => { each(world, (socket) => world.server.close(socket, 1011, 'the log has failed')); },
  (world) => { each(world, (socket) => world.server.close(socket, 1012, 'draining')); },
  (world) => { each(world, (socket) => world.server.close(socket, 4001, 'token expired')); },
  (world) => { each(world, (socket) => world.server.fallBehind(socket)); },
  (world) => { each(world, (socket) => world.server.catchUp(socket)); },
];

function each(world, act) {
  for (const socket of socketsOf(world)) if (world.random() < 0.5) act(socket);
}

// A room, with a copy that is built only from its `change` events.
function joinWithMirror(world, clock, seed) {
  const user = world.pick(['good', 'other', 'nobody']);
  const room = join(world, { version: 2, clock, token: () => user, presence: world.random() < 0.7, workspace: `story v2 ${seed}` });
  const mirror = new Map();
  const twice = [];
  room.on('change', ({ key, value, timestamp, over, source }) => {
    const before = mirror.get(key);
    const text = value === undefined ? undefined : JSON.stringify(value);
    const is_news = before?.text !== text || before?.timestamp !== timestamp;
    if (!is_news && !over && source !== 'self') twice.push(`${key} = ${text}`);
    mirror.set(key, { text, timestamp });
  });
  const mirrored = () => {
    const live = [...mirror].filter(([, { text }]) => text !== undefined);
    return Object.fromEntries(live.map(([key, { text }]) => [key, JSON.parse(text)]));
  };
  return Object.assign(room, { mirrored, twice });
}

const KEYS = ['a', 'b', 'c', 'd', 'refused'];

// Clients with wrong clocks write and delete a few keys while many faults occur. In the end, all of
// them hold the server's state, which for each key is the greatest op that any client wrote. In
// some stories, the server has limits; in others, it continues from older copies of its data, and
// rooms end and are reopened.
async function story(seed) {
  const world = worldOf(seed);
  const { server } = world;
  const may_restore = seed % 4 === 3;
  if (seed % 4 === 1) server.ops_per_second = world.pick([1, 5, 20]);
  if (seed % 4 === 2) server.bytes_max = 20;
  server.chunk_ms = world.pick([1, 20, 200]);
  const clocks = [0, 1, 2].map(() => ({ ahead_ms: world.pick([0, 0, -HOUR_MS, HOUR_MS]) }));
  const rooms = clocks.map((clock) => joinWithMirror(world, clock, seed));
  const written = new Map(KEYS.map((key) => [key, [0, 0, 0]]));
  const is_kept = (key, timestamp) => Math.max(server.state.get(key)?.timestamp ?? 0, server.floor) >= timestamp;
  const early = [];
  let copy = server.copy();
  for (let i = 0; i < 120; i += 1) {
    await world.run(world.now_ms + 30 * world.random() ** 2);
    const at = Math.floor(world.random() * rooms.length);
    const [room, dice] = [rooms[at], world.random()];
    if (dice < 0.65) {
      const key = world.pick(KEYS);
      const is_safe = key !== 'refused' && server.bytes_max === Infinity && !may_restore;
      const value = key === 'refused' && world.random() < 0.3 ? 'bad' : world.pick([0, 1, null, 'x', 'longer']);
      const ttl_ms = key === 'd' && world.random() < 0.5 ? 200 : undefined;
      const timestamp = world.random() < 0.3 ? room.delete(key) : room.set(key, value, { ttl_ms });
      // An op that was written before the clock was known gets a new timestamp.
      if (!is_safe || room.connection === undefined) continue;
      written.get(key)[at] = timestamp;
      room.saved().then(() => is_kept(key, timestamp) || early.push(`${key} of ${timestamp} at ${server.now_us} ${JSON.stringify(server.state.get(key))} floor ${server.floor}`), () => {});
    } else if (dice < 0.75) {
      if (room.peers.length > 0) room.setPresence({ i });
      room.echo();
    } else if (dice < 0.8) {
      // After a large clock step, an op may be older than the unsent op that it replaces.
      clocks[at].ahead_ms += world.pick(may_restore ? [-60_000, 60_000] : [-400, -5, 5, 400]);
    } else if (may_restore && dice < 0.84) {
      room.close();
      rooms[at] = joinWithMirror(world, clocks[at], seed);
      rooms[at].restore();
    } else if (may_restore && dice < 0.88) {
      if (world.random() < 0.5) copy = server.copy();
      else server.restore(copy);
    } else if (dice < 0.95) {
      world.pick(troubles)(world);
    } else {
      await world.run(world.now_ms + 1000 * world.random());
    }
  }
  server.start();
  for (const socket of socketsOf(world)) server.catchUp(socket);
  // A failing connection may still look healthy.
  await world.run(world.now_ms + 1000);
  await settled(world, ...rooms);
  await world.run(world.now_ms + 5000);
  await settled(world, ...rooms);
  await world.run(world.now_ms + 1000);
  for (const room of rooms) {
    assert.deepEqual(shownBy(room), server.live());
    assert.deepEqual(room.mirrored(), shownBy(room), 'its changes lead elsewhere');
    assert.deepEqual(room.twice, [], 'told twice');
    assert.equal(room.status, 'saved');
    if (room.peers.length > 0) assert.deepEqual(room.peers.map(({ connection }) => connection).sort(), [...server.peers.keys()].sort());
  }
  assert.deepEqual(early, [], 'saved too early');
  for (const [key, timestamps] of written) {
    // Expired or dropped keys have a greater one.
    assert(is_kept(key, Math.max(...timestamps)), `an edit of ${key} is lost: ${timestamps}`);
  }
}

cases['random stories of three clients in trouble'] = () => runSeeds(SEEDS_COUNT, story);

await runCases('client module v2', { ...known_bugs, ...cases });
