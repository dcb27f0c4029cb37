// Figures as people read them.

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

// Tokens per second: one digit after the point while that says something.
export const rate = (value) => number(value, value > 0 && value < 100 ? 1 : 0);

export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value < 0.0995) return `${number(value * 1000, value < 0.00995 ? 1 : 0)} ms`;
  if (value < 9.95) return `${number(value, value < 0.995 ? 2 : 1)} s`;
  if (value < 119.5) return `${number(value)} s`;
  return `${number(value / 60)} min`;
}

export function span(value) {
  if (!Number.isFinite(value) || value < 0) return "–";
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.floor(value)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export const bytes = (value) =>
  value >= 2 ** 30 ? `${number(value / 2 ** 30, 1)} GiB` : `${number(value / 2 ** 20)} MiB`;

export const tokens = (count) => `${number(count)} ${count === 1 ? "token" : "tokens"}`;
