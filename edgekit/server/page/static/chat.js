// The chat: what was said, what is being said, and the form it is written in.

import { ServerError, streamChat } from "./api.js";
import { byId, setText } from "./dom.js";
import { chatOptions, settingsAreValid, showSettings, systemPrompt } from "./settings.js";
import { Answer, showQuestion } from "./turn.js";

const NEAR_END_PX = 60;
const ANNOUNCED_CHARACTERS = 2000;

export class Chat {
  // [{question, node, answer}]
  #turns = [];
  #running = null;
  #follows = true;
  #ready = true;
  #onUnauthorized;

  constructor({ onUnauthorized }) {
    this.#onUnauthorized = onUnauthorized;
    const message = byId("message");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    message.addEventListener("keydown", (event) => {
      // Enter that picks a word of an input method does not send.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    message.addEventListener("input", () => this.#fit());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.clear());
    byId("turns").addEventListener("click", (event) => this.#onClick(event));
    byId("turns").addEventListener("grown", () => this.#follow());
    byId("log").addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    byId("to-end").addEventListener("click", () => this.#toEnd());
    this.#showButtons();
  }

  // Whether the server takes requests.
  setReady(ready) {
    this.#ready = ready;
    this.#showButtons();
  }

  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#turns = [];
    byId("turns").replaceChildren();
    byId("welcome").hidden = false;
    this.#showButtons();
    this.#toEnd();
    byId("message").focus();
  }

  #send() {
    const message = byId("message");
    const question = message.value.trim();
    if (!question || this.#running || !this.#ready) return;
    if (!settingsAreValid()) {
      showSettings();
      return;
    }
    message.value = "";
    this.#fit();
    byId("welcome").hidden = true;
    const turn = { question, node: showQuestion(question), answer: null };
    this.#turns.push(turn);
    this.#answer(turn);
  }

  // Asks for the answer to the last turn.
  async #answer(turn) {
    const running = new AbortController();
    this.#running = running;
    this.#follows = true;
    this.#showActions();
    const answer = new Answer();
    turn.answer = answer;
    this.#showButtons();
    this.#toEnd();
    announce("The model is answering");
    try {
      const body = { messages: this.#messages(), ...chatOptions() };
      for await (const chunk of streamChat(body, running.signal)) {
        if (answer.take(chunk) === "reasoning") announce("The model is thinking");
      }
      answer.end("done");
      announce(answer.content.slice(0, ANNOUNCED_CHARACTERS) || "The answer is empty");
    } catch (error) {
      answer.end(running.signal.aborted ? "stopped" : told(error));
      announce(running.signal.aborted ? "Stopped" : told(error).message);
      if (error.status === 401) this.#onUnauthorized();
    }
    if (this.#running === running) this.#running = null;
    this.#showButtons();
    this.#showActions();
  }

  // The chat as the server takes it. Answers that were lost, and the questions to them, are left out.
  #messages() {
    const system = systemPrompt();
    const messages = system ? [{ role: "system", content: system }] : [];
    this.#turns.forEach(({ question, answer }, index) => {
      const last = index === this.#turns.length - 1;
      if (answer.lost && !last) return;
      messages.push({ role: "user", content: question });
      if (!last) messages.push({ role: "assistant", content: answer.content });
    });
    return messages;
  }

  #onClick(event) {
    const button = event.target.closest("button");
    if (button?.dataset.action === "regenerate" && !this.#running && this.#ready) {
      const turn = this.#turns[this.#turns.length - 1];
      turn.answer.remove();
      byId("message").focus();
      this.#answer(turn);
    } else if (button?.dataset.copy) {
      const code = button.closest(".code")?.querySelector("code").textContent;
      const index = [...byId("turns").querySelectorAll(".turn.model")].indexOf(button.closest(".turn"));
      copy(button, button.dataset.copy === "code" ? code : this.#turns[index].answer.content);
    }
  }

  #showButtons() {
    const running = this.#running !== null;
    const [send, stop] = [byId("send"), byId("stop")];
    // The one that has the focus passes it on rather than lose it.
    const hadFocus = document.activeElement === send || document.activeElement === stop;
    send.hidden = running;
    stop.hidden = !running;
    send.disabled = !this.#ready;
    byId("new-chat").disabled = this.#turns.length === 0;
    if (hadFocus) byId("message").focus();
  }

  // Only the last answer can be asked for again.
  #showActions() {
    const buttons = [...byId("turns").querySelectorAll("[data-action=regenerate]")];
    buttons.forEach((button, index) => {
      button.hidden = index < buttons.length - 1 || this.#running !== null;
    });
  }

  #fit() {
    const message = byId("message");
    message.style.height = "auto";
    message.style.height = `${message.scrollHeight + 2}px`;
  }

  #noteScroll() {
    const log = byId("log");
    this.#follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    byId("to-end").hidden = this.#follows;
  }

  #follow() {
    if (this.#follows) this.#toEnd();
    else byId("to-end").hidden = false;
  }

  #toEnd() {
    const log = byId("log");
    log.scrollTop = log.scrollHeight;
    this.#follows = true;
    byId("to-end").hidden = true;
  }
}

// fetch says no more than "TypeError: Failed to fetch".
function told(error) {
  if (error instanceof ServerError) return error;
  const unreachable = error instanceof TypeError;
  return new Error(unreachable ? "The server cannot be reached." : `This page failed: ${error}`);
}

function announce(text) {
  setText(byId("announcer"), text);
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Browsers allow it on https and on this machine only.
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
