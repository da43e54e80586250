// The points of the last minutes, kept up to date by the server while somebody looks.

import { STREAM } from "./api.js";

const POINTS_MAX = 900; // As many as the server keeps.
const AGAIN_MS = 10_000; // A refused stream is not taken up again by the browser.

/** Hears `onPoints(points)` of all points kept after each that comes, `onAway(boolean)` of the stream. */
export function watchPoints(onPoints, onAway) {
  let points = [];
  let source = null;
  let again = 0;

  const open = () => {
    source = new EventSource(STREAM);
    source.addEventListener("message", ({ data }) => {
      onAway(false);
      const last = points.at(-1)?.at_ms ?? 0;
      const news = JSON.parse(data);
      const isNewClock = news.at(-1).at_ms < last; // Of a service that started again, its clock set back.
      points = [...(isNewClock ? [] : points), ...news.filter((point) => isNewClock || point.at_ms > last)];
      points = points.slice(-POINTS_MAX);
      onPoints(points);
    });
    source.addEventListener("error", () => {
      onAway(true);
      if (source.readyState === EventSource.CLOSED) again = setTimeout(follow, AGAIN_MS);
    });
  };

  // A hidden tab keeps no connection: a browser has six for all tabs, and what is missed comes at once.
  const follow = () => {
    clearTimeout(again);
    source?.close();
    source = null;
    if (!document.hidden) open();
  };
  document.addEventListener("visibilitychange", follow);
  follow();
}
