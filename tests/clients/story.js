// The story that every client library plays; python_websockets.py plays the same one.
//
// A client library takes part through one function: `connect(url)` resolves to `{ send(text),
// receive(), close() }`, where `receive` returns the next message in order of arrival; it rejects
// with an error whose `status` is the HTTP status of the refusal.
'use strict';

const { isDeepStrictEqual } = require('node:util');
const { Server } = require('./server.js');

// No JSON library would write this text exactly like this: the server must pass it on byte for
// byte.
const VALUE = '{"n":12345678901234567890 , "f":1.0, "s":"\\u00e9"}';
const NOW_US = Date.now() * 1000;

const op = (key, value, timestamp) => `{"type":"op","payload":{"key":"${key}","value":${value},"timestamp":${timestamp}}}`;

function expectEqual(got, wanted) {
  if (!isDeepStrictEqual(got, wanted)) throw new Error(`got ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`);
}

// `values` are the texts of values that must appear in the message byte for byte.
async function expectMessage(client, wanted, values) {
  const text = await client.receive();
  expectEqual(JSON.parse(text), wanted);
  for (const value of values) {
    if (!text.includes(value)) throw new Error(`the value is not ${value} byte for byte: ${text}`);
  }
}

const expectOp = (client, key, value, timestamp) =>
  expectMessage(client, JSON.parse(op(key, value, timestamp)), [value]);

// `state` maps each key to the text of its value.
const expectInit = (client, state) => {
  const data = Object.fromEntries(Object.entries(state).map(([key, value]) => [key, JSON.parse(value)]));
  return expectMessage(client, { type: 'init', data }, Object.values(state));
};

async function steps(step, server, connect) {
  const pair = async () => {
    const token = server.token();
    return [await connect(server.url(token)), await connect(server.url(token))];
  };
  const refuses = async (token) => {
    const outcome = await connect(server.url(token)).then(() => 'accepted', (error) => error.status ?? error.message);
    expectEqual(outcome, 401);
  };
  let a, b;

  await step('the server starts', () => server.start());
  await step('without a token: 401', () => refuses(undefined));
  await step('with a token: connected, and the init of a new workspace is {}', async () => {
    [a, b] = await pair();
    await expectInit(a, {});
    await expectInit(b, {});
  });
  await step("A's op reaches B, its value byte for byte", async () => {
    a.send(op('foo', VALUE, NOW_US));
    await expectOp(b, 'foo', VALUE, NOW_US);
  });
  // All clients see the same order: the next message to A proves which messages A was not sent.
  await step("B's op is the first that A receives: A's own was not sent back", async () => {
    b.send(op('bar', '"from B"', NOW_US));
    await expectOp(a, 'bar', '"from B"', NOW_US);
  });
  await step("B's losing op is answered with the winner", async () => {
    b.send(op('foo', '"too late"', NOW_US - 1));
    await expectOp(b, 'foo', VALUE, NOW_US);
  });
  await step('A receives nothing about the losing op', async () => {
    b.send(op('baz', 'null', NOW_US));
    await expectOp(a, 'baz', 'null', NOW_US);
  });
  await step('killed with SIGKILL, the server restarts on the same port and data', async () => {
    await server.kill();
    await Promise.all([a.close(), b.close()]);
    await server.start();
  });
  await step('init contains the state from before', async () => {
    [a, b] = await pair();
    const state = { foo: VALUE, bar: '"from B"', baz: 'null' };
    await expectInit(a, state);
    await expectInit(b, state);
  });
  await step('an op reaches the other client again', async () => {
    a.send(op('foo', '2', NOW_US + 1));
    await expectOp(b, 'foo', '2', NOW_US + 1);
    await Promise.all([a.close(), b.close()]);
  });
  await step('with a token signed with another secret: 401', () => refuses(server.token('some other secret, also 32+ bytes long')));
}

const tell = (name, connect) => play(name, [], (step, server) => steps(step, server, connect));

// Prints one line for each step. The exit code is 0 if the whole story succeeded.
async function play(name, flags, story, secret) {
  const [binary] = process.argv.slice(2);
  const server = new Server(binary, flags, secret);
  const step = async (what, body) => {
    try {
      await body();
    } catch (error) {
      console.log(`not ok - ${name}: ${what}: ${error.message}`);
      throw error;
    }
    console.log(`ok - ${name}: ${what}`);
  };
  // An event loop that runs out of events in the middle of the story is also a failure, as is a
  // story that was played before.
  const before = process.exitCode ?? 0;
  process.exitCode = 1;
  try {
    await story(step, server);
    process.exitCode = before;
  } catch {
    // It has been printed. The steps after it build on it and are skipped.
  } finally {
    await server.kill();
  }
}

// An answer that never comes is a failure, not an endless wait.
function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing in ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

module.exports = { play, tell, within };
