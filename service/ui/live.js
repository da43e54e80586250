// The live panel: charts of the stream's points, and occupancy by slot.

import { createChart, short } from "./chart.js";
import { watchPoints } from "./stream.js";

const ELSEWHERE = "The trainer runs in a process of its own, and tells this on its own /metrics.";
const RATED_MS = 5_000; // Actions come in bursts, with the trainer's batches: a rate of some seconds.

// Totals of two points as a rate per second; null where one is not known.
function rates(now, index, points) {
  let from = index;
  while (from > 0 && now.at_ms - points[from].at_ms < RATED_MS) from -= 1;
  const before = points[from];
  const seconds = (now.at_ms - before.at_ms) / 1_000;
  if (!now.actions || !before.actions || seconds <= 0) return {};
  const { pending, ...counts } = now.actions; // What is parked is no outcome yet.
  const rate = ([name, n]) => [name, Math.max(0, n - before.actions[name]) / seconds];
  return Object.fromEntries(Object.entries(counts).map(rate));
}

const CHARTS = [
  { id: "auc", title: "Progressive AUC", spanMin: 0.04, max: 1, of: ({ auc }) => auc },
  {
    id: "freshness", title: "Click to servable", unit: "s", spanMin: 1,
    of: (point) => ({ p50: point.p50_seconds, p99: point.p99_seconds }),
  },
  {
    id: "beats", title: "Sync beats", unit: "s", spanMin: 1,
    of: (point) => ({ beat: point.beat_seconds, age: point.age_seconds }),
  },
  { id: "actions", title: "Joined actions", unit: "/s", spanMin: 1, isTrainers: true, of: rates },
  {
    id: "lag", title: "Records to be read", spanMin: 10, isTrainers: true,
    of: ({ lag, actions }) => (lag ? { ...lag, parked: actions?.pending } : {}),
  },
  { id: "occupancy", title: "Rows by slot", spanMin: 10, of: ({ rows }) => rows },
];

// A drift is known to the page that caused it, a roll-back by the epoch that it opens.
function marksOf(points, drifts) {
  const marks = drifts.map((at) => ({ at_s: at / 1_000, label: "drift" }));
  points.forEach(({ at_ms: at, epoch }, index) => {
    const before = points[index - 1]?.epoch;
    if (before && epoch && epoch !== before) marks.push({ at_s: at / 1_000, label: `epoch ${epoch}` });
  });
  return marks;
}

function cell(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function rowOf({ name, rows, trainer }, index) {
  const row = document.createElement("tr");
  const slot = cell("th", name);
  slot.scope = "row";
  const swatch = document.createElement("i");
  swatch.className = `swatch s${index % 7}`;
  slot.prepend(swatch, " ");
  const counts = ["admitted", "filtered", "expired", "evicted"].map((count) => trainer?.[count]);
  const share = trainer?.budget_bytes ? `${Math.round((100 * trainer.bytes) / trainer.budget_bytes)} %` : "–";
  row.append(slot, ...[rows, ...counts].map((n) => cell("td", short(n))), cell("td", share));
  return row;
}

/** Starts the panel; `onAway(boolean)` hears of the stream. */
export function createLive(byId, onAway) {
  let points = [];
  const drifts = [];
  const charts = CHARTS.map(({ id, of, isTrainers, ...options }) => {
    const figure = byId(`${id}-chart`);
    const marks = () => marksOf(points, drifts);
    return { of, isTrainers, figure, note: byId(`${id}-note`), ...createChart(figure, byId(`${id}-legend`), { ...options, marks }) };
  });

  watchPoints((news) => {
    points = news;
    const seconds = points.map((point) => point.at_ms / 1_000);
    for (const { of, show } of charts) show(seconds, points.map(of));
  }, onAway);

  return {
    /** What only `GET /v1/stats` tells: counts by slot, and whether the trainer is in this process. */
    showStats({ tables, trainer }) {
      byId("slots").replaceChildren(...tables.map(rowOf));
      byId("slots-note").hidden = trainer.present;
      for (const { isTrainers, figure, note } of charts.filter((chart) => chart.isTrainers)) {
        figure.hidden = isTrainers && !trainer.present;
        note.textContent = trainer.present ? "" : ELSEWHERE;
      }
    },

    /** Marks this moment in every chart. */
    markDrift: () => drifts.push(Date.now()),
  };
}
