// Whatever has data-send="/path" goes there as JSON with the page's token; the reply says where to go next, or is shown in its places.

import { say } from "../helpers/strings.js";

// What these refuse, only the server can say: its own sentence follows ours.
const TELLING = ["import_refused", "bad_policy"];
const KNOWN = [
  ...["wrong_password", "bad_password", "rate_limit_exceeded", "not_signed_in", "csrf", "role_needed", "state_changed", "nothing_to_answer"],
  ...["bad_account", "own_account", "body_too_large", "not_found", "already_rated", "outdated", ...TELLING],
];
const WORDED_CHECKS = ["promise", "leak", "language", "length", "must_not_say", "loop"];
const box = document.getElementById("problem");

// Resolves to the response; rejects with a sentence for the person who pressed.
export async function open(method, path, fields) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": document.querySelector("meta[name=csrf]").content };
  const options = { method, headers, body: fields && JSON.stringify(fields), cache: "no-store" };
  const response = await fetch(path, options).catch(() => {
    throw new Error(say("console_problem_unreachable"));
  });
  if (response.ok) return response;
  const { code, message } = (await response.json().catch(() => ({}))).error ?? {};
  const sentence = say(`console_problem_${KNOWN.includes(code) ? code : "other"}`);
  throw new Error(TELLING.includes(code) ? `${sentence}\n${message}` : sentence);
}

// Resolves to the reply of a POST.
export async function send(path, fields) {
  return (await open("POST", path, fields)).json().catch(() => ({}));
}

// `near` is what the sentence appears before; without it, at the top of the page.
export function complain(sentence, near = null) {
  (near ?? document.getElementById("main").firstChild).before(box);
  box.textContent = sentence;
  box.hidden = !sentence;
}

// What the policy's checks say of a text, a sentence each.
export function caution(box, violations) {
  const sentence = ({ kind, text }) => say(`console_check_${WORDED_CHECKS.includes(kind) ? kind : "number"}`, { text: text.trim() });
  box.textContent = [...new Set(violations.map(sentence))].join("\n") || (box.dataset.fine ?? "");
  box.hidden = !box.textContent;
  box.classList.toggle("good", !violations.length);
}

async function press(path, read, button) {
  if (button.disabled) return;
  complain("");
  button.disabled = true;
  try {
    const { location: next, ...reply } = await send(path, await read());
    if (next && button.form) delete button.form.dataset.changed;
    if (next) location.assign(next);
    else show(reply);
    button.disabled = Boolean(next);
  } catch (error) {
    complain(error.message, button.closest(".moves") ?? (button.form && button));
    button.disabled = false;
  }
}

function show(reply) {
  for (const [name, value] of Object.entries(reply)) {
    const place = document.querySelector(`[data-reply="${name}"]`);
    if (Array.isArray(value)) caution(place, value);
    else place.textContent = value;
    place.closest("[data-replied]").hidden = false;
    place.closest("[data-replied]").focus();
  }
}

// A file goes as its name and its bytes in base64.
async function withFile(form, fields) {
  const file = form.querySelector("[type=file]")?.files[0];
  if (!file) return fields;
  if (file.size > Number(form.dataset.max)) throw new Error(say("console_problem_body_too_large"));
  const reader = new FileReader();
  await new Promise((resolve) => {
    reader.onloadend = resolve;
    reader.readAsDataURL(file);
  });
  return { name: file.name, content: reader.result?.replace(/^[^,]*,?/, "") };
}

export function sendForms() {
  for (const form of document.querySelectorAll("form[data-send]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const button = event.submitter ?? form.querySelector("[type=submit]");
      const fields = Object.fromEntries(new FormData(form, button));
      press(button.getAttribute("formaction") ?? form.dataset.send, () => withFile(form, fields), button);
    });
    form.addEventListener("input", () => (form.dataset.changed = ""));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) form.requestSubmit();
    });
  }
  for (const button of document.querySelectorAll("button[data-send]")) {
    button.addEventListener("click", () => press(button.dataset.send, () => ({}), button));
  }
  addEventListener("beforeunload", (event) => {
    if (document.querySelector("[data-unsaved][data-changed]")) event.preventDefault();
  });
  for (const choice of document.querySelectorAll("form:not([data-send]) select")) {
    choice.addEventListener("change", () => choice.form.requestSubmit());
  }
}
