// One answer of the model on the page: its reasoning, its text, and what it took.

import { byId, element, setText } from "./dom.js";
import { number, rate, seconds, tokens } from "./format.js";
import { showMarkdown } from "./markdown.js";

const WINDOW_MS = 3000;

// How many characters of a token's text there are, until an answer has told.
let charactersPerToken = 4.5;

export function showQuestion(text) {
  const turn = element("article", { className: "turn user" });
  turn.setAttribute("aria-label", "You");
  turn.append(element("p", {}, text));
  byId("turns").append(turn);
  return turn;
}

export class Answer {
  content = "";
  reasoning = "";
  // Nothing came of it: it is no part of the chat that later questions go on with.
  lost = false;

  #began = performance.now();
  #firstAt = null;
  #answerAt = null;
  #endedAt = null;
  #chunks = 0;
  #recent = [];
  #usage = null;
  #timings = null;
  #finishReason = null;
  #frame = null;
  #root = element("article", { className: "turn model" });
  #details = element("details", { className: "reasoning", hidden: true });
  #thought = element("span");
  #reasoningText = element("div", { className: "md" });
  #text = element("div", { className: "md answer" });
  #figures = element("p", { className: "figures" });
  #actions = element("p", { className: "actions", hidden: true });
  #error = element("p", { className: "error", hidden: true });

  constructor() {
    this.#root.setAttribute("aria-label", "Model");
    this.#root.setAttribute("aria-busy", "true");
    const summary = element("summary", {}, this.#thought);
    this.#details.append(summary, this.#reasoningText);
    for (const [action, label] of [["answer", "Copy"], ["regenerate", "Regenerate"]]) {
      const button = element("button", { type: "button", className: "quiet" }, label);
      if (action === "answer") button.dataset.copy = action;
      else button.dataset.action = action;
      this.#actions.append(button);
    }
    const foot = element("footer", {}, this.#figures, this.#actions);
    this.#root.append(this.#details, this.#text, this.#error, foot);
    byId("turns").append(this.#root);
    this.#show();
    // Waiting and thinking are told in seconds also while nothing comes.
    this.timer = setInterval(() => this.#schedule(), 250);
  }

  // Takes a chunk of the stream. Returns what it added first: "reasoning", "content" or nothing.
  take(chunk) {
    const delta = chunk.choices[0]?.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    const content = delta.content ?? "";
    const now = performance.now();
    const thinks = reasoning && !this.reasoning;
    const began = thinks ? "reasoning" : content && !this.content && "content";
    if (reasoning || content) {
      this.#firstAt ??= now;
      if (content) this.#answerAt ??= now;
      this.#chunks += 1;
      this.reasoning += reasoning;
      this.content += content;
      this.#recent.push([now, this.#tokens()]);
    }
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    this.#finishReason = chunk.choices[0]?.finish_reason ?? this.#finishReason;
    this.#schedule();
    return began;
  }

  // Ends the answer: `how` is "done", "stopped" or an error.
  end(how) {
    clearInterval(this.timer);
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#endedAt = performance.now();
    const characters = this.content.length + this.reasoning.length;
    const count = this.#usage?.completion_tokens;
    if (count > 8 && characters) charactersPerToken = characters / count;
    if (how === "stopped") this.#finishReason = "stopped";
    if (how instanceof Error) {
      this.lost = !this.content;
      this.#error.textContent = how.message;
      this.#error.hidden = false;
    }
    this.#root.setAttribute("aria-busy", "false");
    this.#actions.hidden = false;
    this.#show();
  }

  remove() {
    this.#root.remove();
  }

  #schedule() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#show();
    });
  }

  #show() {
    if (this.reasoning) this.#details.hidden = false;
    setText(this.#thought, this.#thoughtLabel());
    showMarkdown(this.#reasoningText, this.reasoning);
    showMarkdown(this.#text, this.content);
    setText(this.#figures, this.#endedAt === null ? this.#liveFigures() : this.#finalFigures());
    this.#root.dispatchEvent(new CustomEvent("grown", { bubbles: true }));
  }

  // The server sends text fifty times a second at most, so a chunk is one token or several.
  #tokens() {
    const characters = this.content.length + this.reasoning.length;
    return Math.max(this.#chunks, Math.round(characters / charactersPerToken));
  }

  #reasoningTokens() {
    const told = this.#usage?.completion_tokens_details?.reasoning_tokens;
    if (told) return tokens(told);
    const share = this.reasoning.length / (this.reasoning.length + this.content.length);
    return `about ${tokens(Math.round(this.#tokens() * share))}`;
  }

  #thoughtLabel() {
    if (!this.reasoning) return "";
    const end = this.#answerAt ?? this.#endedAt;
    const took = Math.max(0.1, ((end ?? performance.now()) - this.#firstAt) / 1000);
    const shown = `${number(took, end !== null && took < 9.95 ? 1 : 0)} s, ${this.#reasoningTokens()}`;
    return end === null ? `Thinking… ${shown}` : `Thought for ${shown}`;
  }

  #liveFigures() {
    const now = performance.now();
    if (this.#firstAt === null) return `Reading the prompt… ${number((now - this.#began) / 1000)} s`;
    while (this.#recent.length > 1 && now - this.#recent[0][0] > WINDOW_MS) this.#recent.shift();
    const [[from, before]] = this.#recent;
    const [until, count] = this.#recent[this.#recent.length - 1];
    // Over the time up to the last chunk: a rate that falls while waiting for the next one would flicker.
    const speed = until - from > 200 ? (count - before) / ((until - from) / 1000) : null;
    const soFar = `about ${tokens(count)}`;
    return speed === null ? soFar : `≈ ${rate(speed)} tokens/s · ${soFar}`;
  }

  #finalFigures() {
    const timings = this.#timings;
    const told = this.#usage?.completion_tokens ?? timings?.predicted_n;
    const took = (this.#endedAt - this.#firstAt) / 1000;
    const measured = this.#chunks > 1 && took > 0.2 ? this.#tokens() / took : null;
    const speed = timings?.predicted_per_second ?? measured;
    const first = timings?.ttft_ms ?? (this.#firstAt === null ? null : this.#firstAt - this.#began);
    const cached = this.#usage?.prompt_tokens_details?.cached_tokens;
    const parts = [];
    if (this.#firstAt !== null) {
      const about = timings?.predicted_per_second || speed === null ? "" : "≈ ";
      if (speed !== null) parts.push(`${about}${rate(speed)} tokens/s`);
      parts.push(told ? tokens(told) : `about ${tokens(this.#tokens())}`);
      parts.push(`first after ${seconds(first / 1000)}`);
    }
    if (this.#usage) {
      const found = cached ? `, ${number(cached)} cached` : "";
      parts.push(`prompt of ${tokens(this.#usage.prompt_tokens)}${found}`);
    }
    if (this.#finishReason === "length") parts.push("cut at the limit");
    if (this.#finishReason === "stopped") parts.push("stopped");
    return parts.join(" · ");
  }
}
