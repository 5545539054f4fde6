// One `etherply serve` process for a story, with its own temporary data directory and secret, on a
// free port.
'use strict';

const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const SECRET = 'a secret of the client tests, 32+ bytes long';
const START_MS = 10_000;

// Each server flag is also an environment variable, so variables that are set outside must not
// reach the server.
function environment(secret) {
  const kept = Object.entries(process.env).filter(([name]) => name !== 'PORT' && !name.startsWith('ETHERPLY_'));
  return { ...Object.fromEntries(kept), ...(secret !== null && { ETHERPLY_JWT_SECRET: secret }) };
}

class Server {
  // Without a secret (null), the server has to generate one.
  constructor(binary, flags = [], secret = SECRET) {
    this.binary = binary;
    this.flags = flags;
    this.secret = secret;
    this.port = 0;
    this.home = fs.mkdtempSync(path.join(os.tmpdir(), 'etherply-clients-'));
    this.data_dir = path.join(this.home, 'data');
    this.log_path = path.join(this.home, 'stderr');
    // Neither a failed story nor a signal leaves a server or a folder behind.
    process.on('exit', () => {
      this.child?.kill('SIGKILL');
      fs.rmSync(this.home, { recursive: true, force: true });
    });
    for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));
  }

  // Resolves once the server listens. The first start picks a free port; later ones reuse it.
  async start() {
    const errors = this.log_path;
    const stderr = fs.openSync(errors, 'a');
    const flags = ['--host', '127.0.0.1', '--port', this.port, '--data-dir', this.data_dir, '--shards', 2, ...this.flags];
    const child = spawn(this.binary, ['serve', ...flags.map(String)], {
      env: environment(this.secret),
      stdio: ['ignore', 'pipe', stderr],
    });
    fs.closeSync(stderr);
    this.child = child;
    this.exited = new Promise((resolve) => child.once('exit', resolve).once('error', resolve));

    const line = await new Promise((resolve, reject) => {
      const fail = (why) => reject(new Error(`the server ${why}; its stderr: ${fs.readFileSync(errors, 'utf8').trim()}`));
      const timer = setTimeout(() => fail(`printed no line in ${START_MS} ms`), START_MS);
      let seen = '';
      child.once('error', (error) => fail(`did not start: ${error.message}`));
      child.once('exit', (code, signal) => fail(`ended with ${code ?? signal} before it listened`));
      // The listener stays attached, so that the pipe never fills up.
      child.stdout.on('data', (bytes) => {
        seen += bytes;
        if (!seen.includes('\n')) return;
        clearTimeout(timer);
        resolve(seen.slice(0, seen.indexOf('\n')));
      });
    });
    const port = /^listening on 127\.0\.0\.1:(\d+)$/.exec(line)?.[1];
    if (!port) throw new Error(`the first line of the server is not "listening on 127.0.0.1:PORT": ${line}`);
    this.port = Number(port);
  }

  // Ends the process with SIGKILL, without any close frames, as in a power cut.
  async kill() {
    this.child?.kill('SIGKILL');
    await this.exited;
  }

  token(secret = SECRET) {
    return execFileSync(this.binary, ['token', '--sub', 'client-test'], { env: environment(secret), encoding: 'utf8' }).trim();
  }

  url(token) {
    const query = token === undefined ? '' : `?token=${encodeURIComponent(token)}`;
    return `ws://127.0.0.1:${this.port}/v1/sync/workspace-123${query}`;
  }
}

module.exports = { Server };
