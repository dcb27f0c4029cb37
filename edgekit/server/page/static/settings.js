// What a chat is asked with. Kept with the tab, as the key is: another tab, or tomorrow, begins anew.

import { saveKey, savedKey } from "./api.js";
import { byId } from "./dom.js";

const SETTINGS = "edgekit.settings";
const FIELDS = ["system", "temperature", "max-tokens", "seed"];

export function startSettings({ onKey }) {
  const dialog = byId("settings");
  const saved = JSON.parse(sessionStorage.getItem(SETTINGS) ?? "{}");
  for (const field of FIELDS) byId(field).value = saved[field] ?? "";
  byId("open-settings").addEventListener("click", showSettings);
  byId("settings-form").addEventListener("input", () => {
    const values = Object.fromEntries(FIELDS.map((field) => [field, byId(field).value]));
    sessionStorage.setItem(SETTINGS, JSON.stringify(values));
  });
  byId("settings-key").addEventListener("change", () => {
    saveKey(byId("settings-key").value.trim());
    onKey();
  });
  dialog.addEventListener("click", (event) => {
    // A click on the dialog itself is one beside its form: on the backdrop.
    if (event.target === dialog) dialog.close();
  });
}

export function showSettings() {
  byId("settings-key").value = savedKey();
  byId("settings").showModal();
  if (!settingsAreValid()) byId("settings-form").reportValidity();
}

export const settingsAreValid = () => byId("settings-form").checkValidity();

export const systemPrompt = () => byId("system").value.trim();

// The fields of a request that are set; what is not set is the server's to choose.
export function chatOptions() {
  const given = {
    temperature: byId("temperature").valueAsNumber,
    max_tokens: byId("max-tokens").valueAsNumber,
    seed: byId("seed").valueAsNumber,
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => Number.isFinite(value)));
}
