// Asks the server how it does, and shows it. Rests while nobody looks.

import { ServerError, get, savedKey } from "./api.js";
import { drawHistogram, drawSparkline } from "./charts.js";
import { byId, setText } from "./dom.js";
import { Exposition, quantile } from "./exposition.js";
import { bytes, number, rate, seconds, span } from "./format.js";

const POLL_MS = 2000;
// While there is something to wait for.
const POLL_UNREADY_MS = 1000;
const POINTS = 90;

// What each state means to those who want to chat. A word for the header, a sentence for the chat.
const STATES = {
  connecting: ["Connecting", ""],
  ready: ["Ready", ""],
  loading: ["Loading", "The model is loading. What you write can be sent once it is ready."],
  draining: ["Stopping", "The server is stopping. It finishes its answers and takes no new questions."],
  failed: ["Failed", "The model has failed"],
  busy: ["Busy", "The server turns requests away"],
  unreachable: ["Unreachable", "The server does not answer. This page keeps trying."],
  locked: ["Key needed", ""],
};

export class Status {
  state = "connecting";
  #onState;
  #timer = null;
  #polling = false;
  #speeds = [];
  #before = null;
  #model = null;
  #modelOf = null;

  constructor({ onState }) {
    this.#onState = onState;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(this.#timer);
      else this.poll();
    });
    this.poll();
  }

  // Asks now, and then again and again.
  async poll() {
    if (this.#polling) return;
    clearTimeout(this.#timer);
    this.#polling = true;
    try {
      await this.#ask();
    } finally {
      this.#polling = false;
    }
    const pause = this.state === "ready" ? POLL_MS : POLL_UNREADY_MS;
    if (!document.hidden) this.#timer = setTimeout(() => this.poll(), pause);
  }

  async #ask() {
    try {
      const [health, metrics] = await Promise.allSettled([get("health"), get("metrics")]);
      const refused = metrics.reason?.status === 401;
      // Before the model is there /metrics answers too, and /health says why it is not.
      if (metrics.status === "fulfilled") {
        const received = new Date(metrics.value.headers.get("Date") ?? Date.now());
        this.#show(new Exposition(await metrics.value.text()), received);
      } else {
        this.#miss();
      }
      if (health.status === "rejected") throw health.reason;
      if (refused) throw metrics.reason;
      await this.#learnModel();
      this.#enter("ready");
    } catch (error) {
      this.#enter(...stateOf(error));
    }
  }

  #enter(state, detail = "") {
    const [word, sentence] = STATES[state];
    this.state = state;
    const pill = byId("state");
    pill.dataset.state = state;
    setText(byId("state-text"), word);
    if (state !== "ready") setText(byId("state-speed"), "");
    // /health tells of draining in words of the server; those of failures are all there is to know.
    const text = detail && sentence ? `${sentence}: ${detail}` : sentence;
    byId("notice").dataset.state = state;
    setText(byId("notice-text"), text);
    byId("notice").hidden = !text;
    this.#onState(state);
  }

  async #learnModel() {
    // A server that was started anew may have another model.
    if (this.#model && this.#modelOf === this.#before?.started) return;
    const { data } = await (await get("v1/models")).json();
    this.#model = data[0];
    this.#modelOf = this.#before?.started;
    const meta = this.#model.meta ?? {};
    setText(byId("model-name"), this.#model.id);
    document.title = `${this.#model.id} · edgekit`;
    setText(byId("name"), this.#model.id);
    setText(byId("architecture"), meta.architecture ?? "–");
    setText(byId("quantization"), meta.quantization ?? "–");
    const facts = [meta.quantization, meta.n_ctx ? `context of ${number(meta.n_ctx)}` : null];
    setText(byId("facts"), facts.filter(Boolean).join(", "));
    setText(byId("context"), meta.n_ctx ? `${number(meta.n_ctx)} tokens` : "–");
  }

  #miss() {
    this.#before = null;
    this.#note(null);
    setText(byId("speed-now"), "–");
  }

  #note(speed) {
    this.#speeds.push(speed);
    if (this.#speeds.length > POINTS) this.#speeds.shift();
    drawSparkline(byId("speed-chart"), this.#speeds, POINTS, "3 min");
  }

  #show(page, received) {
    this.#showSpeed(page);
    const counted = (name, labels) => number(page.value(name, labels));
    setText(byId("active"), counted("llamacpp:requests_processing"));
    setText(byId("queued"), counted("llamacpp:requests_deferred"));
    this.#showCache(page);
    const outcome = (name) => page.value("edgekit_requests_total", { outcome: name });
    setText(byId("finished"), number(outcome("finished")));
    const unfinished = ["cancelled", "failed", "refused"].map(outcome);
    const told = unfinished.some((count) => count !== null);
    setText(byId("unfinished"), told ? unfinished.map((count) => number(count)).join(", ") : "–");
    const memory = page.value("process_resident_memory_bytes");
    setText(byId("memory"), memory ? bytes(memory) : "–");
    this.#showLatency("ttft", page.histogram("edgekit_ttft_seconds"), byId("ttft-chart"));
    this.#showLatency("gap", page.histogram("edgekit_inter_token_seconds"));
    const bundle = page.labels("edgekit_bundle_info");
    setText(byId("release"), bundle.release ?? "–");
    setText(byId("digest"), bundle.digest ? bundle.digest.slice(0, 12) : "–");
    byId("digest").title = bundle.digest ?? "";
    setText(byId("profile"), bundle.profile ?? "–");
    setText(byId("version"), page.labels("edgekit_build_info").version ?? "–");
    // By the server's clock: a device's may be far from this one's.
    const started = page.value("process_start_time_seconds");
    setText(byId("uptime"), started ? span(received / 1000 - started) : "–");
  }

  #showSpeed(page) {
    const count = page.value("llamacpp:tokens_predicted_total");
    const [at, started] = [performance.now(), page.value("process_start_time_seconds")];
    const before = this.#before;
    this.#before = { count, at, started };
    const comparable = before && before.count !== null && count !== null && count >= before.count;
    // After a rest the mean since then is no "now".
    const recent = comparable && at - before.at < 3 * POLL_MS;
    const speed = recent ? ((count - before.count) / (at - before.at)) * 1000 : null;
    this.#note(speed);
    setText(byId("speed-now"), rate(speed));
    setText(byId("state-speed"), speed ? `${rate(speed)} tokens/s` : "");
    for (const [id, name] of [
      ["speed-mean", "llamacpp:predicted_tokens_seconds"],
      ["prefill-mean", "llamacpp:prompt_tokens_seconds"],
    ]) {
      const mean = page.value(name);
      setText(byId(id), mean ? `${rate(mean)} tokens/s` : "–");
    }
  }

  #showCache(page) {
    const [used, all] = [page.value("edgekit_kv_cells_used"), page.value("edgekit_kv_cells")];
    setText(byId("kv"), all ? `${number(used)} of ${number(all)} tokens` : "–");
    const percent = all ? Math.round((used / all) * 100) : 0;
    byId("kv-meter").setAttribute("aria-valuenow", percent);
    byId("kv-meter").firstElementChild.style.width = `${percent}%`;
    const hits = page.value("edgekit_prefix_hits_total");
    const misses = page.value("edgekit_prefix_misses_total");
    setText(byId("prefix"), hits + misses ? `${number(hits)} of ${number(hits + misses)}` : "–");
  }

  #showLatency(id, buckets, chart = null) {
    const [middle, high] = [quantile(buckets, 0.5), quantile(buckets, 0.95)];
    setText(byId(id), middle === null ? "–" : `${seconds(middle)}, ${seconds(high)}`);
    if (chart) drawHistogram(chart, buckets);
  }
}

// The state that an error of /health, or of what comes after it, stands for, and the server's words for it.
function stateOf(error) {
  if (!(error instanceof ServerError)) return ["unreachable"];
  if (error.status === 401) return ["locked", savedKey() ? "refused" : ""];
  if (error.code === "model_loading") return ["loading"];
  if (/drain|shutting|stopp/.test(error.code ?? "")) return ["draining"];
  return [error.status === 503 ? "busy" : "failed", error.message];
}
