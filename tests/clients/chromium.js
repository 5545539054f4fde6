// The story with the WebSocket of a page in headless Chromium: one page for each client.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { chromium } = require('playwright-core');
const { QUIET } = require('./browser.js');
const { tell, within } = require('./story.js');

const ANSWER_MS = 10_000;
// A page cannot see the status of a refused handshake. The browser's console shows it, with a
// different wording for 401.
function statusOf(told) {
  if (told.includes('HTTP Authentication failed')) return 401;
  return Number(/Unexpected response code: (\d+)/.exec(told)?.[1]) || undefined;
}

async function connect(browser, page_url, url) {
  const page = await browser.newPage();
  const said = [];
  page.on('console', (message) => said.push(message.text()));
  await page.goto(page_url);
  const opened = await within(ANSWER_MS, 'the handshake', page.evaluate((to) => open_socket(to), url));
  if (!opened) {
    await page.close();
    const told = said.join('; ');
    throw Object.assign(new Error(`refused: ${told}`), { status: statusOf(told) });
  }
  return {
    // Calls into one page are executed in order.
    send: (text) => page.evaluate((sent) => socket.send(sent), text),
    receive: () => within(ANSWER_MS, 'a message', page.evaluate(() => receive())),
    close: async () => {
      await within(ANSWER_MS, 'the close', page.evaluate(() => close_socket()));
      await page.close();
    },
  };
}

async function main() {
  const [, executablePath] = process.argv.slice(2);
  // A page from loopback may open a socket to loopback without a permission prompt.
  const html = fs.readFileSync(path.join(__dirname, 'page.html'));
  const pages = http.createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(html));
  await new Promise((resolve) => pages.listen(0, '127.0.0.1', resolve));
  const page_url = `http://127.0.0.1:${pages.address().port}/`;

  const browser = await chromium.launch({ executablePath, args: QUIET });
  try {
    await tell('chromium', (url) => connect(browser, page_url, url));
  } finally {
    await browser.close();
    pages.close();
  }
}

main();
