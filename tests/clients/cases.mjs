// Code shared by the tests of the client module: clients in a simulated world, and the runner.
import assert from 'node:assert/strict';

import { connect } from '../../src/admin/client.mjs';

export const FOR_EVER_MS = Infinity;

// A client in a world, with a record of everything that it reports.
export function join(world, { token = 'good', clock, host, ...options } = {}) {
  const room = connect(
    { url: 'http://server', workspace: 'w', token, ...options },
    { ...world.host(clock), ...host },
  );
  const heard = { change: [], state: [], error: [], status: [], presence: [], cast: [] };
  for (const name of Object.keys(heard)) room.on(name, (event) => heard[name].push(event));
  return Object.assign(room, { heard, states: () => heard.state.map(({ state }) => state) });
}

export async function synced(world, ...rooms) {
  const is_done = () => rooms.every(({ state }) => state === 'Synced');
  assert(await world.run(FOR_EVER_MS, is_done), 'never synced');
}

export async function settled(world, ...rooms) {
  const is_done = () => rooms.every(({ state, pending }) => state === 'Synced' && pending === 0);
  assert(await world.run(FOR_EVER_MS, is_done), 'never settled');
}

export const shownBy = (room) => Object.fromEntries(room.entries());

// Runs the cases in order and prints a line for each; with SEED, runs only the random stories.
export async function runCases(module, cases) {
  process.exitCode = 1;
  let failed_count = 0;
  const is_wanted = (what) => process.env.SEED === undefined || what.startsWith('random stories');
  for (const [what, run] of Object.entries(cases).filter(([name]) => is_wanted(name))) {
    try {
      await run();
      console.log(`ok - ${module}: ${what}`);
    } catch (error) {
      failed_count += 1;
      const lines = error.message.split('\n').slice(0, 30);
      console.log(`not ok - ${module}: ${what}: ${lines.join(' ')}`);
      if (process.env.SEED) console.log(error.stack);
    }
  }
  process.exitCode = failed_count === 0 ? 0 : 1;
}

// Runs a story for each of these seeds, or for the one in the environment variable SEED.
export async function runSeeds(count, story) {
  const all = Array.from({ length: count }, (_, seed) => seed);
  for (const seed of process.env.SEED === undefined ? all : [Number(process.env.SEED)]) {
    try {
      await story(seed);
    } catch (error) {
      error.message = `SEED=${seed}: ${error.message}`;
      throw error;
    }
  }
}
