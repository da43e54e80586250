// One id: whether it waits for a row, has one or has lost it, and the vector that is served.

import { short } from "./chart.js";

const NAMED = new Set(["id", "id_list"]);
const LEVELS = { admitted: "fresh", pending: "unknown", expired: "stale", removed: "stale" };

const ago = (at) => `${short(Math.max(0, (Date.now() - Date.parse(at)) / 1_000))}\u00a0s ago`;
const until = (at) => (at ? new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "never");

// Slots whose ids somebody can type: ids, lists of them, and crosses of two such.
function slotsOf(features) {
  const types = new Map(features.map(({ name, type }) => [name, type]));
  const isNamed = (name) => NAMED.has(types.get(name));
  return features.filter(({ name, type, of }) => isNamed(name) || (type === "cross" && of.every(isNamed)));
}

function linesOf({ state, norm, first_order: first, dim, trainer }) {
  const lines = [["norm", short(norm)], ["dimensions", `${dim} + 1 of its own`]];
  if (first !== null) lines.push(["own weight", short(first)]);
  if (!trainer) return lines;
  if (state === "pending") lines.push(["seen", `${trainer.count} of ${trainer.min_count}`]);
  if (trainer.frequency) lines.push(["frequency", short(trainer.frequency)]);
  if (trainer.last_seen_at) lines.push(["last seen", ago(trainer.last_seen_at)]);
  if (trainer.born_at) lines.push(["row since", ago(trainer.born_at)]);
  if (state === "admitted" || state === "expired") lines.push(["expires", until(trainer.expires_at)]);
  return lines;
}

// A bar per dimension, up or down from the middle.
function drawVector(box, vector) {
  const top = Math.max(...(vector ?? []).map(Math.abs), 1e-9);
  const bars = (vector ?? []).map((value) => {
    const bar = document.createElement("i");
    bar.style.height = `${(50 * Math.abs(value)) / top}%`;
    bar.className = value < 0 ? "below" : "";
    return bar;
  });
  box.replaceChildren(...bars);
  box.hidden = bars.length === 0;
}

/** The form and its answer; `ask(slot, key, other, isTold)` fetches one. */
export function createInspector(byId, ask) {
  let features = [];
  let shown = null; // slot, key, other
  const crossed = () => features.find(({ name, type }) => name === byId("slot").value && type === "cross")?.of;
  const text = (id, value) => {
    if (byId(id).textContent !== value) byId(id).textContent = value; // A live region announces each writing.
  };

  function showParts() {
    const parts = crossed();
    byId("key").placeholder = parts ? `an id of ${parts[0]}` : "an id";
    byId("other").hidden = !parts;
    byId("other").required = Boolean(parts);
    byId("other").placeholder = parts ? `an id of ${parts[1]}` : "";
  }

  function show(answer) {
    byId("id-state").dataset.level = LEVELS[answer.state] ?? "none";
    const { count, min_count: needed } = answer.trainer ?? {};
    text("id-state", answer.state === "pending" ? `pending ${count} of ${needed}` : answer.state ?? "not known here");
    text("id-why", `${answer.key}: ${answer.why}.`);
    byId("id-lines").replaceChildren(...linesOf(answer).map((texts) => {
      const line = document.createElement("div");
      line.append(...["dt", "dd"].map((tag) => document.createElement(tag)));
      texts.forEach((words, index) => (line.children[index].textContent = words));
      return line;
    }));
    drawVector(byId("id-vector"), answer.vector);
    byId("id-answer").hidden = false;
  }

  async function look(isTold) {
    const asked = shown;
    if (asked === null) return;
    try {
      const answer = await ask(asked.slot, asked.key, asked.other, isTold);
      if (asked === shown) show(answer);
    } catch (error) {
      if (asked !== shown || !isTold) return;
      show({ state: null, key: asked.key, why: error.message, norm: null, dim: 0, vector: null, first_order: null });
      text("id-state", "no answer");
    }
  }

  byId("slot").addEventListener("change", showParts);
  byId("id-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const [key, other] = ["key", "other"].map((id) => byId(id).value.trim().normalize("NFC"));
    if (!key) return;
    shown = { slot: byId("slot").value, key, other: crossed() ? other : null };
    look(true);
  });

  return {
    /** Once the schema is known. */
    setFeatures(all) {
      features = slotsOf(all);
      byId("slot").replaceChildren(...features.map(({ name }) => new Option(name)));
      showParts();
    },

    /** Keeps the id that is shown up to date. */
    refresh: () => look(false),
  };
}
