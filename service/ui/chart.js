// One uPlot per figure: lines over the last minutes, with a legend that tells the values as text.

/* global uPlot */

const SPAN_MIN_S = 60; // The first minute fills the width, so that an early line is readable.
const FONT = "11px system-ui, sans-serif";
const COLOURS = 7; // .s0 to .s6 in live.css

const sizeOf = ({ clientWidth: width, clientHeight: height }) => ({ width, height });
const css = (node, name) => getComputedStyle(node)[name];
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

/** A number as short as a legend wants it; what is unknown is a dash. */
export function short(value, unit = "") {
  if (typeof value !== "number") return "–";
  const size = Math.abs(value);
  const digits = Number.isInteger(value) || size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.095 ? 2 : 3;
  return `${value.toLocaleString("en", { maximumFractionDigits: digits })}${unit && `\u00a0${unit}`}`;
}

function legendOf(list, names) {
  const entries = names.map((name, index) => {
    const entry = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.className = `swatch s${index % COLOURS}`;
    const value = document.createElement("b");
    entry.append(swatch, ` ${name.replaceAll("_", " ")} `, value);
    return { swatch, value, entry };
  });
  list.replaceChildren(...entries.map(({ entry }) => entry));
  return entries;
}

/** The lower and upper end of a scale that holds the values; noise must not look like drama. */
function rangeOf(low, high, spanMin, max) {
  if (low === null || high === null) return [0, spanMin];
  if (spanMin >= 1 || low < spanMin) return [0, Math.max(high * 1.1, spanMin)];
  const pad = Math.max((spanMin - (high - low)) / 2, (high - low) * 0.1);
  return [Math.max(0, low - pad), Math.min(max, high + pad)];
}

function optionsOf(figure, legend, names, { unit, spanMin, max = Infinity, marks }, onCursor) {
  const axis = {
    stroke: () => css(figure, "color"),
    font: FONT,
    grid: { stroke: () => css(figure, "borderTopColor"), width: 1 },
    ticks: { show: false },
  };
  return {
    ...sizeOf(figure),
    padding: [8, null, 0, 0], // On the right as much as the last label needs.
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "live" }, points: { size: 6 } },
    scales: { y: { range: (_, low, high) => rangeOf(low, high, spanMin, max) } },
    axes: [
      { ...axis, space: 64, size: 24, gap: 7, values: (_, at) => at.map((s) => clock.format(s * 1_000)) },
      { ...axis, space: 32, size: 46, gap: 4, values: (_, at) => at.map((value) => short(value, unit)) },
    ],
    series: [
      {},
      ...names.map((_, index) => ({
        stroke: () => css(legend[index].swatch, "backgroundColor"),
        width: 1.75,
        spanGaps: true,
        points: { show: false },
      })),
    ],
    hooks: { setCursor: [onCursor], draw: [(plot) => drawMarks(plot, marks())] },
  };
}

// What happened, as a line through the chart: a roll-back, a drift.
function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  const [from, to] = [plot.scales.x.min, plot.scales.x.max];
  ctx.save();
  ctx.fillStyle = ctx.strokeStyle = css(plot.root.parentNode, "color");
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.setLineDash([4, 4]);
  for (const { at_s: at, label } of marks.filter(({ at_s: at }) => at >= from && at <= to)) {
    const x = Math.round(plot.valToPos(at, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const isLeft = x > bbox.left + bbox.width / 2;
    ctx.textAlign = isLeft ? "right" : "left";
    ctx.fillText(label, x + (isLeft ? -4 : 4), bbox.top + 11 * devicePixelRatio);
  }
  ctx.restore();
}

/**
 * A chart in `figure`, its legend in `list`. Options: `title` for who does not see it, `unit`,
 * `spanMin` (smallest height of the scale), `max`, `marks()` -> [{at_s, label}].
 */
export function createChart(figure, list, options) {
  let plot = null;
  let names = [];
  let legend = [];
  let columns = [[]];

  const tell = (index) => {
    const at = index ?? columns[0].length - 1;
    names.forEach((_, i) => {
      let last = at; // A second without samples has no value of its own.
      while (last > 0 && columns[i + 1][last] === null) last -= 1;
      const text = short(columns[i + 1][last], options.unit);
      if (legend[i].value.textContent !== text) legend[i].value.textContent = text;
    });
  };

  const build = () => {
    plot?.destroy();
    legend = legendOf(list, names);
    plot = new uPlot(optionsOf(figure, legend, names, options, ({ cursor }) => tell(cursor.idx)), columns, figure);
  };

  new ResizeObserver(() => plot?.setSize(sizeOf(figure))).observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot?.redraw());

  return {
    /** Shows `rows`, one object of values by name for each of `seconds`. */
    show(seconds, rows) {
      const found = [...new Set(rows.flatMap(Object.keys))];
      const isOther = found.join() !== names.join();
      names = found;
      columns = [seconds, ...names.map((name) => rows.map((row) => row[name] ?? null))];
      if (names.length === 0 || figure.clientWidth === 0) return;
      if (isOther || plot === null) build();
      const end = seconds.at(-1);
      plot.setData(columns, false);
      plot.setScale("x", { min: Math.min(seconds[0], end - SPAN_MIN_S), max: end });
      tell(plot.cursor.idx);
      Object.assign(figure.dataset, { points: seconds.length, newest: end }); // For who looks from outside.
      const latest = names.map((name, i) => `${name} ${legend[i].value.textContent}`).join(", ");
      figure.setAttribute("aria-label", `${options.title} over time; now ${latest}`);
    },
  };
}
