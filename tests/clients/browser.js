// Starts Chromium without a display and without background traffic to other hosts.
'use strict';

const QUIET = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

module.exports = { QUIET };
