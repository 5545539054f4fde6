// The server's console, in headless Chromium: two pages side by side, each in its own browser
// context, as for two users. A third page, from another origin, uses only the client module.
'use strict';

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const { chromium } = require('playwright-core');
const { QUIET } = require('./browser.js');
const { play, within } = require('./story.js');

const WAIT_MS = 20_000;
const POLL_MS = 20;
const PAGE_BYTES_MAX = 100_000;
const DESKTOP = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };
const HOUR_MS = 3_600_000;
// Chromium itself logs these, regardless of the page: the server was down, or refused a token.
const NETWORK = /^Failed to load resource: (net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INTERNET_DISCONNECTED)|the server responded with a status of (401|503) )/;

// The row of a key, as a user sees it.
const readRow = (page, key) => page.evaluate((wanted) => {
  const row = [...document.querySelectorAll('#rows tr')].find((other) => other.children[0].textContent === wanted);
  return row && { value: row.children[1].textContent, by: row.children[3].textContent };
}, key);

const readState = (page) => page.locator('#states [aria-current]').textContent();

async function until(what, read, wanted) {
  const end_ms = Date.now() + WAIT_MS;
  for (;;) {
    const got = await read();
    try {
      return assert.deepEqual(got, wanted);
    } catch {
      if (Date.now() > end_ms) throw new Error(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
}

const untilRow = (page, key, value, by) => until(`the row of ${key}`, () => readRow(page, key), { value, by });
const untilState = (page, state) => until('the state', () => readState(page), state);

async function add(page, key, value) {
  await page.fill('#key', key);
  await page.fill('#value', value);
  await page.press('#value', 'Enter');
}

// A page with its own clock; console messages and policy violations are recorded.
async function open(browser, url, said, { ahead_ms = 0, ...options } = {}) {
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: 'light', reducedMotion: 'reduce', ...options });
  await context.addInitScript((ahead) => {
    const now = Date.now.bind(Date);
    Date.now = () => now() + ahead;
    addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  }, ahead_ms);
  const page = await context.newPage();
  page.on('console', (message) => said.push(message.text()));
  page.on('pageerror', (error) => said.push(error.stack));
  await page.goto(url);
  return page;
}

// WCAG 2.2, 1.4.3: the contrast of each visible text with its background.
const readContrasts = (page) => page.evaluate(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const channels = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => channels(color).slice(0, 3)
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const backgroundOf = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return channels(color)[3] > 0 || !element.parentElement ? color : backgroundOf(element.parentElement);
  };
  const shown = [...document.body.querySelectorAll('*')].filter((element) => element.checkVisibility()
    && (element.tagName === 'INPUT' || [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== '')));
  return shown.map((element) => {
    const [text, behind] = [luminance(getComputedStyle(element).color), luminance(backgroundOf(element))];
    const contrast = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
    return { what: `${element.tagName}.${element.className} ${element.textContent.slice(0, 20)}`, contrast };
  });
});

async function expectReadable(page) {
  const contrasts = await readContrasts(page);
  assert(contrasts.length > 20, 'no text found');
  assert.deepEqual(contrasts.filter(({ contrast }) => contrast < 4.5), []);
}

async function steps(step, server, browser) {
  const said = [];
  const secrets = [];
  let a, b, home;
  const get = async (path, token) => (await fetch(home + path, { headers: { Authorization: `Bearer ${token}` } })).json();

  await step('the server starts', async () => {
    await server.start();
    home = `http://127.0.0.1:${server.port}`;
    secrets.push((await get('/console/session.json')).token);
    assert.match(secrets[0], /^[\w-]+\.[\w-]+\.[\w-]+$/);
  });

  await step(`all files of the page together are under ${PAGE_BYTES_MAX} bytes, and all come from the server`, async () => {
    const context = await browser.newContext();
    const page = await context.newPage();
    const loaded = [];
    page.on('response', (response) => loaded.push(response));
    await page.goto(home, { waitUntil: 'networkidle' }).catch(() => {});
    const files = loaded.filter((response) => !response.url().startsWith('data:') && response.request().method() === 'GET');
    const sizes = await Promise.all(files.map(async (response) => (await response.body()).length));
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    assert.deepEqual(new Set(files.map((response) => new URL(response.url()).origin)), new Set([home]));
    assert(files.length >= 4 && bytes < PAGE_BYTES_MAX, `${files.length} files of ${bytes} bytes`);
    assert.match(await files[0].headerValue('content-security-policy'), /^default-src 'none'; (?!.*unsafe)/);
    await context.close();
  });

  await step('with --dev it connects automatically', async () => {
    a = await open(browser, home, said);
    // The clock of this page is an hour ahead.
    b = await open(browser, home, said, { ahead_ms: HOUR_MS });
    for (const page of [a, b]) {
      await untilState(page, 'Synced');
      assert.equal(await page.locator('#empty').isVisible(), true);
    }
  });

  await step("A's new key reaches B", async () => {
    await add(a, 'title', 'Plans');
    await untilRow(a, 'title', '"Plans"', 'you');
    await untilRow(b, 'title', '"Plans"', 'other');
  });

  await step("B edits it in place using only the keyboard, and A follows", async () => {
    await b.getByRole('button', { name: 'Edit title' }).focus();
    await b.keyboard.press('Enter');
    await b.keyboard.type('{"n":[1,null]}');
    await b.keyboard.press('Enter');
    await untilRow(b, 'title', '{"n":[1,null]}', 'you');
    await untilRow(a, 'title', '{"n":[1,null]}', 'other');
    assert.equal(await b.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Edit title');
  });

  await step('Escape leaves a value unchanged', async () => {
    await a.getByRole('button', { name: 'Edit title' }).click();
    await a.keyboard.type('never');
    await a.keyboard.press('Escape');
    await add(a, 'after', '1');
    await untilRow(b, 'after', '1', 'other');
    assert.equal((await readRow(b, 'title')).value, '{"n":[1,null]}');
  });

  await step("an edit of a visible value wins even if its writer's clock is an hour behind", async () => {
    await a.getByRole('button', { name: 'Edit title' }).click();
    await a.keyboard.type('"mine"');
    await a.keyboard.press('Enter');
    await untilRow(b, 'title', '"mine"', 'other');
  });

  await step('markup in keys and values stays text', async () => {
    const markup = '<img src=x onerror="document.title=1"><b>';
    await add(a, markup, markup);
    await untilRow(b, markup, JSON.stringify(markup), 'other');
    for (const page of [a, b]) assert.equal(await page.locator('img, #rows b, #events b').count(), 0);
  });

  const readPeers = (page) => page.locator('#peers li').allTextContents();

  await step('each page shows who else is there, and which key the other one is editing', async () => {
    for (const page of [a, b]) {
      await until('two peers', async () => (await readPeers(page)).map((text) => text.endsWith('(you)')).sort(), [false, true]);
    }
    await a.getByRole('button', { name: 'Edit title' }).click();
    await until('what A edits', async () => (await readPeers(b)).filter((text) => text.endsWith('edits title')).length, 1);
    await a.keyboard.press('Escape');
    await until('that A has stopped', async () => (await readPeers(b)).filter((text) => text.includes('edits')).length, 0);
  });

  await step('B deletes a key with the keyboard: it disappears for A too, and both are notified', async () => {
    await add(a, 'short-lived', '1');
    await untilRow(b, 'short-lived', '1', 'other');
    await b.getByRole('button', { name: 'Delete short-lived' }).focus();
    await b.keyboard.press('Enter');
    for (const page of [a, b]) {
      await until('the deleted row', () => readRow(page, 'short-lived'), undefined);
      await until('that it was deleted', () => page.locator('#events li', { hasText: 'short-lived deleted' }).count(), 1);
      await until('that it is saved', () => page.textContent('#saved'), 'saved');
    }
    assert.match(await b.evaluate(() => document.activeElement.getAttribute('aria-label')), /^Delete /);
  });

  await step('the round trip and the stats are shown', async () => {
    await until('the round trip', async () => /^[\d.]+ (µs|ms|s)$/.test(await a.textContent('#round-trip')), true);
    await until('lines of two shards', () => a.locator('#plots polyline').count(), 10);
    // The request for the figures is itself a connection.
    await until('connections', async () => ['2', '3', '4'].includes(await a.textContent('[data-plot=connections] output')), true);
  });

  await step('killed with SIGKILL: both pages say so and let their users keep editing', async () => {
    await server.kill();
    for (const page of [a, b]) {
      await untilState(page, 'Disconnected');
      assert.equal(await page.locator('#here').isVisible(), false);
    }
    await add(a, 'from a', '1');
    await add(b, 'from b', '2');
    await add(a, 'both', 'of a');
    await add(b, 'both', 'of b');
    await untilRow(a, 'both', '"of a"', 'you');
    await untilRow(b, 'both', '"of b"', 'you');
    await a.getByRole('button', { name: 'Delete after' }).click();
    await until('the deleted row', () => readRow(a, 'after'), undefined);
    await until('what waits', () => a.textContent('#saved'), '3 waiting');
    await until('the message to A', async () => /retrying in .* [2-9] edits are pending/.test(await a.textContent('#told')), true);
  });

  await step("restarted on the same port and data: B's edits from the meantime arrive", async () => {
    await a.context().setOffline(true);
    await server.start();
    await until('the state on the server', async () => (await get('/v1/workspaces/demo', secrets[0])).data.both, 'of b');
  });

  await step("A reconnects: its edits arrive, and the losing one is corrected and reported", async () => {
    await a.context().setOffline(false);
    for (const page of [a, b]) {
      await untilState(page, 'Synced');
      await until('the row of both', async () => (await readRow(page, 'both')).value, '"of b"');
    }
    await untilRow(b, 'from a', '1', 'other');
    await untilRow(a, 'from b', '2', 'other');
    await until('what A deleted meanwhile', () => readRow(b, 'after'), undefined);
    for (const page of [a, b]) {
      await until('that it is saved', () => page.textContent('#saved'), 'saved');
      await until('that only what changed was sent', () => page.locator('#events li', { hasText: 'sent what changed' }).count(), 1);
      await until('two peers', async () => (await readPeers(page)).length, 2);
    }
    await until('when it was written', () => a.locator('#rows tr', { hasText: 'from b' }).locator('td').nth(1).textContent().then((text) => /^\d/.test(text)), true);
    const told = (page) => page.locator('#events li', { hasText: 'both = ' }).first().textContent();
    await until('the message to A', async () => /both = "of b" overrode yours: "of a" \(newer by \d/.test(await told(a)), true);
    assert.match(await told(b), /you.*both = "of b"$/);
  });

  await step("both pages show the server's state", async () => {
    const { data } = await get('/v1/workspaces/demo', secrets[0]);
    const wanted = Object.entries(data).map(([key, value]) => [key, JSON.stringify(value)]).sort();
    for (const page of [a, b]) {
      const rows = await page.evaluate(() => [...document.querySelectorAll('#rows tr')].map((row) => [row.children[0].textContent, row.children[1].textContent]));
      assert.deepEqual(rows.sort(), wanted);
    }
  });

  await step('on a phone nothing is wider than the screen, and buttons are large enough', async () => {
    const phone = await open(browser, home, said, { viewport: PHONE, hasTouch: true, isMobile: true, colorScheme: 'dark' });
    await untilState(phone, 'Synced');
    await until('rows', async () => (await phone.locator('#rows tr').count()) > 3, true);
    assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), PHONE.width);
    const heights = await phone.evaluate(() => [...document.querySelectorAll('button')].map((button) => button.getBoundingClientRect().height));
    assert(heights.every((height) => height >= 32), `${heights}`);
    await phone.context().close();
  });

  await step('light and dark: all text is readable', async () => {
    const grounds = [];
    for (const colorScheme of ['light', 'dark']) {
      await a.emulateMedia({ colorScheme });
      await expectReadable(a);
      grounds.push(await a.evaluate(() => getComputedStyle(document.body).backgroundColor));
    }
    assert.notEqual(grounds[0], grounds[1]);
  });

  await step('everything is reachable by keyboard with visible focus, and each field has a name', async () => {
    const wanted = new Set(await a.evaluate(() => [...document.querySelectorAll('a, button, input, summary')].map((element) => element.id || element.textContent)));
    await a.evaluate(() => document.activeElement.blur());
    // Twice around, since the starting point of the first Tab is unspecified.
    for (let presses = 2 * wanted.size + 10; presses > 0; presses -= 1) {
      await a.keyboard.press('Tab');
      const [name, outline] = await a.evaluate(() => {
        const element = document.activeElement;
        return [element.id || element.textContent, getComputedStyle(element).outlineStyle];
      });
      if (wanted.delete(name)) assert.equal(outline, 'solid', name);
    }
    assert.deepEqual([...wanted], []);
    const names = await a.evaluate(() => [...document.querySelectorAll('input')].map((input) => input.ariaLabel ?? [...input.labels].map((label) => label.textContent.trim()).join()));
    assert(names.length >= 4 && !names.includes(''), `${names}`);
  });

  await step('a refused token is reported and not retried', async () => {
    const wrong = `${secrets[0].slice(0, -6)}AAAAAA`;
    secrets.push(wrong);
    await b.click('#toggle');
    await untilState(b, 'Disconnected');
    await b.fill('#token', wrong);
    await b.click('#toggle');
    await untilState(b, 'Error');
    assert.equal(await b.textContent('#told'), 'Unauthorized');
    assert.equal(await b.textContent('#toggle'), 'Connect');
  });

  await step('a page from another origin uses the module', async () => {
    const html = `<!doctype html><title>other</title><script type="module">
      import { connect } from "${home}/client.mjs";
      window.room = connect({ workspace: "demo", token: ${JSON.stringify(secrets[0])} });
    </script>`;
    const pages = http.createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(html));
    await new Promise((resolve) => pages.listen(0, '127.0.0.1', resolve));
    try {
      const page = await open(browser, `http://127.0.0.1:${pages.address().port}/`, []);
      await until('the room', () => page.evaluate(() => window.room?.state), 'Synced');
      assert.equal(await page.evaluate(() => window.room.get('both')), 'of b');
      await page.evaluate(() => { window.room.set('from afar', true); });
      await untilRow(a, 'from afar', 'true', 'other');
      await page.context().close();
    } finally {
      pages.close();
    }
  });

  await step('no token appears in an address, a title, the history, storage or a log', async () => {
    const places = [fs.readFileSync(server.log_path, 'utf8'), ...said];
    for (const page of [a, b]) {
      places.push(page.url(), await page.title(), await page.content());
      places.push(await page.evaluate(() => JSON.stringify([history.state, { ...localStorage }, { ...sessionStorage }, document.cookie])));
      const session = await page.context().newCDPSession(page);
      places.push(JSON.stringify(await session.send('Page.getNavigationHistory')));
      places.push(await page.evaluate(() => JSON.stringify(performance.getEntries().map(({ name }) => name))));
    }
    for (const secret of secrets) assert(places.every((place) => !place.includes(secret)));
    assert(places[0].includes('listening'), 'the log is empty');
  });

  await step('the browser console reports only that the server was away or refused a token', () => {
    assert.deepEqual(said.filter((text) => !NETWORK.test(text)), []);
    assert(said.some((text) => text.includes('401')), 'nothing is heard of the console');
  });
}

// The README's first promise, with no secret set: edits made while the server is down are there
// when it is up again.
async function stepsWithoutSecret(step, server, browser) {
  const said = [];
  let a, b, home;
  const tokenNow = async () => (await (await fetch(`${home}/console/session.json`)).json()).token;
  const dataNow = async () => {
    const headers = { Authorization: `Bearer ${await tokenNow()}` };
    return (await (await fetch(`${home}/v1/workspaces/demo`, { headers })).json()).data;
  };
  const restartWithAnotherSecret = async () => {
    await server.kill();
    fs.unlinkSync(`${server.data_dir}/dev-secret`);
  };

  await step('two windows, a key in one', async () => {
    await server.start();
    home = `http://127.0.0.1:${server.port}`;
    [a, b] = [await open(browser, home, said), await open(browser, home, said)];
    for (const page of [a, b]) await untilState(page, 'Synced');
    await add(a, 'x', '1');
    await untilRow(b, 'x', '1', 'other');
  });

  await step('edited while the server is killed and restarted: both pages are synced and have everything', async () => {
    await server.kill();
    for (const page of [a, b]) await untilState(page, 'Disconnected');
    await add(a, 'y', '"written while the server was down"');
    await server.start();
    for (const page of [a, b]) {
      await untilState(page, 'Synced');
      await until('the row of y', async () => (await readRow(page, 'y'))?.value, '"written while the server was down"');
    }
    assert.deepEqual(await dataNow(), { x: 1, y: 'written while the server was down' });
    const fresh = await open(browser, home, said);
    await untilRow(fresh, 'y', '"written while the server was down"', 'earlier');
    await fresh.context().close();
  });

  await step('a server with another secret: the page asks for its token, and nothing is lost', async () => {
    await restartWithAnotherSecret();
    for (const page of [a, b]) await untilState(page, 'Disconnected');
    await add(b, 'z', '2');
    await server.start();
    for (const page of [a, b]) {
      await untilState(page, 'Synced');
      await until('the row of z', async () => (await readRow(page, 'z'))?.value, '2');
    }
    assert.deepEqual((await dataNow()).z, 2);
  });

  // The page has no source from which to renew a token that was typed in.
  await step('a refused typed token: the page lists the unsaved edits', async () => {
    const typed = execFileSync(server.binary, ['token', '--sub', 'typed', '--jwt-secret-file', `${server.data_dir}/dev-secret`], { encoding: 'utf8' });
    await b.click('#toggle');
    await untilState(b, 'Disconnected');
    await b.fill('#token', typed.trim());
    await b.click('#toggle');
    await untilState(b, 'Synced');
    await restartWithAnotherSecret();
    await untilState(b, 'Disconnected');
    await add(b, 'kept', '"edit"');
    await add(b, 'x', '3');
    await server.start();
    await untilState(b, 'Error');
    assert.match(await b.textContent('#unsaved p'), /^2 edits may not be saved: kept = "edit", x = 3$/);
    await expectReadable(b);
    await until('the event', () => b.locator('#events li', { hasText: 'may not be saved' }).count(), 1);
  });

  await step('connected again, it offers unsaved edits and sends them on request', async () => {
    await b.fill('#token', await tokenNow());
    await b.click('#toggle');
    await untilState(b, 'Synced');
    assert.match(await b.textContent('#unsaved p'), /^2 edits may not be saved/);
    assert.equal((await dataNow()).kept, undefined, 'nothing is sent without being asked to');
    await b.getByRole('button', { name: 'Send now' }).click();
    for (const [key, value] of [['kept', '"edit"'], ['x', '3']]) {
      // This page reconnects at a different time, and may receive them with its init.
      await until(`the row of ${key}`, async () => (await readRow(a, key))?.value, value);
    }
    assert.equal(await b.locator('#unsaved').isVisible(), false);
  });

  await step('edits that were waiting on a disconnected page can be discarded', async () => {
    await server.kill();
    await untilState(b, 'Disconnected');
    await add(b, 'x', '"never"');
    await b.click('#toggle');
    // The page may not know yet whether the edits that were sent before are saved.
    await until('the offer', async () => /may not be saved: .*x = "never"$/.test(await b.textContent('#unsaved p')), true);
    await b.getByRole('button', { name: 'Discard' }).click();
    assert.equal(await b.locator('#unsaved').isVisible(), false);
    await server.start();
    await b.click('#toggle');
    for (const page of [a, b]) await untilState(page, 'Synced');
    await until('the row of x', async () => (await readRow(b, 'x'))?.value, '3');
    assert.equal((await dataNow()).x, 3);
  });

  await step('neither the secret nor a token is in the log', async () => {
    const log = fs.readFileSync(server.log_path, 'utf8');
    assert(log.includes('dev-secret'), 'the log names the file');
    for (const secret of [fs.readFileSync(`${server.data_dir}/dev-secret`, 'utf8').trim(), await tokenNow()]) assert(!log.includes(secret));
    assert.deepEqual(said.filter((text) => !NETWORK.test(text)), []);
  });
}

async function main() {
  const [, executablePath] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: QUIET });
  const timed = (step) => (what, body) => step(what, () => within(60_000, what, Promise.resolve().then(body)));
  try {
    await play('console', ['--dev'], (step, server) => steps(timed(step), server, browser));
    await play('console', ['--dev'], (step, server) => stepsWithoutSecret((what, body) => timed(step)(`without a secret: ${what}`, body), server, browser), null);
  } finally {
    await browser.close();
  }
}

main();
