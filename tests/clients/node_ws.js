// The story with `ws` for Node.js.
'use strict';

const WebSocket = require('ws');
const { tell, within } = require('./story.js');

const ANSWER_MS = 10_000;

async function connect(url) {
  const socket = new WebSocket(url, { handshakeTimeout: ANSWER_MS });
  const arrived = [];
  let wake = () => {};
  socket.on('message', (data) => {
    arrived.push(data.toString());
    wake();
  });
  await new Promise((resolve, reject) => {
    socket.once('open', resolve);
    socket.on('error', reject);
    socket.once('unexpected-response', (request, response) => {
      request.destroy();
      reject(Object.assign(new Error(`refused with ${response.statusCode}`), { status: response.statusCode }));
    });
  });
  const closed = new Promise((resolve) => socket.once('close', resolve));

  const next = async () => {
    while (arrived.length === 0) await new Promise((resolve) => { wake = resolve; });
    return arrived.shift();
  };
  return {
    send: (text) => socket.send(text),
    receive: () => within(ANSWER_MS, 'a message', next()),
    close: () => {
      socket.close();
      return within(ANSWER_MS, 'the close', closed);
    },
  };
}

tell('node ws', connect);
