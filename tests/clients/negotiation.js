// The client module in headless Chromium, which fails a connection whose server accepts none of the
// offered protocols. The servers, a version 1 server and a version 2 server, are played by `ws`.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { chromium } = require('playwright-core');
const { WebSocketServer } = require('ws');
const { QUIET } = require('./browser.js');
const { within } = require('./story.js');

const TOKEN = 'header.payload.signature';
const MODULE = path.join(__dirname, '../../src/admin/client.mjs');
const WELCOME = { connection: '1', user: null, generation: '00', time: Date.now() * 1000, state: 'full', why: 'first' };
const FIRST = { 1: [{ type: 'init', data: { k: 1 } }], 2: [
  { type: 'welcome', payload: WELCOME },
  { type: 'state', payload: { entries: [['k', 1, 1]], deleted: [] }, seq: 1 },
  { type: 'synced', payload: {}, seq: 1 },
] };

// A server that answers `HEAD` and speaks this version. It records the request of each WebSocket.
async function listen(version, takes_protocols) {
  const asked = [];
  const server = http.createServer((request, response) => {
    if (request.url === '/client.mjs') return response.setHeader('Content-Type', 'text/javascript').end(fs.readFileSync(MODULE));
    response.setHeader('Content-Type', 'text/html').end('<!doctype html>');
  });
  const sockets = new WebSocketServer({ noServer: true, handleProtocols: () => (takes_protocols ? 'etherply.v2' : false) });
  server.on('upgrade', (request, socket, head) => {
    const token = new URL(request.url, 'http://server').searchParams.get('token');
    const protocols = request.headers['sec-websocket-protocol'];
    asked.push([token, protocols]);
    // Version 1 has no other place for a token; whatever protocols are offered, the answer names
    // none.
    if (!takes_protocols && token !== TOKEN) return socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n');
    sockets.handleUpgrade(request, socket, head, (opened) => {
      for (const message of FIRST[version]) opened.send(JSON.stringify(message));
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { server, sockets, asked, url: `http://127.0.0.1:${server.address().port}` };
}

async function connects(browser, [version, takes_protocols, options], wanted) {
  const { server, sockets, asked, url } = await listen(version, takes_protocols);
  const page = await browser.newPage();
  try {
    await page.goto(url);
    const found = await page.evaluate(async (given) => {
      const { connect } = await import('/client.mjs');
      const room = connect({ workspace: 'w', ...given });
      const states = [];
      room.on('state', ({ state }) => states.push(state));
      await new Promise((resolve) => { room.on('state', ({ state }) => ['Synced', 'Disconnected'].includes(state) && resolve()); });
      room.close();
      return { version: room.version, states: states.slice(2), entries: room.entries() };
    }, { token: TOKEN, ...options });
    assert.deepEqual({ ...found, asked }, wanted);
  } finally {
    await page.close();
    for (const socket of sockets.clients) socket.terminate();
    server.close();
  }
}

const OFFERED = [null, `etherply.v2, bearer.${TOKEN}`];
const CASES = {
  'a version 2 server is given the token as a protocol': [[2, true, {}],
    { version: 2, states: ['Connected', 'Synced', 'Disconnected'], entries: [['k', 1]], asked: [OFFERED] }],
  'with a version 1 server, the client retries with the token in the URL': [[1, false, {}],
    { version: 1, states: ['Connected', 'Synced', 'Disconnected'], entries: [['k', 1]], asked: [OFFERED, [TOKEN, undefined]] }],
  'a client that wants version 1 requests only that': [[1, false, { version: 1 }],
    { version: 1, states: ['Connected', 'Synced', 'Disconnected'], entries: [['k', 1]], asked: [[TOKEN, undefined]] }],
  'a client that wants version 2 never shows the token': [[1, false, { version: 2 }],
    { version: 0, states: ['Disconnected', 'Disconnected'], entries: [], asked: [OFFERED] }],
};

async function main() {
  const [executablePath] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: QUIET });
  process.exitCode = 1;
  let failed_count = 0;
  for (const [what, [played, wanted]] of Object.entries(CASES)) {
    try {
      await within(20_000, 'the room', connects(browser, played, wanted));
      console.log(`ok - negotiation: ${what}`);
    } catch (error) {
      failed_count += 1;
      console.log(`not ok - negotiation: ${what}: ${error.message.split('\n').slice(0, 40).join(' ')}`);
    }
  }
  await browser.close();
  process.exitCode = failed_count === 0 ? 0 : 1;
}

main();
