// The ranked list: one card an item, kept across rankings so that it can move.

import { receiptTimes } from "./api.js";

const MOVE_MS = 520;
const CHIPS_MAX = 4;
const number = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));
const span = (className, text) => {
  const node = document.createElement("span");
  node.className = className;
  node.textContent = text;
  return node;
};

const chipText = ([name, value]) => {
  if (Array.isArray(value)) return value.join(" ");
  return typeof value === "number" ? `${name} ${number(value)}` : String(value);
};

/** Features as small labels. */
export function showChips(node, features) {
  const entries = Object.entries(features ?? {}).slice(0, CHIPS_MAX);
  node.replaceChildren(...entries.map((entry) => span("chip", chipText(entry))));
}

// Items of one category share a hue. FNV-1a spreads short names well enough over the circle.
const hueOf = (text) => {
  let hash = 0x811c9dc5;
  for (const letter of text) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
  return (hash % 24) * 15;
};

// What stands on a card while its click is on the way; a paused trainer holds it for as long as it likes.
function pendingText(stage, elapsedSeconds, paused) {
  const elapsed = `${elapsedSeconds.toFixed(1)} s`;
  if (stage === "trained") return `sent → waiting for the sync ${elapsed}`; // The frame brings the outcome.
  return paused ? "sent → trainer paused, waiting…" : `sent → learning ${elapsed}`;
}

/** "sent 0.0 s → trained 0.7 s → servable 0.9 s" of a receipt that has arrived. */
export function servableText(answer) {
  const { trained, servable } = receiptTimes(answer);
  const after = (time) => `${time.toFixed(1)}\u00a0s`; // A number stays with its unit.
  const parts = [`sent ${after(0)}`];
  if (trained !== null) parts.push(`trained ${after(trained)}`);
  parts.push(servable === null ? "servable" : `servable ${after(servable)}`);
  return parts.join(" → ");
}

const LOST = {
  late: "too late: its list was shown too long ago; not learned",
  duplicate: "duplicate: this click was counted before; not learned again",
  unmatched: "unmatched: no list that was shown has this item; not learned",
  dead_letter: "refused: it could not be read; not learned",
  recorded: "recorded for features to come; no task learns it",
  unknown: "unknown: nobody remembers what became of it",
};

/** Why a click whose receipt has arrived was not trained; null when it was. */
export function lostText({ outcomes }) {
  const other = outcomes.find(({ outcome }) => outcome !== "trained");
  return other ? LOST[other.outcome] ?? `${other.outcome.replaceAll("_", " ")}: not learned` : null;
}

class Card {
  constructor(template, item, onClick) {
    this.node = template.content.firstElementChild.cloneNode(true);
    this.button = this.node.firstElementChild;
    this.button.addEventListener("click", () => onClick(item.id));
    this.button.dataset.item = item.id;
    this.score = null;
    this.rank = null;
    this.part("title").textContent = item.features?.title ?? item.id;
    showChips(this.part("chips"), item.features);
    const category = Object.values(item.features ?? {}).flat().find((v) => typeof v === "string");
    this.part("tile").textContent = (category ?? "?").slice(0, 2);
    this.part("tile").style.setProperty("--hue", hueOf(category ?? item.id));
    this.part("tile").classList.toggle("plain", category === undefined);
  }

  part(name) {
    return this.button.querySelector(`.${name}`);
  }

  show({ rank, score, known }, topScore, compare) {
    const before = compare ? { rank: this.rank, score: this.score } : { rank: null, score: null };
    this.part("position").textContent = rank;
    this.part("score").textContent = score === null ? "not scored" : score.toFixed(4);
    this.part("fill").style.width = `${score === null ? 0 : (100 * score) / topScore}%`;
    this.button.classList.toggle("unknown", known === false);
    this.button.dataset.rank = rank;
    this.button.dataset.score = score ?? "";
    this.showChange(rank, score, before);
    Object.assign(this, { rank, score });
  }

  showChange(rank, score, before) {
    const moved = before.rank === null ? 0 : before.rank - rank;
    const gained = before.score === null || score === null ? 0 : score - before.score;
    const change = this.part("change");
    const texts = [];
    if (moved) texts.push(span(moved > 0 ? "up" : "down", `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`));
    if (Math.abs(gained) >= 5e-5) texts.push(span("gain", `${gained > 0 ? "+" : "−"}${Math.abs(gained).toFixed(4)}`));
    change.replaceChildren(...texts);
  }

  /** `state` is pending, servable, lost, failed or null for none. */
  showReceipt(state, text = "") {
    const receipt = this.part("receipt");
    receipt.hidden = state === null;
    receipt.textContent = text;
    this.part("chips").hidden = state !== null;
    if (state === null) delete this.button.dataset.state;
    else this.button.dataset.state = state;
    this.button.setAttribute("aria-busy", String(state === "pending"));
  }
}

// FLIP: where each card was, where it is, and a transform that leads from the one to the other.
function moveTo(list, nodes) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const base = list.getBoundingClientRect().top;
  const topOf = (node) => (node.isConnected ? node.getBoundingClientRect().top - base : null);
  const tops = new Map(nodes.map((node) => [node, topOf(node)])); // With a move under way, where it is now.
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...nodes);
  focused?.focus({ preventScroll: true });
  if (still) return;
  for (const node of nodes) {
    const top = tops.get(node);
    const from = top === null ? { opacity: 0 } : { transform: `translateY(${top - node.offsetTop}px)` };
    if (top === null || Math.abs(top - node.offsetTop) > 1) node.animate([from, {}], { duration: MOVE_MS, easing: "cubic-bezier(.2,.8,.2,1)" });
  }
}

/** The list of cards; `onClick(itemId)` hears of clicks and Enter. */
export function createCards(list, template, onClick) {
  const cards = new Map();
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  });

  return {
    get: (id) => cards.get(id),

    /** Shows a ranking of `items` (by id); with `compare`, also what changed since the last. */
    show(ranked, items, compare) {
      const top = Math.max(...ranked.map((entry) => entry.score ?? 0), 1e-9);
      for (const entry of ranked) {
        const item = items.get(entry.item) ?? { id: entry.item };
        if (!cards.has(item.id)) cards.set(item.id, new Card(template, item, onClick));
        cards.get(entry.item).show(entry, top, compare);
      }
      moveTo(list, ranked.map((entry) => cards.get(entry.item).node));
    },

    /** A click still on its way: the stage its receipt names, and how long it has taken so far. */
    showPending(id, stage, elapsedSeconds, paused) {
      cards.get(id)?.showReceipt("pending", pendingText(stage, elapsedSeconds, paused));
    },

    /** Takes away receipts, but those of the items in `kept`. */
    clearReceipts(kept = []) {
      for (const [id, card] of cards) if (!kept.includes(id)) card.showReceipt(null);
    },
  };
}
