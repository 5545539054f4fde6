// The client module in Node.js against the real server: `node client_module_server.mjs BINARY`. It
// uses sockets from `ws`, which the story can break.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';

import { connect } from '../../src/admin/client.mjs';

const require = createRequire(import.meta.url);
const WebSocket = require('ws');
const { play, within } = require('./story.js');

const WAIT_MS = 20_000;
const POLL_MS = 5;
const WORKSPACE = 'story';

async function until(what, is_done) {
  const end_ms = Date.now() + WAIT_MS;
  while (!(await is_done())) {
    if (Date.now() > end_ms) throw new Error(`never: ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
  }
}

// A room on this server whose connection can be broken.
function open(server, options = {}) {
  let socket;
  const host = Object.create(globalThis, {
    WebSocket: { value: class extends WebSocket {
      constructor(...given) {
        super(...given);
        // A refused connection is also reported by `close`.
        this.on('error', () => {});
        socket = this;
      }
    } },
  });
  const room = connect({ url: `http://127.0.0.1:${server.port}`, workspace: WORKSPACE, token: server.token(), version: 2, ...options }, host);
  const heard = { state: [], change: [], error: [], cast: [], presence: [] };
  for (const name of Object.keys(heard)) room.on(name, (event) => heard[name].push(event));
  return Object.assign(room, { heard, why: () => heard.state.findLast(({ why }) => why)?.why, break: () => socket.terminate() });
}

const shownBy = (room) => Object.fromEntries(room.entries());

async function stateOf(server) {
  const headers = { Authorization: `Bearer ${server.token()}` };
  return (await (await fetch(`http://127.0.0.1:${server.port}/v1/workspaces/${WORKSPACE}`, { headers })).json()).data;
}

async function expectSame(server, rooms) {
  await until('all synced and saved', () => rooms.every(({ status }) => status === 'saved'));
  const wanted = await stateOf(server);
  const is_same = (room) => { try { assert.deepEqual(shownBy(room), wanted); return true; } catch { return false; } };
  await until('all rooms like the server', () => rooms.every(is_same)).catch(() => {
    for (const room of rooms) assert.deepEqual(shownBy(room), wanted);
  });
}

async function kill(server, rooms) {
  await server.kill();
  await until('all disconnected', () => rooms.every(({ status }) => status === 'offline'));
}

async function steps(step, server) {
  let a, b, rooms;

  await step('two clients: writes, deletes and saved()', async () => {
    await server.start();
    rooms = [a, b] = [open(server), open(server)];
    for (const room of rooms) await room.synced();
    assert.deepEqual([a.version, a.why()], [2, 'first']);
    a.set('title', 'Plans');
    a.set('short-lived', { of: [1, null] });
    await a.saved();
    assert.deepEqual(await stateOf(server), { title: 'Plans', 'short-lived': { of: [1, null] } });
    await until('two keys', () => b.entries().length === 2);
    b.delete('short-lived');
    await b.saved();
    assert.deepEqual(await stateOf(server), { title: 'Plans' });
    await expectSame(server, rooms);
  });

  await step('an edit of a deleted key, whose writer has seen the delete, wins over it', async () => {
    a.delete('title');
    // Only then is the edit the later one: each client measures the server's clock independently.
    await until('b has seen it', () => b.get('title') === undefined);
    b.set('title', 'Plans again');
    await b.saved();
    await expectSame(server, rooms);
    assert.equal(a.get('title'), 'Plans again');
  });

  await step('killed with SIGKILL: writes and deletes from the meantime are there, and only changes are sent', async () => {
    for (let i = 0; i < 100; i += 1) a.set(`k${i}`, i);
    await expectSame(server, rooms);
    await kill(server, rooms);
    a.set('offline', 'of a');
    b.delete('k7');
    b.set('k8', 'of b');
    await server.start();
    await expectSame(server, rooms);
    assert.deepEqual(rooms.map((room) => room.why()), ['resumed', 'resumed']);
    assert.deepEqual([a.get('offline'), a.get('k7'), a.get('k8')], ['of a', undefined, 'of b']);
  });

  await step('a broken connection resumes', async () => {
    for (let i = 0; i < 10; i += 1) {
      a.break();
      a.set('broken', i);
      b.set('whole', i);
      await until('it is noticed', () => a.status === 'offline');
      await expectSame(server, rooms);
      assert.equal(a.why(), 'resumed');
    }
  });

  await step('an older copy of the data: every client has the state of the copy, plus its own unsaved edit', async () => {
    await kill(server, rooms);
    fs.cpSync(server.data_dir, `${server.home}/copy`, { recursive: true });
    await server.start();
    a.set('ghost', 1);
    a.set('title', 'of another history');
    b.delete('k9');
    await expectSame(server, rooms);
    await kill(server, rooms);
    b.set('unsaved', 1);
    fs.rmSync(server.data_dir, { recursive: true });
    fs.cpSync(`${server.home}/copy`, server.data_dir, { recursive: true });
    await server.start();
    await expectSame(server, rooms);
    assert.deepEqual(rooms.map((room) => room.why()), ['other_generation', 'other_generation']);
    assert.deepEqual([a.get('ghost'), a.get('title'), a.get('k9'), a.get('unsaved')], [undefined, 'Plans again', 9, 1]);
  });

  await step('a key that expires', async () => {
    a.set('expires', 1, { ttl_ms: 300 });
    a.set('stays', 1, { ttl_ms: 300 });
    await a.saved();
    a.set('stays', 2);
    await until('b has seen it', () => b.get('expires') === 1 && b.get('stays') === 2);
    await until('both are told', () => rooms.every((room) => room.get('expires') === undefined));
    await expectSame(server, rooms);
    assert.equal(a.get('stays'), 2);
  });

  await step('refused: the op is undone, and the others are kept', async () => {
    a.set('good', 1);
    a.set('\ud800', 'no UTF-8');
    a.set('good too', 1);
    await until('the refusal', () => a.heard.error.length === 1);
    await expectSame(server, rooms);
    assert.deepEqual([a.get('good'), a.get('good too'), a.heard.error[0].code], [1, 1, 400]);
  });

  await step('a state of many parts', async () => {
    for (let i = 0; i < 5000; i += 1) a.set(`many ${i}`, 'x'.repeat(100));
    await a.saved();
    const late = open(server);
    rooms.push(late);
    await expectSame(server, rooms);
    assert(late.entries().length > 5000);
  });

  await step('four clients write and delete while their connections break', async () => {
    rooms.push(open(server));
    for (let i = 0; i < 600; i += 1) {
      const room = rooms[i % rooms.length];
      const key = `hot ${(i * 7) % 5}`;
      if (i % 3 === 0) room.delete(key);
      else room.set(key, i);
      if (i % 50 === 49) rooms[(i * 3) % rooms.length].break();
      if (i % 5 === 0) await new Promise((resolve) => { setTimeout(resolve, 5); });
    }
    await expectSame(server, rooms);
    // Reported changes lead to the same state: every room agrees on every key.
    for (const room of rooms) assert.deepEqual(room.heard.error.filter(({ code }) => code !== 400), []);
  });

  await step('peers see each other, once, and a cast reaches them', async () => {
    const [x, y] = [open(server, { presence: true }), open(server, { presence: true })];
    rooms.push(x, y);
    x.setPresence({ name: 'x' });
    y.setPresence({ name: 'y' });
    const names = (room) => room.peers.map(({ value }) => value?.name).sort().join();
    await until('both peers', () => names(x) === 'x,y' && names(y) === 'x,y');
    x.break();
    await until('x is away', () => x.status === 'offline');
    await expectSame(server, rooms);
    await until('x is back, once', () => names(x) === 'x,y' && names(y) === 'x,y');
    assert(y.heard.presence.every(({ peers }) => peers.filter(({ value }) => value?.name === 'x').length <= 1), 'shown twice');
    assert.equal(x.cast({ wave: 1 }), true);
    await until('the cast', () => y.heard.cast.length === 1);
    assert.deepEqual(y.heard.cast[0], { from: x.connection, user: 'client-test', value: { wave: 1 } });
    x.close();
    await until('x has left', () => names(y) === 'y');
  });

  for (const room of rooms) room.close();
}

const timed = (step) => (what, body) => step(what, () => within(60_000, what, Promise.resolve().then(body)));
await play('client module with the server', [], (step, server) => steps(timed(step), server));
process.exit();
