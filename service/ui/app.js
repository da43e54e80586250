// The page: asks, shows, and follows each click until the served parameters have learned it.

import { asCurl, createApi, receiptTimes } from "./api.js";
import { createCards, lostText, servableText, showChips } from "./cards.js";
import { createInspector } from "./inspector.js";
import { createLive } from "./live.js";
import { createOperator } from "./operator.js";

const STATS_MS = 1_000;
const STATS_HIDDEN_MS = 2_000;
const TICK_MS = 100;
const ITEMS_MAX = 12;
const SHOWN_MAX_MS = 20_000; // A click on an older impression may find its join window closed.
const YOU = "you"; // A user without a history: the first clicks show best.
const BEGIN_TRIES_MAX = 5; // The sample fills while a demo starts.
const RETRY_STATUSES = [0, 429, 503, 504];

const $ = (id) => document.getElementById(id);
const state = {
  user: null,
  users: new Map(), // id -> features
  items: new Map(), // id -> {id, features}
  requestId: null, // of the ranking on screen; a click refers to it
  rankedAt: 0, // when it was asked for
  refreshing: null, // the request for a newer one, shared by the clicks that need it
  nTries: 0, // at finding a full sample
  turn: 0, // of the newest rank request: an older answer is not shown
  clicks: new Map(), // item id -> {startedAt, stage} until the click is in the ranking
  leaving: new AbortController(), // ends the receipts of a user who is left
  problems: { stats: null, rank: null, stream: null },
  paused: false,
};
const api = createApi((...request) => {
  setText("curl", asCurl(...request));
  $("copy").disabled = false;
});
const cards = createCards($("cards"), $("card"), click);
const live = createLive($, (isAway) => {
  $("live").classList.toggle("away", isAway);
  setProblem("stream", isAway ? new Error("The live stream is interrupted.") : null);
});
const inspector = createInspector($, api.embedding);
const operator = createOperator($, api, live.markDrift);

const say = (text) => setText("news", text);

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text; // A live region announces each writing.
}

function setProblem(source, error) {
  state.problems[source] = error;
  const texts = Object.values(state.problems).filter(Boolean).map((problem) => problem.message);
  setText("problem", [...new Set(texts)].join(" "));
  $("problem").hidden = texts.length === 0;
}

async function rank(compare) {
  const turn = ++state.turn;
  const askedAt = Date.now(); // Unlike performance.now() it counts while the machine sleeps.
  try {
    const answer = await api.rank(state.user, [...state.items.keys()]);
    if (turn !== state.turn) return;
    state.requestId = answer.request_id;
    state.rankedAt = askedAt;
    const ranked = answer.items.map((entry) => ({ ...entry, item: String(entry.item) }));
    cards.show(ranked, state.items, compare);
    $("cards").dataset.user = state.user;
    setProblem("rank", null);
  } catch (error) {
    if (turn !== state.turn) return;
    if (state.requestId === null) cards.show([], state.items, false); // Not another user's ranking.
    setProblem("rank", error);
  }
}

async function click(id) {
  if (state.clicks.has(id) || state.requestId === null) return;
  const { signal } = state.leaving;
  const clicked = { startedAt: performance.now(), stage: "queued" };
  cards.clearReceipts([...state.clicks.keys()]);
  state.clicks.set(id, clicked);
  showPending();
  try {
    await learn(id, clicked, signal);
  } catch (error) {
    if (signal.aborted) return;
    cards.get(id)?.showReceipt("failed", error.message);
    say(`${id}: ${error.message}`);
  } finally {
    if (state.clicks.get(id) === clicked) state.clicks.delete(id);
  }
}

const isOld = () => Date.now() - state.rankedAt > SHOWN_MAX_MS;

// A click belongs to the impression it was made on, and to one of long ago it would be too late.
async function refresh() {
  if (!isOld()) return;
  state.refreshing ??= rank(true).finally(() => (state.refreshing = null));
  await state.refreshing;
  if (isOld()) throw new Error("not sent: the list is old and could not be ranked again");
}

async function learn(id, clicked, signal) {
  await refresh();
  signal.throwIfAborted();
  const { rank: rankBefore, score: scoreBefore } = cards.get(id);
  const { receipt } = await api.click(state.requestId, id);
  const answer = await api.follow(receipt, ({ state: stage }) => (clicked.stage = stage), signal);
  signal.throwIfAborted();
  if (answer.state !== "servable") throw new Error(`still ${answer.state}; no longer waiting`);
  clicked.stage = "servable";
  const lost = lostText(answer);
  cards.get(id).showReceipt(lost ? "lost" : "servable", lost ?? servableText(answer));
  await rank(true);
  signal.throwIfAborted();
  if (lost) return say(`${id}: ${lost}`);
  const { rank: rankAfter, score } = cards.get(id);
  const took = receiptTimes(answer).servable;
  const after = took === null ? "" : ` after ${took.toFixed(1)} s`;
  const scores = [scoreBefore, score].map((value) => value?.toFixed(4) ?? "none").join(" → ");
  return say(`${id}: servable${after}. Score ${scores}, place ${rankBefore} → ${rankAfter}.`);
}

function showPending() {
  for (const [id, { startedAt, stage }] of state.clicks) {
    if (stage === "servable") continue; // The card says what came of it.
    cards.showPending(id, stage, (performance.now() - startedAt) / 1000, state.paused);
  }
}

function chooseUser(user) {
  state.leaving.abort();
  state.leaving = new AbortController();
  state.clicks.clear();
  state.requestId = null;
  state.user = user;
  if (!state.users.has(user)) addUser(user, null);
  $("user").value = user;
  showChips($("user-features"), state.users.get(user));
  cards.clearReceipts();
  say("");
  return rank(false);
}

function addUser(user, features, isFirst = false) {
  const known = [...$("user").options].find(({ value }) => value === user);
  if (isFirst || !known) $("user").add(known ?? new Option(user), isFirst ? 0 : null);
  state.users.set(user, features);
}

async function addItem(id) {
  if (state.items.has(id)) return say(`${id} is already in the list.`);
  state.items.set(id, { id, features: null });
  await rank(true);
  const card = cards.get(id);
  if (!card) {
    state.items.delete(id);
    return say(`${id} could not be ranked.`);
  }
  card.button.focus();
  return say(`${id} joined at place ${card.rank}.`);
}

async function begin({ sample: { users, items } }) {
  const { features } = await api.schema();
  inspector.setFeatures(features);
  const full = items.length >= ITEMS_MAX && users.length > 0;
  if (!full && ++state.nTries < BEGIN_TRIES_MAX) {
    say("Waiting for users and items…");
    return;
  }
  const named = users.length > 0 && items.length > 0;
  const ids = (n) => Array.from({ length: n }, (_, index) => ({ id: index + 1, features: null }));
  for (const { id, features } of named ? [] : ids(3)) addUser(String(id), features);
  for (const { id, features } of (named ? items : ids(ITEMS_MAX)).slice(0, ITEMS_MAX)) {
    state.items.set(String(id), { id: String(id), features });
  }
  if (features.find(({ name }) => name === "user_id")?.key !== "uint64") addUser(YOU, state.users.get(YOU) ?? null, true);
  chooseUser($("user").options[0].value);
  if (!named) say("This server names no sample: the ids 1, 2, 3 … are made up.");
}

const count = (value) => (typeof value === "number" ? value.toLocaleString("en") : "–");
const inSeconds = (value) => (typeof value === "number" ? `${value.toFixed(value < 10 ? 2 : 0)} s` : "–");

function showStats(stats) {
  $("simulated").hidden = !stats.simulated;
  for (const { id, features } of stats.sample.users) addUser(id, features);
  setText("p50", inSeconds(stats.freshness.p50_seconds));
  setText("p99", inSeconds(stats.freshness.p99_seconds));
  setText("version", stats.model?.version ?? "–");
  setText("sparse-seq", String(stats.freshness.sparse_seq ?? "–"));
  for (const name of ["events", "rows", "filtered"]) setText(name, count(stats[name]));
  setText("degraded", stats.degraded.join(", ").replaceAll("_", " ") || "no");
  $("degraded").classList.toggle("bad", stats.degraded.length > 0);
  if (typeof stats.auc === "number") {
    setText("auc", stats.auc.toFixed(3));
  }
  live.showStats(stats);
  inspector.refresh();
  operator.showStats(stats);
  state.paused = stats.trainer.paused === true;
  showTrainer(stats.freshness.sparse_age_seconds, stats.degraded);
}

// On an idle stream parameters grow old and nothing is wrong: only the service knows what it lacks.
function showTrainer(ageSeconds, degraded = []) {
  const { paused } = state;
  setText("trainer", paused ? "Resume trainer" : "Pause trainer");
  $("trainer").classList.toggle("primary", paused);
  const known = typeof ageSeconds === "number";
  const age = known ? `parameters ${ageSeconds.toFixed(1)} s old` : "parameters: age unknown";
  setText("age", paused ? `${age}, paused` : age);
  const isStale = paused || degraded.some((reason) => reason.startsWith("stale") || reason === "trainer_away");
  $("age").dataset.level = isStale ? "stale" : known ? "fresh" : "unknown";
}

async function watch() {
  try {
    const stats = await api.stats();
    setProblem("stats", null);
    $("aside").classList.remove("away");
    showStats(stats);
    if (state.user === null) await begin(stats);
    else if (RETRY_STATUSES.includes(state.problems.rank?.status)) rank(true);
  } catch (error) {
    setProblem("stats", error);
    $("aside").classList.add("away");
    showTrainer(null);
  }
  setTimeout(watch, document.hidden ? STATS_HIDDEN_MS : STATS_MS);
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    setText("copy", "Copied");
  } catch {
    getSelection().selectAllChildren($("curl")); // No permission: the visitor copies it.
  }
  setTimeout(() => setText("copy", "Copy as curl"), 1_500);
}

function onSubmit(form, input, act) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    const id = $(input).value.trim().normalize("NFC");
    $(input).value = "";
    if (id) act(id);
  });
}

onSubmit("user-form", "user-text", chooseUser);
onSubmit("item-form", "item-text", addItem);
$("user").addEventListener("change", () => chooseUser($("user").value));
$("trainer").addEventListener("click", () => api.setPaused(!state.paused).catch((error) => say(error.message)));
$("copy").addEventListener("click", copyCurl);
setInterval(showPending, TICK_MS);
watch();
