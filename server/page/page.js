/* SPDX-License-Identifier: Apache-2.0
 *
 * The status page: a client of the API like any other, with what the key in this tab may see and nothing else.
 *
 * All that belongs to a key hangs off one `session`: rows, pictures, streams, and every request under way. Another key
 * means another session; the old one is aborted and dropped whole, and what still comes back for it is ignored. So
 * nothing of one tenant is ever shown under the key of another.
 *
 * The list is polled. Running videos that can be seen are followed through server-sent events as well, a few at a
 * time. Text from the server becomes text in the page, never markup. */

import { STREAMS_MAX, dataUrl, eventsOf, inSlot, isPicture, parseJson, randomKey, sleep } from "./wire.js";
import {
  STATES,
  brief,
  bytes,
  factsOf,
  isFinal,
  isNumber,
  joined,
  metaText,
  moment,
  number,
  parseDevices,
  parseGroups,
  progressText,
  stateOf,
  waitText,
} from "./words.js";

const PAGE_VIDEOS = 20;
const THUMBNAILS_KEPT = 100;
const POLL_MS = { busy: 2000, quiet: 5000, hidden: 30000, longest: 60000 };
const FIGURES_MS = 4000;
const DEVICES_MS = 8000;
const ARMED_MS = 4000; // a second press within this time does what the first one asked about
const REQUEST_MS = 20000;
const KEY = "kinora.key";

const byId = (id) => document.getElementById(id);
const form = byId("form");
let session;

/* Everything that was shown or asked for under the present key goes. */
function wipe() {
  session?.abort.abort();
  closeViewer();
  sight.disconnect();
  form.reset();
  clearErrors();
  byId("list").replaceChildren();
  byId("device-list").replaceChildren();
  byId("model").replaceChildren(byId("model").options[0]);
  for (const id of ["devices", "pages", "empty"]) byId(id).hidden = true;
  for (const id of ["list-note", "form-note", "announce"]) setText(byId(id), "");
  for (const name of ["running", "queued", "wait", "devices"]) setText(byId(`figure-${name}`), "–");
}

function begin(key) {
  wipe();
  session = {
    key,
    abort: new AbortController(),
    rows: new Map(), // id -> row, in the list's order
    after: [], // where each page behind the first one begins: the last id of the page before
    more: false,
    streams: new Map(), // id -> AbortController
    thumbnails: new Map(), // id -> data URL, "" where there is none
    locked: false, // the key was refused; another one is asked for
    polling: false,
    again: false,
    failures: 0,
    retryMs: 0,
    due: { figures: 0, devices: 0, models: 0 },
    busy: new Map(), // device -> busy seconds and when they were read
    submission: null, // the body last sent and its idempotency key, until it is known to have arrived
  };
  byId("forget").hidden = !key;
  poll();
}

/* ---- requests ---- */

class Refusal extends Error {
  constructor(response, body) {
    super(body?.error?.message ?? `The server answered ${response.status}.`);
    this.status = response.status;
    this.param = body?.error?.param ?? null;
    this.retryMs = 1000 * Number(response.headers.get("retry-after") ?? 0);
  }
}

/* Rejects when the server cannot be reached, and when the session has ended meanwhile. */
function request(method, path, { headers = {}, body, signal, limit = REQUEST_MS } = {}) {
  const signals = [session.abort.signal];
  if (signal) signals.push(signal);
  if (limit) signals.push(AbortSignal.timeout(limit));
  const all = { ...headers };
  if (session.key) all.Authorization = `Bearer ${session.key}`;
  return fetch(path, { method, headers: all, body, cache: "no-store", signal: AbortSignal.any(signals) });
}

async function json(method, path, options) {
  const mine = session;
  const response = await request(method, path, options);
  const text = await response.text();
  if (mine !== session) throw new DOMException("asked under another key", "AbortError");
  let body = null;
  try {
    body = parseJson(text);
  } catch {
    // Not ours: a proxy's page, say. The status tells enough.
  }
  if (response.ok && body) return body;
  throw new Refusal(response, body);
}

const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text; // no change, no work for whoever reads the page aloud
};

function announce(text) {
  setText(byId("announce"), text);
}

/* ---- figures and devices ---- */

async function readReadiness() {
  const response = await request("GET", "readyz");
  const body = await response.json().catch(() => ({}));
  const node = byId("ready");
  node.dataset.state = response.ok ? "good" : "bad";
  setText(node, response.ok ? "Ready" : `Not ready${body.reason ? `: ${body.reason}` : ""}`);
}

function showUnreachable() {
  byId("ready").dataset.state = "bad";
  setText(byId("ready"), "Unreachable");
}

async function readFigures() {
  const stats = await json("GET", "v1/queue/stats");
  setText(byId("figure-running"), String(stats.running));
  setText(byId("figure-queued"), String(stats.queued));
  setText(byId("figure-wait"), isNumber(stats.estimated_wait_seconds) ? waitText(stats.estimated_wait_seconds) : "–");
  setText(byId("figure-devices"), `${stats.devices_ready} of ${stats.devices}`);
}

async function readDevices() {
  const response = await request("GET", "metrics", { headers: { Accept: "text/plain" } });
  if (!response.ok) throw new Refusal(response, null);
  const text = await response.text();
  const devices = parseDevices(text);
  const groups = parseGroups(text);
  byId("devices").hidden = devices.size === 0;
  const items = [...devices].map(([name, figures]) => deviceItem(name, figures, groups.get(name)));
  byId("device-list").replaceChildren(...items);
}

function deviceItem(name, figures, group) {
  const now = performance.now() / 1000;
  const before = session.busy.get(name);
  const seconds = figures.device_busy_seconds_total;
  session.busy.set(name, { seconds, at: now });
  const ready = figures.device_ready > 0;
  const parts = [ready ? "ready" : "not ready"];
  if (before && seconds >= before.seconds)
    parts.push(`${Math.min(100, Math.round((100 * (seconds - before.seconds)) / (now - before.at)))} % busy`);
  if (figures.device_memory_total_bytes > 0)
    parts.push(`${bytes(figures.device_memory_used_bytes)} of ${bytes(figures.device_memory_total_bytes)}`);
  if (group)
    parts.push(
      group.leader === name
        ? `leads ${group.members} devices on ${group.model}`
        : `helps ${group.leader} on ${group.model}`,
    );
  const restarts = figures.worker_restarts_total;
  if (restarts > 0) parts.push(restarts === 1 ? "1 restart" : `${restarts} restarts`);
  const item = document.createElement("li");
  item.dataset.state = ready ? "good" : "bad";
  const label = document.createElement("b");
  label.textContent = name;
  const text = document.createElement("span");
  text.textContent = joined(parts);
  item.append(label, text);
  return item;
}

async function readModels() {
  const models = (await json("GET", "v1/models")).data.map((model) => model.id);
  const select = byId("model");
  const there = [...select.options].slice(1).map((option) => option.value);
  if (models.join("\n") === there.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...models.map((id) => new Option(id, id)));
  select.value = models.includes(chosen) ? chosen : "";
}

/* What a key may not see, or a server does not offer, leaves its place empty; the list decides about the key. */
async function readWhenDue(name, every, read) {
  if (performance.now() < session.due[name]) return;
  const mine = session;
  mine.due[name] = performance.now() + every;
  try {
    await read();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    mine.due[name] = performance.now() + Math.max(60000, error.retryMs);
  }
}

/* ---- list ---- */

async function readList() {
  const mine = session;
  const after = mine.after.at(-1);
  let page;
  try {
    page = await json("GET", `v1/videos?limit=${PAGE_VIDEOS}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
  } catch (error) {
    if (!(error instanceof Refusal) || error.status !== 400 || !after) throw error;
    mine.after = []; // the video this page began behind was deleted
    mine.again = true;
    return;
  }
  if (mine !== session || mine.after.at(-1) !== after) return;
  mine.more = page.has_more;
  showList(page.data);
}

/* The video in the viewer, once newer ones have pushed it off the page. */
async function readViewed() {
  const row = viewed;
  if (!row || session.rows.has(row.id) || isFinal(row.video)) return;
  try {
    update(row, await json("GET", `v1/videos/${row.id}`));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
  }
}

function showList(videos) {
  const list = byId("list");
  const gone = new Set(session.rows.keys());
  const rows = new Map();
  videos.forEach((video, index) => {
    gone.delete(video.id);
    const row = session.rows.get(video.id) ?? makeRow(video);
    rows.set(video.id, row);
    update(row, video);
    if (list.children[index] !== row.node) list.insertBefore(row.node, list.children[index] ?? null);
  });
  for (const id of gone) removeRow(session.rows.get(id));
  session.rows = rows;
  byId("empty").hidden = videos.length > 0;
  const page = session.after.length;
  byId("pages").hidden = page === 0 && !session.more;
  byId("newer").disabled = page === 0;
  byId("older").disabled = !session.more;
  setText(byId("list-note"), page > 0 ? `page ${page + 1}, newest first` : videos.length > 1 ? "newest first" : "");
  byId("desk").hidden = false;
  byId("gate").hidden = true;
  followSeen();
}

function makeRow(video) {
  const node = byId("row").content.firstElementChild.cloneNode(true);
  const part = (selector) => node.querySelector(selector);
  const row = {
    id: video.id,
    video,
    node,
    state: "",
    step: null,
    seen: false,
    picture: part("img"),
    frame: part(".frame"),
    prompt: part(".prompt"),
    chip: part(".chip"),
    meta: part(".meta"),
    progress: part(".progress"),
    bar: part("progress"),
    progressText: part(".progress-text"),
    trouble: part(".trouble"),
    open: part(".open"),
    cancel: part(".cancel"),
    delete: part(".delete"),
  };
  row.prompt.id = `prompt-${video.id}`;
  row.prompt.textContent = video.prompt ?? "";
  for (const button of [row.open, row.cancel, row.delete]) button.setAttribute("aria-describedby", row.prompt.id);
  row.bar.setAttribute("aria-labelledby", row.prompt.id);
  row.open.addEventListener("click", () => openViewer(row));
  row.frame.addEventListener("click", () => openViewer(row));
  twice(row.cancel, "Really cancel?", () => act(row, "POST", `v1/videos/${video.id}/cancel`));
  twice(row.delete, "Really delete?", () => act(row, "DELETE", `v1/videos/${video.id}`));
  sight.observe(node);
  rowOf.set(node, row);
  return row;
}

function removeRow(row) {
  const focused = row.node.contains(document.activeElement);
  const next = row.node.nextElementSibling ?? row.node.previousElementSibling;
  sight.unobserve(row.node);
  row.node.remove();
  if (focused) (next?.querySelector(".open") ?? byId("videos")).focus();
}

/* A final state stays: an answer that was under way longer may still tell of the time before. */
function update(row, video) {
  if (isFinal(row.video) && !isFinal(video)) return;
  const before = row.state;
  row.video = video;
  row.state = stateOf(video);
  if (isFinal(video)) row.step = null;
  if (before && before !== row.state) announce(`${brief(video.prompt ?? video.id)}: ${STATES[row.state]}`);
  paint(row);
  if (row.state === "completed") wantThumbnail(row);
  if (viewed === row) paintViewer();
}

function paint(row) {
  const { video, state } = row;
  const live = state === "queued" || state === "running";
  row.node.dataset.state = state;
  setText(row.chip, STATES[state]);
  setText(row.meta, metaText(video));
  row.meta.title = moment(video.created_at);
  row.progress.hidden = !live;
  row.bar.hidden = state !== "running";
  if (live) {
    row.bar.value = video.progress;
    setText(row.progressText, progressText(row));
  }
  row.trouble.hidden = state !== "failed";
  setText(row.trouble.firstElementChild, video.error?.code ?? "");
  setText(row.trouble.lastElementChild, video.error?.message ?? "");
  setText(row.open, state === "completed" ? "Play" : "Details");
  row.cancel.hidden = !live;
  row.delete.hidden = live;
}

function showPicture(row, url) {
  row.picture.src = url;
  row.picture.hidden = false;
  if (viewed === row) paintViewer();
}

/* A button that asks again before it does what cannot be undone. */
function twice(button, question, action) {
  const label = button.textContent;
  let timer = 0;
  const disarm = () => {
    clearTimeout(timer);
    timer = 0;
    button.classList.remove("armed");
    setText(button, label);
  };
  button.addEventListener("click", () => {
    if (timer) {
      disarm();
      action();
      return;
    }
    button.classList.add("armed");
    setText(button, question);
    announce(`${question} Press again.`);
    timer = setTimeout(disarm, ARMED_MS);
  });
  button.addEventListener("blur", () => timer && disarm());
}

async function act(row, method, path) {
  const mine = session;
  row.cancel.disabled = row.delete.disabled = true;
  try {
    const answer = await json(method, path);
    if (mine === session && answer.object === "video") update(row, answer);
  } catch (error) {
    if (mine === session) announce(error instanceof Refusal ? error.message : "The server cannot be reached.");
    if (mine === session && error instanceof Refusal) showTrouble(row, error.message);
  }
  row.cancel.disabled = row.delete.disabled = false;
  if (mine !== session) return;
  const hidden = document.activeElement?.hidden && row.node.contains(document.activeElement);
  if (hidden || document.activeElement === document.body) row.open.focus();
  poll();
}

function showTrouble(row, message) {
  row.trouble.hidden = false;
  setText(row.trouble.firstElementChild, "");
  setText(row.trouble.lastElementChild, message);
}

/* ---- thumbnails: one request at a time, for rows that are seen ---- */

let fetchingThumbnail = false;

function wantThumbnail(row) {
  const known = session.thumbnails.get(row.id);
  if (known) showThumbnail(row, known);
  else if (known === undefined && row.seen) fetchThumbnails();
}

function showThumbnail(row, url) {
  if (row.picture.src !== url) showPicture(row, url);
}

async function fetchThumbnails() {
  if (fetchingThumbnail) return;
  fetchingThumbnail = true;
  const mine = session;
  const missing = () =>
    [...mine.rows.values()].find((row) => row.seen && row.state === "completed" && !mine.thumbnails.has(row.id));
  for (let row = missing(); row && mine === session; row = missing()) {
    let url = "";
    try {
      const response = await request("GET", `v1/videos/${row.id}/content?variant=thumbnail`);
      if (response.ok) url = await dataUrl(await response.blob());
      else if (response.status === 429 || response.status >= 500) break; // asked for again with the next list
    } catch {
      break;
    }
    if (mine !== session) break;
    mine.thumbnails.set(row.id, isPicture(url) ? url : "");
    if (mine.thumbnails.size > THUMBNAILS_KEPT) mine.thumbnails.delete(mine.thumbnails.keys().next().value);
    wantThumbnail(row);
  }
  fetchingThumbnail = false;
}

/* ---- server-sent events ---- */

const rowOf = new WeakMap(); // element -> row
const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const row = rowOf.get(entry.target);
    row.seen = entry.isIntersecting;
    if (row.seen && row.state === "completed") wantThumbnail(row);
  }
  followSeen();
});

function followSeen() {
  const running = document.hidden ? [] : [...session.rows.values()].filter((row) => row.state === "running");
  const wanted = running.filter((row) => row.seen || row === viewed).slice(0, STREAMS_MAX);
  for (const [id, stop] of session.streams) {
    if (wanted.some((row) => row.id === id)) continue;
    stop.abort();
    session.streams.delete(id);
  }
  for (const row of wanted) if (!session.streams.has(row.id)) follow(row);
}

async function follow(row) {
  const mine = session;
  const stop = new AbortController();
  const stream = { row, signal: AbortSignal.any([mine.abort.signal, stop.signal]), last: "", waitMs: 1000 };
  mine.streams.set(row.id, stop);
  /* One that has ended stays in mine.streams, and so is not begun again, for as long as the row says it runs. */
  while (!stream.signal.aborted && !(await inSlot(() => readStream(stream)))) {
    await sleep(stream.waitMs, stream.signal);
    stream.waitMs = Math.min(2 * stream.waitMs, 30000);
  }
}

/* True: nothing more will come. EventSource would do most of this, but cannot send a key. */
async function readStream(stream) {
  try {
    const headers = { Accept: "text/event-stream" };
    if (stream.last) headers["Last-Event-ID"] = stream.last;
    const path = `v1/videos/${stream.row.id}/events`;
    const response = await request("GET", path, { headers, signal: stream.signal, limit: 0 });
    if (!response.ok) {
      response.body?.cancel();
      return response.status < 500 && response.status !== 429;
    }
    for await (const event of eventsOf(response.body)) {
      if (event.data === "[DONE]") return true;
      stream.waitMs = 1000;
      if (event.id) stream.last = event.id;
      if (!stream.signal.aborted) apply(stream.row, parseJson(event.data));
    }
  } catch {
    // Broken off: it is taken up again, behind the last event.
  }
  return false;
}

function apply(row, event) {
  if (event.video) {
    update(row, event.video);
    if (isFinal(event.video)) poll();
  } else if (event.type === "video.progress") {
    const { progress, stage, eta_seconds } = event;
    row.step = { stage, index: event.step, count: event.steps };
    update(row, { ...row.video, progress, stage, eta_seconds });
  } else if (event.type === "video.preview" && isPicture(event.url)) {
    showPicture(row, event.url);
  }
}

/* ---- polling ---- */

let timer = 0;

async function poll() {
  const mine = session;
  if (mine.polling) {
    mine.again = true;
    return;
  }
  clearTimeout(timer);
  mine.polling = true;
  mine.again = false;
  try {
    await Promise.all([
      readList(),
      readViewed(),
      readReadiness(),
      readWhenDue("figures", FIGURES_MS, readFigures),
      readWhenDue("devices", DEVICES_MS, readDevices),
      readWhenDue("models", 60000, readModels),
    ]);
    mine.failures = mine.retryMs = 0;
  } catch (error) {
    if (mine !== session) return;
    failed(mine, error);
  }
  mine.polling = false;
  if (mine === session && !mine.locked) timer = setTimeout(poll, pause(mine));
}

function failed(mine, error) {
  mine.failures++;
  if (!(error instanceof Refusal)) {
    showUnreachable();
  } else if (error.status === 401) {
    lock(error.message);
  } else {
    mine.retryMs = error.retryMs;
    byId("desk").hidden = false;
    setText(byId("list-note"), error.message);
  }
}

function pause(mine) {
  if (mine.failures > 0) return Math.max(mine.retryMs, Math.min(POLL_MS.busy * 2 ** mine.failures, POLL_MS.longest));
  if (document.hidden) return POLL_MS.hidden;
  if (mine.again) return 0;
  return [...mine.rows.values()].some((row) => !isFinal(row.video)) ? POLL_MS.busy : POLL_MS.quiet;
}

/* ---- key ---- */

/* Asks for a key. */
function lock(message) {
  const refused = session.key !== "";
  sessionStorage.removeItem(KEY);
  wipe();
  session.locked = true;
  session.rows.clear();
  session.thumbnails.clear();
  byId("desk").hidden = true;
  byId("gate").hidden = false;
  byId("forget").hidden = true;
  showError(byId("key"), byId("key-error"), refused ? message : "");
  byId("key").focus();
}

byId("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!/^[\x21-\x7e]{1,200}$/.test(key)) {
    showError(byId("key"), byId("key-error"), "A key is one word of letters, digits and underscores.");
    byId("key").focus();
    return;
  }
  byId("key").value = "";
  showError(byId("key"), byId("key-error"), "");
  sessionStorage.setItem(KEY, key);
  begin(key);
});

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  byId("desk").hidden = true;
  begin("");
});

/* ---- form ---- */

function showError(control, node, message) {
  node.hidden = !message;
  setText(node, message);
  if (control && message) control.setAttribute("aria-invalid", "true");
  else control?.removeAttribute("aria-invalid");
}

function clearErrors() {
  for (const field of form.querySelectorAll("[data-param]"))
    showError(field.querySelector("input, textarea, select"), field.querySelector(".error"), "");
  showError(null, byId("form-error"), "");
}

/* Beside the field that the server names; below the form where it names none, or one that is not here. */
function showRefusal(refusal) {
  const fields = [...form.querySelectorAll("[data-param]")];
  const field = fields.find((one) => one.dataset.param.split(" ").includes(refusal.param));
  const control = field?.querySelector("input, textarea, select");
  showError(control, field?.querySelector(".error") ?? byId("form-error"), refusal.message);
  (control ?? byId("submit")).focus();
}

/* Numbers go as text, as they were typed: what they may be, and how a seed of 19 digits is read, is for the server. */
function readForm() {
  const body = { prompt: byId("prompt").value };
  const put = (name, id) => {
    const value = byId(id).value.trim();
    if (value) body[name] = value;
  };
  put("negative_prompt", "negative");
  put("model", "model");
  put("size", "size");
  put(byId("length-unit").value, "length");
  put("num_inference_steps", "steps");
  put("guidance_scale", "guidance");
  put("seed", "seed");
  put("service_tier", "tier");
  return JSON.stringify(body);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (byId("submit").disabled) return;
  const mine = session;
  const body = readForm();
  /* The same body again after a lost answer is the same submission: no second video. */
  if (mine.submission?.body !== body) mine.submission = { body, key: randomKey() };
  clearErrors();
  setText(byId("form-note"), "");
  byId("submit").disabled = true;
  try {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": mine.submission.key };
    const video = await json("POST", "v1/videos", { body, headers });
    if (mine !== session) return;
    mine.submission = null;
    mine.after = [];
    setText(byId("form-note"), `Queued: ${brief(video.prompt)}`);
    poll();
  } catch (error) {
    if (mine !== session) return;
    const known = error instanceof Refusal;
    if (known && error.status < 500) mine.submission = null;
    if (known && error.status === 401) lock(error.message);
    else showRefusal(known ? error : { param: null, message: "The server cannot be reached. Try again." });
  } finally {
    byId("submit").disabled = false;
  }
});

form.addEventListener("input", (event) => {
  const field = event.target.closest("[data-param]");
  if (field) showError(field.querySelector("input, textarea, select"), field.querySelector(".error"), "");
});

byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

/* ---- viewer ---- */

let viewed = null; // row
let loading = null; // AbortController of the video that comes
let playerUrl = "";

function openViewer(row) {
  closeViewer();
  viewed = row;
  setText(byId("viewer-prompt"), row.video.prompt ?? "");
  paintViewer();
  byId("viewer").showModal();
  followSeen();
}

function closeViewer() {
  if (byId("viewer").open) byId("viewer").close();
  else dropViewed();
}

/* Also when the dialog was closed with Escape. */
function dropViewed() {
  viewed = null;
  loading?.abort();
  loading = null;
  const player = byId("player");
  player.pause();
  player.removeAttribute("src");
  player.removeAttribute("poster");
  player.load();
  byId("download").removeAttribute("href");
  if (playerUrl) URL.revokeObjectURL(playerUrl);
  playerUrl = "";
  byId("viewer-picture").removeAttribute("src");
  byId("viewer-facts").replaceChildren();
  setText(byId("viewer-prompt"), "");
}

function paintViewer() {
  const { video, state, picture } = viewed;
  byId("viewer").dataset.state = state;
  setText(byId("viewer-chip"), STATES[state]);
  const facts = factsOf(video);
  const list = byId("viewer-facts");
  if (facts.length * 2 !== list.children.length)
    list.replaceChildren(...facts.flatMap(() => [document.createElement("dt"), document.createElement("dd")]));
  facts.flat().forEach((text, index) => setText(list.children[index], text));
  const playable = state === "completed";
  byId("player").hidden = !playable;
  byId("download").hidden = !playable || !playerUrl;
  byId("viewer-picture").hidden = playable || picture.hidden || state !== "running";
  if (!byId("viewer-picture").hidden) byId("viewer-picture").src = picture.src;
  if (playable) {
    if (!picture.hidden && !playerUrl) byId("player").poster = picture.src;
    if (!loading) play(viewed);
  } else {
    setText(byId("viewer-note"), state === "running" || state === "queued" ? progressText(viewed) : STATES[state]);
  }
}

async function play(row) {
  const mine = (loading = new AbortController());
  setText(byId("viewer-note"), "Loading the video");
  try {
    const response = await request("GET", `v1/videos/${row.id}/content`, { signal: mine.signal, limit: 0 });
    if (!response.ok) throw new Refusal(response, await response.json().catch(() => null));
    const blob = await response.blob();
    if (mine.signal.aborted) return;
    const player = byId("player");
    playerUrl = URL.createObjectURL(blob);
    player.src = playerUrl;
    byId("download").href = playerUrl;
    byId("download").download = `${row.id}.mp4`;
    setText(byId("download"), `Download (${bytes(blob.size)})`);
    setText(byId("viewer-note"), "");
    paintViewer();
    player.play().catch(() => {}); // not without a gesture; then the controls do it
  } catch (error) {
    if (mine.signal.aborted) return;
    setText(byId("viewer-note"), error instanceof Refusal ? error.message : "The video could not be loaded.");
  }
}

function reuse() {
  const video = viewed.video;
  const values = {
    prompt: video.prompt ?? "",
    negative: "", // the API does not tell it
    size: video.size,
    length: String(video.num_frames),
    "length-unit": "num_frames",
    steps: String(video.num_inference_steps),
    guidance: number(video.guidance_scale),
    seed: String(video.seed),
  };
  clearErrors();
  for (const [id, value] of Object.entries(values)) byId(id).value = value;
  const model = byId("model");
  model.value = [...model.options].some((option) => option.value === video.model) ? video.model : "";
  closeViewer();
  byId("maker").open = true;
  byId("prompt").focus();
}

byId("viewer").addEventListener("close", dropViewed);
byId("viewer").addEventListener("click", (event) => {
  if (event.target === byId("viewer")) closeViewer(); // beside it
});
byId("viewer-close").addEventListener("click", closeViewer);
byId("reuse").addEventListener("click", reuse);

/* ---- start ---- */

function turnPage(turn) {
  turn();
  byId("videos").focus();
  poll();
}

byId("older").addEventListener("click", () =>
  turnPage(() => session.rows.size > 0 && session.after.push([...session.rows.keys()].at(-1))),
);
byId("newer").addEventListener("click", () => turnPage(() => session.after.pop()));

document.addEventListener("visibilitychange", () => {
  followSeen();
  if (!document.hidden && !session.locked) poll();
});

byId("maker").open = matchMedia("(min-width: 62rem)").matches;
begin(sessionStorage.getItem(KEY) ?? "");
