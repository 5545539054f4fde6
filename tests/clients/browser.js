// How Chromium is started: without a display, and without a word to hosts that nobody asked for.
'use strict';

const QUIET = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

module.exports = { QUIET };
