// Whatever has data-send="/path" goes there as JSON with the page's token; the reply says where to go next.

import { say } from "../helpers/strings.js";

const KNOWN = ["wrong_password", "bad_password", "rate_limit_exceeded", "not_signed_in", "csrf", "role_needed", "state_changed", "nothing_to_answer"];
const box = document.getElementById("problem");

// Resolves to the response; rejects with a sentence for the person who pressed.
export async function open(method, path, fields) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": document.querySelector("meta[name=csrf]").content };
  const options = { method, headers, body: fields && JSON.stringify(fields), cache: "no-store" };
  const response = await fetch(path, options).catch(() => {
    throw new Error(say("console_problem_unreachable"));
  });
  if (response.ok) return response;
  const code = (await response.json().catch(() => ({}))).error?.code;
  throw new Error(say(`console_problem_${KNOWN.includes(code) ? code : "other"}`));
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

async function press(path, fields, button) {
  if (button.disabled) return;
  complain("");
  button.disabled = true;
  try {
    const { location: next } = await send(path, fields);
    if (next) location.assign(next);
    else button.disabled = false;
  } catch (error) {
    complain(error.message, button.form && button);
    button.disabled = false;
  }
}

export function sendForms() {
  for (const form of document.querySelectorAll("form[data-send]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      press(form.dataset.send, Object.fromEntries(new FormData(form)), form.querySelector("[type=submit]"));
    });
  }
  for (const button of document.querySelectorAll("button[data-send]")) {
    button.addEventListener("click", () => press(button.dataset.send, {}, button));
  }
  for (const choice of document.querySelectorAll("form:not([data-send]) select")) {
    choice.addEventListener("change", () => choice.form.requestSubmit());
  }
}
