// A line over the last minutes, in plain SVG: one value a second needs no library.

const WINDOW_MS = 300_000;
const WINDOW_MIN_MS = 60_000; // The first minute fills the width, so that an early line is readable.
const SPAN_MIN = 0.04; // Smallest height of the scale: noise must not look like drama.

const scaleOf = (values) => {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = Math.max((SPAN_MIN - (high - low)) / 2, (high - low) * 0.1);
  return { low: Math.max(0, low - pad), high: Math.min(1, high + pad) };
};

const ago = (ms) => (ms < 90_000 ? `${Math.round(ms / 1000)} s ago` : `${Math.round(ms / 60_000)} min ago`);

/** Draws into `figure`; `axis` gets the left end's label. */
export function createChart(figure, axis) {
  const part = (name) => figure.querySelector(name);
  const points = [];

  const draw = (now) => {
    const width = Math.min(WINDOW_MS, Math.max(WINDOW_MIN_MS, now - points[0].at));
    const { low, high } = scaleOf(points.map((point) => point.value));
    const x = (at) => 100 - ((now - at) / width) * 100;
    const y = (value) => 100 - ((value - low) / (high - low)) * 100;
    const line = points.map((p) => `${x(p.at).toFixed(2)} ${y(p.value).toFixed(2)}`).join("L");
    part(".line").setAttribute("d", `M${line}`);
    part(".area").setAttribute("d", `M${x(points[0].at)} 100L${line}L100 100Z`);
    part(".dot").hidden = false;
    part(".dot").style.top = `${y(points.at(-1).value)}%`;
    part(".top").textContent = high.toFixed(2);
    part(".bottom").textContent = low.toFixed(2);
    axis.textContent = ago(width);
  };

  return {
    /** One more value, taken now. */
    add(value) {
      const now = Date.now();
      points.push({ at: now, value });
      while (now - points[0].at > WINDOW_MS) points.shift();
      draw(now);
      figure.dataset.points = String(points.length);
      const first = points[0];
      const label = `AUC ${value.toFixed(3)}; ${first.value.toFixed(3)} ${ago(now - first.at)}`;
      figure.setAttribute("aria-label", label);
    },
  };
}
