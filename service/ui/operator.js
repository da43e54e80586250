// What an operator does: look what a roll-back would undo and confirm it, turn the demo's world over.

import { short } from "./chart.js";

const LIST_MS = 5_000;
const ELSEWHERE = "The trainer runs in a process of its own: freshrank snapshots list, where its data is.";

const age = (at) => `${short(Math.max(0, Math.round((Date.now() - Date.parse(at)) / 1_000)))}\u00a0s`;

/** Wires the panel; `onDrift()` hears when the world has turned. */
export function createOperator(byId, api, onDrift) {
  let listedAt = 0;
  let epoch = null; // served now
  let chosen = null; // checkpoint whose dry run is on screen
  let leftEpoch = null; // of a roll-back on its way
  const text = (id, value) => (byId(id).textContent = value);

  async function list() {
    if (Date.now() - listedAt < LIST_MS || byId("snapshot").matches(":focus")) return;
    listedAt = Date.now();
    const { snapshots } = await api.snapshots();
    byId("rollback-form").hidden = snapshots === null;
    if (snapshots === null) return text("rollback-news", ELSEWHERE);
    const before = byId("snapshot").value;
    const options = snapshots.toReversed().map(({ name, saved_at: at, rows_learned: n }) => {
      const told = n === undefined ? "damaged" : `${short(n)} rows learned`;
      return new Option(`${age(at)} ago · ${told} · ${name}`, name);
    });
    byId("snapshot").replaceChildren(...(options.length ? options : [new Option("none saved yet", "")]));
    if (snapshots.some(({ name }) => name === before)) byId("snapshot").value = before;
    byId("dry-run").disabled = snapshots.length === 0;
  }

  function close() {
    chosen = null;
    byId("confirm").hidden = true;
  }

  async function dryRun() {
    const to = byId("snapshot").value;
    if (!to) return;
    const { from, rows_taken_back: n, snapshot } = await api.rollback(to, true);
    chosen = to;
    const now = from ? `${from.version} of epoch ${from.epoch}` : "nothing";
    const undone = n === null ? "an unknown number of rows" : `${short(n)} rows`;
    text("dry-news", `Back to the parameters of ${age(snapshot.saved_at)} ago: ${undone} learned since are taken back. ${now} is served until then.`);
    text("rollback-news", "");
    byId("confirm").hidden = false;
  }

  async function rollBack() {
    const to = chosen;
    close();
    leftEpoch = epoch;
    await api.rollback(to, false);
    text("rollback-news", "Given. The trainer obeys with its next step…");
    byId("dry-run").focus();
  }

  async function drift() {
    await api.drift();
    onDrift();
    text("drift-news", "The audience likes what it disliked. AUC dips, then recovers as it is learned.");
  }

  const on = (id, news, act) =>
    byId(id).addEventListener("click", () => act().catch((error) => text(news, error.message)));
  on("dry-run", "rollback-news", dryRun);
  on("roll-back", "rollback-news", rollBack);
  on("keep-going", "rollback-news", async () => (close(), byId("dry-run").focus()));
  on("drift", "drift-news", drift);
  byId("snapshot").addEventListener("change", close);

  return {
    /** With each of the statistics. */
    showStats({ model, simulated }) {
      byId("drift-part").hidden = !simulated;
      epoch = model?.epoch ?? null;
      if (leftEpoch !== null && epoch !== leftEpoch) {
        text("rollback-news", `Done: ${model.version} of epoch ${epoch} is served.`);
        leftEpoch = null;
        listedAt = 0;
      }
      list().catch((error) => text("rollback-news", error.message));
    },
  };
}
