// Reads Prometheus's text format, as far as /metrics of this server uses it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", "\\": "\\", '"': '"' };

export class Exposition {
  #series = new Map();

  constructor(text) {
    for (const line of text.split("\n")) {
      const match = line.startsWith("#") ? null : LINE.exec(line);
      if (!match) continue;
      const labels = {};
      for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
        labels[name] = value.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] ?? letter);
      }
      const value = match[3] === "+Inf" ? Infinity : Number(match[3]);
      if (!this.#series.has(match[1])) this.#series.set(match[1], []);
      this.#series.get(match[1]).push({ labels, value });
    }
  }

  // The value of a series, by name and labels; null where there is none.
  value(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = (this.#series.get(name) ?? []).find((series) =>
      wanted.every(([label, value]) => series.labels[label] === value),
    );
    return found ? found.value : null;
  }

  labels(name) {
    return this.#series.get(name)?.[0].labels ?? {};
  }

  // [{bound, count}]: how many values lie between the bound before and this one.
  histogram(name) {
    let below = 0;
    return (this.#series.get(`${name}_bucket`) ?? []).map(({ labels, value }) => {
      const bucket = { bound: labels.le === "+Inf" ? Infinity : Number(labels.le), count: value - below };
      below = value;
      return bucket;
    });
  }
}

// A quantile of a histogram, with values spread evenly inside a bucket as PromQL's histogram_quantile does.
export function quantile(buckets, share) {
  const total = buckets.reduce((sum, bucket) => sum + bucket.count, 0);
  if (!total) return null;
  let below = 0;
  let lower = 0;
  for (const { bound, count } of buckets) {
    if (below + count >= share * total && count) {
      return bound === Infinity ? lower : lower + ((bound - lower) * (share * total - below)) / count;
    }
    below += count;
    lower = bound;
  }
  return lower;
}
