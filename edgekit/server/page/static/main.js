// Puts the page together.

import { saveKey, savedKey } from "./api.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { startSettings } from "./settings.js";
import { Status } from "./status.js";

const TAKES_REQUESTS = new Set(["connecting", "ready", "busy"]);
const KEY_HINT = "It stays in this tab, and is sent to this server only.";
const UNKNOWN_KEY = "The server does not know this key.";

const chat = new Chat({ onUnauthorized: () => status.poll() });
startSettings({ onKey: () => status.poll() });
const status = new Status({ onState: showState });

function showState(state) {
  chat.setReady(TAKES_REQUESTS.has(state));
  const form = byId("key-form");
  const appears = state === "locked" && form.hidden;
  form.hidden = state !== "locked";
  if (!form.hidden) setText(byId("key-hint"), savedKey() ? UNKNOWN_KEY : KEY_HINT);
  // Nothing else can be done here; but nobody is interrupted.
  const idle = [document.body, byId("message")].includes(document.activeElement) && !byId("message").value;
  if (appears && idle) byId("key").focus();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  saveKey(byId("key").value.trim());
  await status.poll();
  if (status.state === "locked") {
    byId("key").select();
  } else {
    byId("key").value = "";
    byId("message").focus();
  }
});

// Beside the chat where there is room; else a sheet over it, which the button in the header opens.
const pill = byId("state");
const roomy = matchMedia("(min-width: 861px)");

function showSheet(open) {
  pill.setAttribute("aria-expanded", String(open));
  byId("status").hidden = !open;
}

showSheet(roomy.matches);
roomy.addEventListener("change", () => showSheet(roomy.matches));
pill.addEventListener("click", () => {
  showSheet(byId("status").hidden);
  if (!roomy.matches && !byId("status").hidden) byId("status").focus();
});
byId("status").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || roomy.matches) return;
  event.stopPropagation();
  showSheet(false);
  pill.focus();
});
