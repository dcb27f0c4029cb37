// Two small charts in SVG. Both say in words what they show, for those who do not see them.

import { element, svg } from "./dom.js";
import { rate, seconds } from "./format.js";

const WIDTH = 240;
const HEIGHT = 44;

function frame(label, ...children) {
  const attributes = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  return svg("svg", { ...attributes, "aria-label": label }, ...children);
}

function caption(left, right) {
  return element("p", { className: "caption" }, element("span", {}, left), element("span", {}, right));
}

// Values over time, oldest first; null where nothing was measured. `slots` is how many fill the width.
export function drawSparkline(target, values, slots, window) {
  const peak = Math.max(1, ...values.map((value) => value ?? 0));
  const x = (index) => ((index + slots - values.length) / (slots - 1)) * WIDTH;
  const y = (value) => HEIGHT - 2 - (value / peak) * (HEIGHT - 6);
  const parts = [frame(`Tokens per second over the last ${window}, at most ${rate(peak)}`)];
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const line = run.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" L");
      const [first, last] = [run[0][0], run[run.length - 1][0]].map((edge) => edge.toFixed(1));
      parts[0].append(svg("path", { class: "area", d: `M${first},${HEIGHT} L${line} L${last},${HEIGHT} Z` }));
      parts[0].append(svg("path", { class: "line", d: `M${line}`, "vector-effect": "non-scaling-stroke" }));
    }
    run = [];
  };
  values.forEach((value, index) => {
    if (value === null) close();
    else run.push([x(index), y(value)]);
  });
  close();
  const measured = values.some((value) => value);
  parts.push(caption(`last ${window}`, measured ? `peak ${rate(peak)}` : ""));
  target.replaceChildren(...parts);
}

// A histogram's buckets as bars. Empty buckets at both ends are left out.
export function drawHistogram(target, buckets) {
  const filled = buckets.flatMap((bucket, index) => (bucket.count ? [index] : []));
  if (!filled.length) {
    target.replaceChildren();
    return;
  }
  const from = Math.max(0, filled[0] - 2);
  const to = Math.min(buckets.length - 1, filled[filled.length - 1] + 2);
  const shown = buckets.slice(from, to + 1);
  const peak = Math.max(...shown.map((bucket) => bucket.count));
  const step = WIDTH / shown.length;
  const bars = shown.map(({ count }, index) => {
    const height = count ? Math.max(2, (count / peak) * (HEIGHT - 4)) : 0;
    const place = { x: index * step + 1.5, y: HEIGHT - height, width: step - 3, height };
    return svg("rect", { class: "bucket", ...place });
  });
  const lower = from ? buckets[from - 1].bound : 0;
  const top = shown[shown.length - 1].bound;
  const upper = top === Infinity ? `over ${seconds(shown[shown.length - 2]?.bound ?? 0)}` : seconds(top);
  const picture = frame(`Time to first token of all requests, from ${seconds(lower)} to ${upper}`, ...bars);
  target.replaceChildren(picture, caption(lower ? seconds(lower) : "0", upper));
}
