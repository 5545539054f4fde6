// The client module with a naive server, in a simulated world without a real clock: `node
// client_module.mjs`. The last step plays many random stories; `SEED=17 node client_module.mjs`
// plays only that one.
import assert from 'node:assert/strict';

import { connect } from '../../src/admin/client.mjs';
import { FOR_EVER_MS, join, runCases, runSeeds, settled, shownBy, synced } from './cases.mjs';
import { World } from './simulated.mjs';

const SEEDS_COUNT = 400;
const DAY_MS = 24 * 3600 * 1000;

const stateOf = (server) => Object.fromEntries([...server.state].map(([key, { text }]) => [key, JSON.parse(text)]));
const world_us = ({ now_ms }) => (1_700_000_000_000 + Math.floor(now_ms)) * 1000;
const opsOf = (server) => server.heard.map((text) => JSON.parse(text).payload);

const cases = {
  async 'the address of the server, the workspace and the token'() {
    for (const [options, http, ws, token] of [
      [{ url: 'ws://h:8080/v1/sync/demo?token=a.b', version: 1 }, 'http://h:8080/v1/presence/demo', 'ws://h:8080/v1/sync/demo?token=a.b'],
      ['ws://h:8080/v1/sync/demo?token=a.b', 'http://h:8080/v1/presence/demo', 'ws://h:8080/v1/sync/demo', 'a.b'],
      ['ws://h:8080/v1/sync/demo?userId=a%20b&token=a.b', 'http://h:8080/v1/presence/demo', 'ws://h:8080/v1/sync/demo?userId=a+b', 'a.b'],
      [{ url: 'wss://h/v1/sync/a%2Fb?token=t', version: 1 }, 'https://h/v1/presence/a%2Fb', 'wss://h/v1/sync/a%2Fb?token=t'],
      [{ url: 'http://h', workspace: 'ü/?', token: 't' }, 'http://h/v1/presence/%C3%BC%2F%3F', 'ws://h/v1/sync/%C3%BC%2F%3F', 't'],
      [{ url: 'https://h/base/', workspace: 'w', token: 't&x', version: 1 }, 'https://h/base/v1/presence/w', 'wss://h/base/v1/sync/w?token=t%26x'],
      [{ url: 'http://h/client.mjs', workspace: 'w', token: () => 't' }, 'http://h/v1/presence/w', 'ws://h/v1/sync/w', 't'],
      // No browser accepts this token as a subprotocol.
      [{ url: 'http://h', workspace: 'w', token: 'a=' }, 'http://h/v1/presence/w', 'ws://h/v1/sync/w?token=a%3D'],
    ]) {
      const world = new World(1);
      const host = world.host();
      const asked = [];
      host.fetch = async (url) => asked.push(url) && { status: 200 };
      host.WebSocket = class { constructor(url, protocols) { asked.push(url, protocols); } };
      connect(options, host);
      await world.run(1);
      assert.deepEqual(asked, [http, ws, token && ['etherply.v2', `bearer.${token}`]]);
    }
    assert.throws(() => connect({ url: 'http://h', token: 't' }), /workspace/);
  },

  async 'the states match the specification'() {
    const world = new World(2);
    const room = join(world);
    assert.equal(room.state, 'Disconnected');
    await synced(world, room);
    assert.deepEqual(room.states(), ['Connecting', 'Authenticating', 'Connected', 'Synced']);
    world.server.kill();
    await world.run(FOR_EVER_MS, () => room.state === 'Disconnected');
    assert.match(room.heard.state.at(-1).reason, /1006/);
    room.close();
    await world.run(FOR_EVER_MS);
    assert.equal(room.state, 'Disconnected');
  },

  async 'a set takes effect immediately and reaches the other clients'() {
    const world = new World(3);
    const [a, b] = [join(world), join(world)];
    a.set('early', [1, { deep: null }]);
    assert.deepEqual(a.get('early'), [1, { deep: null }]);
    await synced(world, a, b);
    await settled(world, a);
    a.set('late', 'x');
    await settled(world, a);
    for (const room of [a, b]) assert.deepEqual(shownBy(room), { early: [1, { deep: null }], late: 'x' });
    assert.deepEqual(a.heard.change.map(({ source }) => source), ['self', 'self']);
    assert.equal(b.heard.change.at(-1).source, 'other');
  },

  async 'after being offline, the newest op of each key is sent, in order'() {
    const world = new World(4);
    world.server.kill();
    const room = join(world);
    for (const [key, value] of [['a', 1], ['b', 1], ['a', 2], ['c', 1], ['b', 2]]) room.set(key, value);
    assert.equal(room.pending, 3);
    world.server.start();
    await synced(world, room);
    await settled(world, room);
    const [sent, echo] = [opsOf(world.server).slice(0, 3), opsOf(world.server).slice(3)];
    assert.deepEqual(sent.map(({ key, value }) => [key, value]), [['a', 2], ['c', 1], ['b', 2]]);
    // The echo that asks whether they were accepted.
    assert.deepEqual(echo, [{ ...sent[2], timestamp: sent[2].timestamp - 1 }]);
  },

  async 'timestamps increase even if the clock stops or goes backward, and exceed those seen for the key'() {
    const world = new World(5);
    const clock = { ahead_ms: 0 };
    const [room, ahead] = [join(world, { clock }), join(world, { clock: { ahead_ms: 3_600_000 } })];
    await synced(world, room, ahead);
    const stamps = [room.set('k', 1), room.set('k', 2), room.set('l', 3)];
    clock.ahead_ms = -1_000_000;
    stamps.push(room.set('k', 4));
    const theirs = ahead.set('m', 'ahead');
    await world.run(FOR_EVER_MS, () => room.get('m') === 'ahead');
    stamps.push(room.set('m', 'mine'));
    assert(stamps.every((stamp, i) => Number.isSafeInteger(stamp) && (i === 0 || stamp > stamps[i - 1])), `${stamps}`);
    assert(stamps.at(-1) > theirs);
    await settled(world, room);
    assert.deepEqual(stateOf(world.server), { k: 4, l: 3, m: 'mine' });
  },

  async 'older ops from the server are ignored; equal and newer ones are applied'() {
    const world = new World(6);
    const room = join(world);
    await synced(world, room);
    const [socket] = world.server.sockets;
    const tell = (value, timestamp) => socket.down.send({ text: JSON.stringify({ type: 'op', payload: { key: 'k', value, timestamp } }) });
    for (const [value, timestamp, shown] of [['a', 10, 'a'], ['b', 9, 'a'], ['c', 10, 'c'], ['d', 11, 'd']]) {
      tell(value, timestamp);
      await world.run(world.now_ms + 100);
      assert.equal(room.get('k'), shown);
    }
  },

  async 'an init replaces the state except for own ops that are not yet confirmed'() {
    const world = new World(7);
    const room = join(world);
    await synced(world, room);
    for (const key of ['gone', 'changed', 'own']) room.set(key, 'before');
    await settled(world, room);
    world.server.kill();
    await world.run(FOR_EVER_MS, () => room.state === 'Disconnected');
    room.set('own', 'offline');
    world.server.state.delete('gone');
    world.server.state.set('changed', { text: '"after"', timestamp: 1 });
    world.server.start();
    room.heard.change.length = 0;
    await synced(world, room);
    assert.deepEqual(shownBy(room), { changed: 'after', own: 'offline' });
    assert.deepEqual(room.heard.change.map(({ key, value, source }) => [key, value, source]), [['gone', undefined, 'init'], ['changed', 'after', 'init']]);
    await settled(world, room);
    assert.deepEqual(stateOf(world.server), shownBy(room));
  },

  async 'a losing op is corrected and reported as lost'() {
    const world = new World(8);
    const [winner, loser] = [join(world, { clock: { ahead_ms: 5000 } }), join(world)];
    await synced(world, winner, loser);
    winner.set('k', 'theirs');
    loser.set('k', 'mine');
    assert.equal(loser.get('k'), 'mine');
    await settled(world, winner, loser);
    for (const room of [winner, loser]) assert.equal(room.get('k'), 'theirs');
    const { source, over } = loser.heard.change.at(-1);
    assert.deepEqual([source, over.value], ['other', 'mine']);
    assert(winner.heard.change.every(({ over: lost }) => lost === undefined));
  },

  async "an edit of a value from init wins even if its writer's clock is ahead"() {
    const world = new World(9);
    const ahead_us = (1_700_000_000_000 + 3_600_000) * 1000;
    world.server.state.set('k', { text: '"from the future"', timestamp: ahead_us });
    const room = join(world);
    await synced(world, room);
    room.set('k', 'first thought');
    room.set('k', 'edited');
    await settled(world, room);
    assert.equal(room.get('k'), 'edited');
    assert.deepEqual(world.server.state.get('k'), { text: '"edited"', timestamp: ahead_us + 1 });
  },

  async 'an echo measures the round trip and changes nothing'() {
    const world = new World(10);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    let empty = 'not back yet';
    room.echo().then((took) => { empty = took; });
    await world.run(world.now_ms + 1);
    assert.equal(empty, undefined);
    world.server.state.set('k', { text: 'null', timestamp: 5 });
    world.server.kill();
    world.server.start();
    await world.run(FOR_EVER_MS, () => room.state === 'Disconnected');
    await synced(world, room, other);
    const took = [];
    for (let i = 0; i < 3; i += 1) room.echo().then((took_ms) => took.push(took_ms));
    assert(await world.run(FOR_EVER_MS, () => took.length === 3));
    assert(took.every((took_ms) => took_ms > 0 && took_ms < 80), `${took}`);
    assert.deepEqual(world.server.state.get('k'), { text: 'null', timestamp: 5 });
    assert.deepEqual(room.heard.change.filter(({ source }) => source !== 'init'), []);
  },

  async 'refused ops are reported and undone; everything else is kept'() {
    const world = new World(11);
    const room = join(world);
    room.set('k', 'good');
    await settled(world, room);
    room.set('l', 'also good');
    room.set('k', 'bad');
    assert.equal(room.get('k'), 'bad');
    await world.run(FOR_EVER_MS, () => room.heard.error.length > 0);
    room.set('m', 'meanwhile');
    await settled(world, room);
    assert.deepEqual(room.heard.error, [{ code: 400, message: 'payload.value is bad' }]);
    assert.deepEqual(shownBy(room), { k: 'good', l: 'also good', m: 'meanwhile' });
    assert.deepEqual(stateOf(world.server), shownBy(room));
  },

  async 'if the server closes before it has read everything, everything is sent again, including refused ops'() {
    const world = new World(22);
    const room = join(world);
    await synced(world, room);
    const [socket] = world.server.sockets;
    room.set('k', 'kept');
    socket.up.cut();
    socket.down.send({ text: '{"type":"error","payload":{"code":400,"message":"of another op"}}' });
    socket.down.send({ closes: { code: 1011, reason: '', wasClean: true } });
    await settled(world, room);
    assert.equal(room.heard.error.length, 1);
    assert.deepEqual(stateOf(world.server), { k: 'kept' });
  },

  async 'ops that a busy server refuses (429, 500) are sent again'() {
    for (const [code, closes] of [[429, true], [500, false]]) {
      const world = new World(23);
      const room = join(world);
      await synced(world, room);
      const [socket] = world.server.sockets;
      room.set('k', 'kept');
      socket.up.cut();
      socket.down.send({ text: `{"type":"error","payload":{"code":${code},"message":"not now"}}` });
      await world.run(world.now_ms + 100);
      assert.equal(world.server.sockets.has(socket), !closes);
      if (!closes) world.server.close(socket, 1011, '');
      await settled(world, room);
      assert.deepEqual([room.heard.error.map((error) => error.code), stateOf(world.server)], [[code], { k: 'kept' }]);
    }
  },

  async 'ops over the rate (429) are resent slowly, and nothing else is resent'() {
    for (const [per_second, count] of [[1, 12], [10, 25], [10, 110], [100, 1000]]) {
      const world = new World(30);
      world.server.ops_per_second = per_second;
      const [room, other] = [join(world), join(world)];
      await synced(world, room, other);
      for (let i = 0; i < count; i += 1) room.set(`k${i}`, i);
      await settled(world, room);
      // Values that are set in the meantime wait, and only the newest is sent.
      for (let i = 0; i < 30; i += 1) room.set('again', i);
      await settled(world, room);
      for (const one of [room, other]) assert.deepEqual(shownBy(one), stateOf(world.server));
      assert.deepEqual([room.entries().length, room.get('again')], [count + 1, 29]);
      assert.deepEqual(room.states(), ['Connecting', 'Authenticating', 'Connected', 'Synced'], `${per_second}: ${room.heard.state.at(-1).reason}`);
      assert.deepEqual(new Set(room.heard.error.map(({ code }) => code)), new Set([429]));
      assert(world.server.heard.length < 4 * count + 100, `${world.server.heard.length} messages for ${count} of ${per_second}`);
      assert(room.heard.change.every(({ source }) => source === 'self'));
    }
  },

  async 'a client that was closed for too many ops (1008) reconnects and sends fewer'() {
    const world = new World(31);
    world.server.ops_per_second = 20;
    const room = join(world);
    await synced(world, room);
    for (let i = 0; i < 2000; i += 1) room.set(`k${i}`, i);
    await settled(world, room);
    assert.equal(room.states().filter((state) => state === 'Synced').length, 2);
    assert.match(room.heard.state.find(({ state }) => state === 'Disconnected').reason, /1008 too many/);
    assert.equal(world.server.state.size, 2000);
    assert.deepEqual(shownBy(room), stateOf(world.server));
    // Then it sends at its full pace again.
    room.set('last', 1);
    assert(await world.run(world.now_ms + 100, () => world.server.state.has('last')));
  },

  async 'an op that is too large (413) is reported and undone without a reconnect'() {
    const world = new World(32);
    const [room, other] = [join(world), join(world)];
    await synced(world, room, other);
    room.set('mine', 'x');
    other.set('theirs', 'y');
    await settled(world, room, other);
    world.server.bytes_max = world.server.bytes();
    for (const { heard } of [room, other]) heard.change.length = 0;
    for (const [key, before] of [['mine', 'x'], ['theirs', 'y'], ['new', undefined]]) {
      const timestamp = room.set(key, 'much longer');
      assert.equal(room.get(key), 'much longer');
      await settled(world, room);
      assert.equal(room.get(key), before);
      const { value, over } = room.heard.change.at(-1);
      assert.deepEqual([value, over], [before, { value: 'much longer', timestamp }]);
      assert.deepEqual(room.heard.error.at(-1), { code: 413, message: 'no room for this', key });
    }
    // Of several, the last one that fits is kept.
    for (const value of ['too long', 'z', 'too long, too']) room.set('mine', value);
    await settled(world, room);
    assert.equal(room.get('mine'), 'z');
    assert.equal(room.heard.error.length, 4);
    assert.equal(room.states().length, 4);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), stateOf(world.server));
    assert.deepEqual(other.heard.change.map(({ key, value }) => [key, value]), [['mine', 'z']]);
  },

  async 'ops of other clients are not missed while an op is refused'() {
    const world = new World(33);
    const [room, other] = [join(world), join(world, { clock: { ahead_ms: -5000 } })];
    await synced(world, room, other);
    other.set('k', 'a');
    await settled(world, other);
    world.server.bytes_max = world.server.bytes();
    // Both at the same time: the older one is applied (which is ignored here) before the newer one
    // is refused.
    other.set('k', 'b');
    room.set('k', 'too long');
    await settled(world, room, other);
    for (const one of [room, other]) assert.deepEqual(shownBy(one), { k: 'b' });
  },

  async 'the echo of a refused op does not restore it'() {
    const world = new World(34);
    const room = join(world);
    await synced(world, room);
    room.set('k', 'a');
    await settled(world, room);
    world.server.bytes_max = world.server.bytes();
    const [socket] = world.server.sockets;
    room.set('k', 'too long');
    // The server has the op, and its refusal is on its way back; the echo is within the limit.
    await world.run(FOR_EVER_MS, () => world.server.heard.length === 3);
    const echoed = room.echo();
    world.server.bytes_max = Infinity;
    await settled(world, room);
    await echoed;
    assert.equal(world.server.sockets.has(socket), false, 'it asked for the state anew');
    assert.deepEqual(shownBy(room), stateOf(world.server));
  },

  async 'an echoed op counts as confirmed, but later ones do not'() {
    const world = new World(24);
    const room = join(world);
    await synced(world, room);
    room.set('k', 1);
    await world.run(FOR_EVER_MS, () => world.server.heard.length === 2);
    assert.equal(room.pending, 1);
    room.set('l', 2);
    [...world.server.sockets][0].up.cut();
    await world.run(world.now_ms + 100);
    assert.equal(room.pending, 1);
    world.server.drop([...world.server.sockets][0]);
    await settled(world, room);
    assert.deepEqual(stateOf(world.server), { k: 1, l: 2 });
  },

  async 'an op is known to be accepted within a second'() {
    const world = new World(40);
    const room = join(world);
    await synced(world, room);
    room.set('k', 1);
    assert(await world.run(world.now_ms + 1000, () => room.pending === 0));
    // The same for an op that is written while the echo is on its way.
    room.set('k', 2);
    await world.run(world.now_ms + 510);
    room.set('k', 3);
    assert(await world.run(world.now_ms + 1500, () => room.pending === 0));
  },

  async 'an echo of the only key, null with timestamp 0, is answered'() {
    const world = new World(25);
    world.server.state.set('k', { text: 'null', timestamp: 0 });
    const room = join(world);
    await synced(world, room);
    let took_ms;
    room.echo().then((took) => { took_ms = took; });
    assert(await world.run(FOR_EVER_MS, () => took_ms > 0));
    assert.deepEqual(world.server.state.get('k'), { text: 'null', timestamp: 0 });
  },

  async 'an answer without a WebSocket is interpreted'() {
    for (const [status, state, sockets_count] of [
      [200, 'Connecting', 1], [404, 'Connecting', 1], [400, 'Error', 0], [401, 'Error', 0], [403, 'Error', 0],
      [429, 'Disconnected', 0], [500, 'Disconnected', 0], [503, 'Disconnected', 0],
    ]) {
      const world = new World(26);
      const host = world.host();
      let opened_count = 0;
      host.fetch = async () => ({ status });
      host.WebSocket = class { constructor() { opened_count += 1; } };
      host.Math = { random: () => 1 };
      const room = connect({ url: 'http://server', workspace: 'w', token: 'good' }, host);
      await world.run(100);
      assert.deepEqual([room.state, opened_count], [state === 'Connecting' ? 'Authenticating' : state, sockets_count], `${status}`);
    }
  },

  async 'a room closed while connecting opens nothing and leaves no socket'() {
    for (let wait_ms = 0; wait_ms < 120; wait_ms += 1) {
      const world = new World(27);
      const room = join(world);
      await world.run(wait_ms);
      room.close();
      await world.run(FOR_EVER_MS);
      assert.deepEqual([room.state, world.server.sockets.size], ['Disconnected', 0]);
      assert.equal(room.heard.state.at(-1).reason, 'closed by this client');
    }
  },

  async 'a connection that lasted resets the retry delay; a short one does not'() {
    for (const [lasts_ms, retry_ms] of [[6000, 250], [100, 2000]]) {
      const world = new World(28);
      const host = world.host();
      host.Math = { random: () => 1 };
      world.server.kill();
      const room = connect({ url: 'http://server', workspace: 'w', token: 'good' }, host);
      const delays = [];
      room.on('state', (event) => event.retry_ms !== undefined && delays.push(event.retry_ms));
      await world.run(FOR_EVER_MS, () => delays.length === 3);
      world.server.start();
      await synced(world, room);
      await world.run(world.now_ms + lasts_ms);
      world.server.kill();
      await world.run(FOR_EVER_MS, () => delays.length === 4);
      assert.deepEqual(delays, [250, 500, 1000, retry_ms]);
    }
  },

  async 'a working connection is left alone'() {
    const world = new World(29);
    const room = join(world);
    await synced(world, room);
    await world.run(world.now_ms + 10 * 60_000);
    assert.equal(room.states().at(-1), 'Synced');
    assert.equal(room.states().length, 4);
  },

  async 'a clock that is days ahead is reported'() {
    const world = new World(12);
    const room = join(world, { clock: { ahead_ms: 2 * DAY_MS } });
    await synced(world, room);
    room.set('k', 1);
    await world.run(FOR_EVER_MS, () => room.heard.error.length > 0);
    await synced(world, room);
    assert.deepEqual([room.heard.error[0].code, shownBy(room), room.pending], [400, {}, 0]);
  },

  async 'a refused timestamp is forgotten: a clock that was once wrong affects no later edit'() {
    for (const [ahead_ms, refusal] of [[2 * DAY_MS, 400], [3_600_000, 413]]) {
      const world = new World(35);
      const clock = { ahead_ms: 0 };
      const room = join(world, { clock });
      await synced(world, room);
      room.set('w', 'of a right clock');
      await settled(world, room);
      if (refusal === 413) world.server.bytes_max = world.server.bytes();
      clock.ahead_ms = ahead_ms;
      room.set('x', 'of a wrong clock');
      await world.run(FOR_EVER_MS, () => room.heard.error.length > 0);
      assert.equal(room.heard.error[0].code, refusal);
      clock.ahead_ms = 0;
      // One edit is made before the state arrives again, and some after it.
      const stamps = [room.set('x', 1)];
      world.server.bytes_max = Infinity;
      await settled(world, room);
      for (const key of ['w', 'x', 'y', 'z']) stamps.push(room.set(key, 2));
      await settled(world, room);
      assert.deepEqual(stateOf(world.server), { w: 2, x: 2, y: 2, z: 2 });
      assert.deepEqual(shownBy(room), stateOf(world.server));
      assert.deepEqual(room.heard.error.map(({ code }) => code), [refusal]);
      const now_us = (1_700_000_000_000 + world.now_ms) * 1000;
      assert(stamps.every((stamp, i) => stamp < now_us + 1e6 && (i === 0 || stamp > stamps[i - 1])), `${stamps} at ${now_us}`);
    }
  },

  async 'a clock that was days ahead while offline affects only edits from that time'() {
    const world = new World(36);
    const clock = { ahead_ms: 2 * DAY_MS };
    world.server.kill();
    const room = join(world, { clock });
    room.set('x', 'of a wrong clock');
    room.set('again', 'of a wrong clock');
    clock.ahead_ms = 0;
    room.set('again', 'of a right clock');
    room.set('y', 'of a right clock');
    world.server.start();
    await world.run(FOR_EVER_MS, () => room.heard.error.length > 0);
    await settled(world, room);
    assert.deepEqual(stateOf(world.server), { again: 'of a right clock', y: 'of a right clock' });
    assert.deepEqual(shownBy(room), stateOf(world.server));
    assert.deepEqual(room.heard.error.map(({ code }) => code), [400]);
  },

  async 'a room that ends reports unsaved edits and keeps them for the next one'() {
    const world = new World(37);
    const workspace = 'unsaved';
    const room = join(world, { workspace });
    await synced(world, room);
    for (const key of ['a', 'b', 'c']) room.set(key, 'saved');
    await settled(world, room);
    world.server.kill();
    await world.run(FOR_EVER_MS, () => room.state === 'Disconnected');
    const edits = ['a', 'b', 'c', 'd'].map((key) => ({ key, value: [key], timestamp: room.set(key, [key]) }));
    assert.deepEqual(room.unsaved, [], 'they wait for this room');
    world.server.start();
    world.server.tokens = new Set(['new']);
    await world.run(FOR_EVER_MS, () => room.state === 'Error');
    assert.deepEqual(room.heard.state.at(-1), { state: 'Error', reason: 'Unauthorized', retry_ms: undefined, unsaved: edits });
    assert.deepEqual([room.pending, room.unsaved], [4, edits]);

    for (const elsewhere of [{ workspace: 'other' }, { workspace, url: 'http://other' }]) {
      assert.deepEqual(join(world, { token: 'new', ...elsewhere }).unsaved, []);
    }
    // In the meantime, another client has written the same value to one of them, and has written
    // another one later.
    const other = join(world, { token: 'new' });
    await synced(world, other);
    other.set('b', ['b']);
    other.set('c', 'of another');
    await settled(world, other);

    const next = join(world, { workspace, token: 'new' });
    assert.deepEqual(next.unsaved, edits);
    await synced(world, next);
    const [a, , c, d] = edits;
    assert.deepEqual(next.unsaved, [a, c, d], 'what the server has is saved');
    assert.deepEqual(next.get('a'), 'saved', 'nothing is sent without being asked to');
    next.restore();
    assert.deepEqual([next.unsaved, next.get('a'), next.pending], [[], ['a'], 3]);
    await settled(world, next, other);
    assert.deepEqual(stateOf(world.server), { a: ['a'], b: ['b'], c: 'of another', d: ['d'] });
    for (const one of [next, other]) assert.deepEqual(shownBy(one), stateOf(world.server));
    const { key, source, over } = next.heard.change.at(-1);
    assert.deepEqual([key, source, over], ['c', 'other', { value: ['c'], timestamp: c.timestamp }]);
    assert.deepEqual(next.heard.error, []);
  },

  async 'unsaved edits: the newest per key, until restored or discarded'() {
    const world = new World(38);
    const workspace = 'kept';
    world.server.kill();
    const [first, second] = [join(world, { workspace }), join(world, { workspace })];
    first.set('k', 'first');
    await world.run(world.now_ms + 1);
    second.set('k', 'second');
    second.set('l', 1);
    second.close();
    assert.deepEqual(second.heard.state.at(-1).unsaved.map(({ key }) => key), ['k', 'l']);
    first.close();
    const told = ({ unsaved }) => unsaved.map(({ key, value }) => [key, value]);
    assert.deepEqual(told(first), [['k', 'second'], ['l', 1]]);
    // A newer edit of this room is kept.
    const third = join(world, { workspace });
    third.set('k', 'third');
    third.restore();
    assert.deepEqual(shownBy(third), { k: 'third', l: 1 });
    assert.throws(() => first.restore(), /ended/);
    third.close();
    const fourth = join(world, { workspace });
    assert.deepEqual(told(fourth), [['k', 'third'], ['l', 1]]);
    fourth.discard();
    assert.deepEqual([first, third, fourth].map(told), [[], [], []]);
    fourth.close();
    assert.equal('unsaved' in fourth.heard.state.at(-1), true);
    assert.deepEqual(fourth.heard.state.at(-1).unsaved, [], 'it had none of its own');
    assert.deepEqual(join(world, { workspace }).unsaved, []);
  },

  async 'restored edits are sent in the order written, before later ones'() {
    const world = new World(39);
    const workspace = 'order';
    world.server.kill();
    const first = join(world, { workspace });
    for (const key of ['c', 'a', 'b', 'c']) first.set(key, key);
    first.close();
    world.server.start();
    const next = join(world, { workspace });
    next.restore();
    next.set('d', 'd');
    await settled(world, next);
    assert.deepEqual(opsOf(world.server).slice(0, 4).map(({ key }) => key), ['a', 'b', 'c', 'd']);
  },

  async 'a refused token: a token function is called once more with the reason, then it is an error'() {
    const refused = 'Unauthorized';
    for (const [tokens, asked, state] of [
      [['good'], [undefined], 'Synced'],
      [['bad', 'good'], [undefined, refused], 'Synced'],
      [['bad', 'bad', 'good'], [undefined, refused], 'Error'],
      [['bad', ''], [undefined, refused], 'Error'],
    ]) {
      const world = new World(13);
      const heard = [];
      const room = join(world, { token: async (reason) => tokens[heard.push(reason) - 1] });
      await world.run(60_000);
      assert.deepEqual([heard, room.state], [asked, state]);
    }
    for (const token of ['bad', '', 'line\nbreak', 'ü']) {
      const world = new World(14);
      const room = join(world, { token });
      await world.run(FOR_EVER_MS);
      assert.equal(room.state, 'Error');
      assert.throws(() => room.set('k', 1), /ended/);
    }
  },

  async 'an expired token (4001): a token function is called again with the reason; a string is an error'() {
    for (const [tokens, asked, state] of [
      [['good', 'good'], [undefined, 'token expired'], 'Synced'],
      [['good', 'bad', 'good'], [undefined, 'token expired'], 'Error'],
      ['good', [], 'Error'],
    ]) {
      const world = new World(15);
      const heard = [];
      const room = join(world, { token: typeof tokens === 'string' ? tokens : (reason) => tokens[heard.push(reason) - 1] });
      await synced(world, room);
      world.server.close([...world.server.sockets][0], 4001, 'token expired');
      await world.run(world.now_ms + 1000);
      assert.deepEqual([heard, room.state], [asked, state]);
      assert(room.heard.state.some(({ reason }) => reason === 'token expired'));
    }
  },

  async 'a token function is called before each connect, and again later if it throws'() {
    const world = new World(22);
    const heard = [];
    const answers = ['old', new Error('no network'), 'new', 'newer'];
    const token = (reason) => {
      const answer = answers[heard.push(reason) - 1];
      if (answer instanceof Error) throw answer;
      return answer;
    };
    for (const good of ['old', 'new', 'newer']) world.server.tokens.add(good);
    const room = join(world, { token });
    await synced(world, room);
    // The secret is rotated, which live connections survive; after a restart, all clients
    // reconnect.
    world.server.tokens.delete('old');
    room.set('k', 1);
    await settled(world, room);
    for (const count of [3, 4]) {
      world.server.kill();
      world.server.start();
      await world.run(world.now_ms + 60_000, () => room.state === 'Disconnected');
      await synced(world, room);
      assert.equal(heard.length, count);
    }
    assert.deepEqual(heard, [undefined, undefined, undefined, undefined]);
    assert(room.heard.state.some(({ reason }) => reason === 'no network'));
  },

  async 'a close that would repeat is an error'() {
    for (const code of [1002, 1003, 1007, 1008, 1009]) {
      const world = new World(16);
      const room = join(world);
      await synced(world, room);
      world.server.close([...world.server.sockets][0], code, 'why');
      await world.run(FOR_EVER_MS);
      assert.deepEqual(room.heard.state.at(-1), { state: 'Error', reason: `closed with ${code} why`, retry_ms: undefined, unsaved: [] });
    }
  },

  async 'retries after increasing random delays up to a bound'() {
    const delays = async (random) => {
      const world = new World(17);
      world.server.kill();
      const host = world.host();
      host.Math = { random: () => random };
      const room = connect({ url: 'http://server', workspace: 'w', token: 'good' }, host);
      const seen = [];
      room.on('state', ({ retry_ms }) => retry_ms !== undefined && seen.push(retry_ms));
      await world.run(FOR_EVER_MS, () => seen.length === 9);
      return seen;
    };
    const longest = [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000];
    assert.deepEqual(await delays(1), longest);
    assert.deepEqual(await delays(0.5), longest.map((delay_ms) => delay_ms / 2));
  },

  async 'back online, it reconnects immediately'() {
    const world = new World(18);
    const host = Object.assign(world.host(), { addEventListener: (_, run) => { host.online = run; }, removeEventListener: () => {} });
    world.server.kill();
    const room = connect({ url: 'http://server', workspace: 'w', token: 'good' }, host);
    await world.run(60_000);
    world.server.start();
    const since_ms = world.now_ms;
    host.online();
    await synced(world, room);
    assert(world.now_ms - since_ms < 1000);
  },

  async 'a server that never answers is abandoned after a while'() {
    const world = new World(19);
    const host = world.host();
    host.fetch = () => new Promise(() => {});
    const room = connect({ url: 'http://server', workspace: 'w', token: 'good' }, host);
    await world.run(14_999);
    assert.equal(room.state, 'Connecting');
    await world.run(15_000);
    assert.equal(room.state, 'Disconnected');
  },

  async 'values that cannot be sent are not set'() {
    const world = new World(20);
    const room = join(world);
    for (const [key, value] of [['', 1], ['ü'.repeat(513), 1], [7, 1], ['k', undefined], ['k', () => 1], ['k', 'x'.repeat(1 << 20)]]) {
      assert.throws(() => room.set(key, value));
    }
    room.set('ü'.repeat(512), 1);
    room.set('__proto__', { polluted: true });
    await settled(world, room);
    assert.deepEqual(room.entries().map(([key]) => key), ['ü'.repeat(512), '__proto__']);
    assert.equal({}.polluted, undefined);
  },

  async 'a removed listener is not called, and one that closes the room ends it'() {
    const world = new World(21);
    const room = join(world);
    let count = 0;
    const off = room.on('change', () => { count += 1; });
    room.set('k', 1);
    off();
    room.set('k', 2);
    assert.equal(count, 1);
    room.on('state', ({ state }) => state === 'Connected' && room.close());
    await world.run(FOR_EVER_MS);
    assert.deepEqual(room.states(), ['Connecting', 'Authenticating', 'Connected', 'Disconnected']);
    assert.equal(world.server.sockets.size, 0);
  },
};

// The faults that may occur at any time.
const troubles = [
  ({ server }) => { server.kill(); },
  ({ server }) => { server.start(); },
  ({ server }) => { server.start(); },
  (world) => { each(world, (socket) => world.server.drop(socket)); },
  (world) => { each(world, (socket) => world.server.close(socket, 1011, 'the log has failed')); },
  (world) => { each(world, (socket) => world.server.close(socket, 4001, 'token expired')); },
  (world) => { each(world, (socket) => world.server.fallBehind(socket)); },
  (world) => { each(world, (socket) => world.server.catchUp(socket)); },
];

function each(world, act) {
  for (const socket of world.server.sockets) if (world.random() < 0.5) act(socket);
}

// Clients with wrong clocks write a few keys while many faults occur. In the end, all of them hold
// the server's state, which for each key is the greatest op that any client wrote. In some stories,
// a clock is days ahead for a while, or rooms end and are reopened.
async function story(seed) {
  const world = new World(seed);
  if (seed % 4 === 1) world.server.ops_per_second = world.pick([1, 5, 20]);
  if (seed % 4 === 2) world.server.bytes_max = 20;
  const clocks = [0, 1, 2].map(() => ({ ahead_ms: world.pick([0, 0, -3_600_000, 3_600_000]) }));
  const open = (clock) => join(world, { clock, token: () => 'good', workspace: `story ${seed}` });
  const rooms = clocks.map(open);
  // For each key, the last edit of each room. It may be older than an earlier edit that was refused
  // along with others.
  const written = new Map(['a', 'b', 'c', 'refused'].map((key) => [key, [0, 0, 0]]));
  let echoes_count = 0;
  for (let i = 0; i < 120; i += 1) {
    await world.run(world.now_ms + 30 * world.random() ** 2);
    const at = Math.floor(world.random() * rooms.length);
    const dice = world.random();
    if (dice < 0.7) {
      const key = world.pick(['a', 'b', 'c', 'refused']);
      // A message that is refused as a whole hides the excess messages after it.
      const may_be_bad = key === 'refused' && world.server.ops_per_second === Infinity;
      const value = may_be_bad && world.random() < 0.2 ? 'bad' : world.pick([0, 1, null, 'x', 'longer']);
      const timestamp = rooms[at].set(key, value);
      // A refused op may have replaced one that was waiting.
      const is_kept = key !== 'refused' && world.server.bytes_max === Infinity;
      // An op that follows one with a wrong timestamp, while that is in transit, is refused with
      // it.
      if (is_kept && timestamp < world_us(world) + DAY_MS * 1000) written.get(key)[at] = timestamp;
    } else if (dice < 0.8) {
      rooms[at].echo().then((took_ms) => { echoes_count += took_ms === undefined ? 0 : 1; });
    } else if (dice < 0.85) {
      clocks[at].ahead_ms += world.pick([-5, 5, -60_000, 60_000]);
    } else if (seed % 4 === 3 && dice < 0.88) {
      // A room ends, and another one continues where it left off.
      rooms[at].close();
      rooms[at] = open(clocks[at]);
      rooms[at].restore();
    } else if (seed % 4 === 3 && dice < 0.9) {
      clocks[at].ahead_ms += 2 * DAY_MS;
      const key = world.pick(['a', 'b', 'c']);
      rooms[at].set(key, 'of a wrong clock');
      // It may have replaced one that was waiting.
      written.get(key)[at] = 0;
      await world.run(world.now_ms + 2000 * world.random());
      clocks[at].ahead_ms -= 2 * DAY_MS;
    } else if (dice < 0.95 || world.random() < 0.5) {
      world.pick(troubles)(world);
    } else {
      await world.run(world.now_ms + 1000 * world.random());
    }
  }
  world.server.start();
  for (const socket of world.server.sockets) world.server.catchUp(socket);
  await settled(world, ...rooms);
  await world.run(world.now_ms + 1000);
  for (const room of rooms) assert.deepEqual(shownBy(room), stateOf(world.server));
  assert(!Object.values(stateOf(world.server)).includes('of a wrong clock'));
  for (const [key, timestamps] of written) {
    const held = world.server.state.get(key)?.timestamp ?? 0;
    assert(held >= Math.max(...timestamps), `an edit of ${key} is lost: ${timestamps} against ${held}`);
  }
  return echoes_count;
}

cases['random stories of three clients in trouble'] = async () => {
  let echoes_count = 0;
  await runSeeds(SEEDS_COUNT, async (seed) => { echoes_count += await story(seed); });
  assert(echoes_count > 0);
};

await runCases('client module', cases);
