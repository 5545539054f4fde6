// The console page. All content from a workspace is inserted as text, never as markup.
import { connect } from "/client.mjs";

const ROWS_MAX = 300;
const EVENTS_MAX = 100;
const SAMPLES_MAX = 60;
const POLL_MS = 1000;
const ECHO_MS = 2000;
const PEERS_MAX = 30;
/** The server's messages at the beginning of a connection. */
const SENT = {
  first: "sent the state",
  resumed: "sent what changed meanwhile",
  other_generation: "sent the whole state, since it has another history than this page",
  too_old: "sent the whole state, since this page was away for too long",
};
const WHO = { self: "you", other: "other", init: "earlier" };

const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const timeOf = (timestamp_us) => {
  const date = new Date(timestamp_us / 1000);
  const time = `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
  return date.toDateString() === new Date().toDateString() ? time : date.toISOString().slice(0, 10);
};
const durationOf = (us) => (us < 1000 ? `${Math.round(us)} µs` : us < 1e6 ? `${(us / 1000).toFixed(us < 1e4 ? 1 : 0)} ms` : `${(us / 1e6).toFixed(1)} s`);
const countOf = (count) => (count < 10 && count % 1 ? count.toFixed(1) : Math.round(count).toLocaleString("en"));
const shorten = (text, length_max) => (text.length > length_max ? `${text.slice(0, length_max)}…` : text);

/** Parses input as JSON, or returns it as text if it is not JSON. */
function parseValue(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// ---- events ----

/** The events that have not been drawn yet, oldest first. */
const news = [];

function tell(who, kind, ...parts) {
  news.push({ told_us: Date.now() * 1000, who, kind, parts });
  if (news.length > EVENTS_MAX) news.shift();
  drawSoon();
}

function drawNews() {
  for (const { told_us, who, kind, parts } of news.splice(0)) {
    at("events").prepend(make("li", {}, make("time", {}, timeOf(told_us)), make("span", { class: `by ${kind}` }, who), make("p", {}, ...parts)));
  }
  while (at("events").children.length > EVENTS_MAX) at("events").lastChild.remove();
}

const code = (text) => make("code", {}, text);

function tellChange({ key, value, timestamp, source, over }) {
  const became = value === undefined ? [" deleted"] : [" = ", code(shorten(JSON.stringify(value), 120))];
  const parts = [code(shorten(key, 60)), ...became];
  if (over) {
    const newer_us = timestamp - over.timestamp;
    const by = newer_us === 0 ? "came first" : `newer by ${durationOf(newer_us)}`;
    parts.push(" ", make("span", { class: "lost" }, "overrode yours: "), code(shorten(JSON.stringify(over.value) ?? "a delete", 60)), ` (${by})`);
  }
  tell(WHO[source], source, ...parts);
}

// ---- the state ----

let room;
/** For each key: its known state, and its row once it has one. */
const entries = new Map();
const changed = new Set();
const keyCountOf = (keys) => (keys === 1 ? "1 key" : `${keys} keys`);

/** The keys that have a row, in sorted order. */
let shown = [];
let will_draw = false;

function note({ key, value, timestamp, source }) {
  if (value === undefined) entries.get(key)?.row?.remove();
  if (value === undefined) entries.delete(key);
  else entries.set(key, { ...entries.get(key), value, timestamp, source });
  changed.add(key);
  drawSoon();
}

/** Schedules a redraw, at most one per frame regardless of how many ops arrive. */
function drawSoon() {
  if (!will_draw) requestAnimationFrame(draw);
  will_draw = true;
}

function draw() {
  will_draw = false;
  drawNews();
  drawSaved();
  for (const key of changed) {
    const entry = entries.get(key);
    if (!entry) shown = shown.filter((other) => other !== key);
    else drawRow(key, entry);
  }
  changed.clear();
  at("keys-count").textContent = keyCountOf(entries.size);
  at("empty").hidden = entries.size > 0;
  at("more").hidden = entries.size <= shown.length;
  at("more").textContent = `and ${entries.size - shown.length} more keys, not shown here`;
}

function drawRow(key, entry) {
  if (!entry.row) {
    if (shown.length >= ROWS_MAX) return;
    entry.row = makeRow(key);
    const place = shown.findIndex((other) => other > key);
    at("rows").insertBefore(entry.row, place < 0 ? null : entries.get(shown[place]).row);
    shown.splice(place < 0 ? shown.length : place, 0, key);
  }
  const [, value, written, by] = entry.row.children;
  const button = value.firstChild;
  if (button.tagName === "BUTTON") fill(button, entry.value);
  written.textContent = entry.timestamp > 0 ? timeOf(entry.timestamp) : "–";
  by.replaceChildren(make("span", { class: `by ${entry.source}` }, WHO[entry.source]));
  if (entry.source !== "init" && entry.flashed !== entry.timestamp) flash(entry.row);
  entry.flashed = entry.timestamp;
}

function fill(button, value) {
  button.className = `value ${value === null ? "null" : typeof value}`;
  button.textContent = shorten(JSON.stringify(value), 2000);
}

function flash(row) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const { color } = getComputedStyle(row.querySelector(".by"));
  row.animate([{ backgroundColor: `color-mix(in srgb, ${color} 28%, transparent)` }, { backgroundColor: "transparent" }], 1100);
}

function makeRow(key) {
  const button = make("button", { type: "button", class: "value", "aria-label": `Edit ${key}` });
  button.addEventListener("click", () => edit(key, button));
  const remove = make("button", { type: "button", class: "delete", "aria-label": `Delete ${key}`, title: `Delete ${key}` }, "×");
  remove.addEventListener("click", () => deleteKey(key));
  return make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, key),
    make("td", { role: "cell" }, button),
    make("td", { role: "cell" }),
    make("td", { role: "cell" }),
    make("td", { role: "cell" }, remove));
}

/** Deletes a key. The focus moves to the next row's button, so that keyboard users can continue. */
function deleteKey(key) {
  const { row } = entries.get(key);
  const next = row.nextElementSibling ?? row.previousElementSibling;
  if (!attempt(() => room.delete(key))) return;
  (next?.querySelector(".delete") ?? at("key")).focus();
}

/** Replaces a value with an input field. Enter or leaving the field writes a change; Escape does not. */
function edit(key, button) {
  const before = JSON.stringify(entries.get(key).value);
  const input = make("input", { "aria-label": `Value of ${key}`, spellcheck: "false", autocapitalize: "off" });
  input.value = before;
  let has_left = false;
  showEditing(key);
  const leave = (writes, keeps_focus) => {
    // Removing the field from the page makes it lose focus, which calls this function again.
    if (has_left) return;
    has_left = true;
    showEditing(null);
    const text = input.value;
    input.replaceWith(button);
    if (entries.has(key)) fill(button, entries.get(key).value);
    if (writes && text !== before) write(key, text);
    if (keeps_focus) button.focus();
  };
  input.addEventListener("blur", () => leave(true, false));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    // The button gets the focus, and the same Enter would press it.
    event.preventDefault();
    leave(event.key === "Enter", true);
  });
  button.replaceWith(input);
  input.select();
}

const write = (key, text) => attempt(() => room.set(key, parseValue(text)));

/** Makes an edit, and shows the reason if it fails. */
function attempt(makeEdit) {
  try {
    if (!room) throw new Error("connect first");
    if (room.state === "Synced") say("");
    refusal = "";
    makeEdit();
    return true;
  } catch (error) {
    say(error.message, true);
    return false;
  }
}

at("add").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!write(at("key").value, at("value").value)) return;
  at("add").reset();
  at("key").focus();
});

// ---- presence ----

/** Shows the other peers which key this page is editing. */
function showEditing(key) {
  if (room && room.state !== "Error") room.setPresence({ editing: key });
}

function drawPeers() {
  // Presence is unknown while there is no connection.
  const peers = room && room.status !== "offline" ? room.peers : [];
  at("here").hidden = peers.length === 0;
  at("peers").replaceChildren(...peers.slice(0, PEERS_MAX).map(({ connection, user, value, is_self }) => {
    const name = shorten(user ?? "anonymous", 40);
    const editing = typeof value?.editing === "string" ? [" edits ", code(shorten(value.editing, 40))] : [];
    const attributes = { class: `peer${is_self ? " self" : ""}`, title: `connection ${connection}` };
    return make("li", attributes, is_self ? `${name} (you)` : name, ...editing);
  }));
  if (peers.length > PEERS_MAX) at("peers").append(make("li", { class: "muted" }, `and ${peers.length - PEERS_MAX} more`));
}

// ---- the connection ----

/** Shows whether the server has every edit of this page. */
function drawSaved() {
  const { status = "offline", pending = 0 } = room ?? {};
  const text = { offline: pending > 0 ? `${pending} waiting` : "–", syncing: "…", saving: `saving ${pending}`, saved: "saved" }[status];
  if (at("saved").textContent !== text) at("saved").textContent = text;
  at("saved").className = status;
}

function say(text, is_bad = false) {
  at("told").textContent = text;
  at("told").classList.toggle("bad", is_bad);
}

/** The last refusal by the server, until the next edit. */
let refusal = "";
/** The last state other than a connection attempt. */
let told_state = "Disconnected";

/** Shows the unsaved edits of a room that has ended, which the next one may send. */
function showUnsaved() {
  const edits = (room ?? left)?.unsaved ?? [];
  at("unsaved").hidden = edits.length === 0;
  if (edits.length === 0) return at("unsaved").replaceChildren();
  const buttons = { "Send now": restore, Discard: () => (room ?? left).discard() };
  at("unsaved").replaceChildren(make("p", {}, unsavedText(edits)), ...Object.entries(buttons).map(([name, act]) => {
    const button = make("button", { type: "button", class: name === "Discard" ? "quiet" : "" }, name);
    button.addEventListener("click", () => {
      act();
      showUnsaved();
    });
    return button;
  }));
}

function unsavedText(edits) {
  const shown = edits.slice(0, 5).map(({ key, value }) => `${shorten(key, 60)} = ${shorten(JSON.stringify(value), 60)}`);
  const more = edits.length > 5 ? ` and ${edits.length - 5} more` : "";
  return `${edits.length === 1 ? "1 edit" : `${edits.length} edits`} may not be saved: ${shown.join(", ")}${more}`;
}

function restore() {
  if (!room || room.state === "Error") join();
  room.restore();
}

function showState({ state, reason, retry_ms, unsaved, why }) {
  for (const item of at("states").children) {
    if (item.dataset.state === state) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  }
  const waiting = ["", " 1 edit is pending."][room?.pending ?? 0] ?? ` ${room.pending} edits are pending.`;
  if (state === "Synced") say(refusal, true);
  else if (retry_ms !== undefined) say(`${reason}; retrying in ${durationOf(retry_ms * 1000)}.${waiting}`);
  else if (reason) say(reason, state === "Error");
  if (unsaved?.length > 0) tell("server", "init", make("span", { class: "bad" }, unsavedText(unsaved)));
  if (state === "Synced") tell("server", "init", `${SENT[why] ?? SENT.first} (${keyCountOf(room.entries().length)} now)`);
  if (state === "Error" || (state === "Disconnected" && told_state !== "Disconnected" && reason)) tell("server", "init", make("span", { class: "bad" }, `${state}: ${reason}`));
  if (state !== "Synced") at("round-trip").textContent = "–";
  if (state !== "Connecting") told_state = state;
  setLive(room !== undefined && state !== "Error");
  showUnsaved();
}

function setLive(is_live) {
  at("toggle").textContent = is_live ? "Disconnect" : "Connect";
  at("toggle").classList.toggle("quiet", is_live);
}

/** The previous room, which has ended. */
let left;

function leave() {
  left = room ?? left;
  room = undefined;
  left?.close();
  entries.clear();
  shown = [];
  changed.clear();
  news.length = 0;
  at("rows").replaceChildren();
  at("events").replaceChildren();
  drawPeers();
  draw();
}

/** Fetches the session that a server with --dev provides to pages on its own machine. */
const askSession = () => fetch("/console/session.json", { cache: "no-store" }).then((answer) => (answer.ok ? answer.json() : {}));

/** The token most recently received from the session. */
let session_token;

/** Fetches the token before each connect, because a restarted server may have a different secret. */
async function renewToken() {
  const { token = session_token } = await askSession();
  if (at("token").value === session_token) at("token").value = token;
  return (session_token = token);
}

function join() {
  leave();
  const [workspace, token] = [at("workspace").value, at("token").value.trim()];
  // The address contains the workspace, so that it can be opened again, but never the token.
  history.replaceState(null, "", `#${encodeURIComponent(workspace)}`);
  document.title = `${workspace} · EtherPly`;
  at("twin").href = `#${encodeURIComponent(workspace)}`;
  const asked = token === session_token ? renewToken : token;
  // The server that serves this page speaks version 2, in which no URL contains the token.
  const joined = (room = connect({ workspace, presence: true, version: 2, token: asked }));
  const whileJoined = (handle) => (event) => room === joined && handle(event);
  room.on("state", whileJoined(showState));
  room.on("status", whileJoined(() => {
    drawSoon();
    drawPeers();
  }));
  room.on("presence", whileJoined(drawPeers));
  room.on("error", whileJoined(({ code: number, message }) => {
    tell("server", "init", make("span", { class: "bad" }, `refused (${number}): ${message}`));
    refusal = message;
    say(message, true);
  }));
  room.on("change", whileJoined((change) => {
    note(change);
    // Of a complete state, show only the entries that this page's edits lost to.
    if (change.source !== "init" || change.over) tellChange(change);
  }));
}

at("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  if (at("toggle").textContent === "Connect") return join();
  left = room;
  left.close();
  room = undefined;
  setLive(false);
  showUnsaved();
  drawPeers();
  drawSoon();
});

setInterval(async () => {
  if (document.hidden || room?.state !== "Synced") return;
  const asked = room;
  const took_ms = await asked.echo();
  if (room === asked && took_ms !== undefined) at("round-trip").textContent = durationOf(took_ms * 1000);
}, ECHO_MS);

// ---- the server's statistics ----

const PLOTS = {
  ops: { per_second: "ops", text: (shards) => countOf(sum(shards, "ops")) },
  deliveries: { per_second: "deliveries", text: (shards) => countOf(sum(shards, "deliveries")) },
  connections: { text: (shards) => countOf(sum(shards, "connections")) },
  sync: {
    lines: ["sync_us_p99", "sync_us_p50"],
    format: durationOf,
    text: (shards) => {
      const most = (name) => Math.max(...shards.map((shard) => shard[name] ?? 0));
      return sum(shards, "sync_count") > 0 ? `${durationOf(most("sync_us_p50"))} · ${durationOf(most("sync_us_p99"))}` : "none";
    },
  },
};
const sum = (shards, name) => shards.reduce((total, shard) => total + (shard[name] ?? 0), 0);

/** One sample per second: an object for each shard, with its counters converted to rates per second. */
let samples = [];
let before;

function take({ uptime_us, shards }) {
  const took_us = uptime_us - before?.uptime_us;
  // A restarted server counts from zero.
  const is_next = took_us > 0 && before.shards.length === shards.length;
  if (is_next) {
    const rate = (name, i) => Math.max(0, shards[i][name] - before.shards[i][name]) / (took_us / 1e6);
    samples.push(shards.map((shard, i) => ({ ...shard, ops: rate("ops", i), deliveries: rate("deliveries", i) })));
    samples = samples.slice(-SAMPLES_MAX);
  }
  before = { uptime_us, shards };
  const workspaces_count = sum(shards, "workspaces");
  at("uptime").textContent = `up ${upFor(uptime_us / 1e6)} · ${countOf(workspaces_count)} workspace${workspaces_count === 1 ? "" : "s"}`;
  if (at("legend").children.length !== shards.length) {
    at("legend").replaceChildren(...shards.map((_, i) => make("li", { class: `s${i % 8}` }, `shard ${i}`)));
  }
  if (is_next) for (const figure of at("plots").children) plot(figure, PLOTS[figure.dataset.plot]);
}

const upFor = (s) => (s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min` : s < 86400 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`);

function plot(figure, { lines = [figure.dataset.plot], format = countOf, text }) {
  const newest = samples.at(-1);
  const most = Math.max(1, ...samples.flat().flatMap((shard) => lines.map((line) => shard[line] ?? 0)));
  figure.querySelector("output").textContent = text(newest);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${SAMPLES_MAX - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `the last minute, at most ${format(most)} on a shard`);
  newest.forEach((_, shard) => lines.forEach((line, i) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const points = samples.map((sample, t) => `${SAMPLES_MAX - samples.length + t},${(100 - (92 * (sample[shard]?.[line] ?? 0)) / most).toFixed(1)}`);
    drawn.setAttribute("class", `s${shard % 8}${i > 0 ? " thin" : ""}`);
    drawn.setAttribute("points", points.join(" "));
    svg.append(drawn);
    if (i > 0) return;
    const area = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    area.setAttribute("class", `s${shard % 8}`);
    area.setAttribute("points", `${SAMPLES_MAX - samples.length},100 ${points.join(" ")} ${SAMPLES_MAX - 1},100`);
    svg.prepend(area);
  }));
  figure.replaceChildren(figure.querySelector("figcaption"), make("span", { class: "top", "aria-hidden": "true" }, format(most)), svg);
}

async function poll() {
  if (document.hidden || (room && told_state === "Disconnected")) return;
  try {
    const answer = await fetch("/console/stats.json", { cache: "no-store" });
    if (answer.ok) take(await answer.json());
  } catch {
    before = undefined;
    at("uptime").textContent = "not responding";
  }
}

// ---- startup ----

function workspaceInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

async function start() {
  const session = await askSession().catch(() => ({}));
  session_token = session.token;
  at("workspace").value = workspaceInAddress() || session.workspace || "demo";
  at("token").value = session.token ?? "";
  at("snippet").textContent = `import { connect } from "${location.origin}/client.mjs";

const room = connect({ workspace: "demo", token: "…" });
room.on("change", ({ key, value, source }) => console.log(source, key, value));
room.set("title", "hello");
await room.saved();
room.delete("title");`;
  showState({ state: "Disconnected" });
  if (session.token) join();
  else at("token").focus();
}

setInterval(poll, POLL_MS);
poll();
start();
