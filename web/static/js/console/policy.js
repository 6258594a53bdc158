// The policy's test set, put to the model under the text on the page, verdict by verdict.

import { clone, part } from "../helpers/dom.js";
import { say } from "../helpers/strings.js";
import { complain, send } from "./forms.js";

const byId = (id) => document.getElementById(id);

function row({ asked, answer, faults }) {
  const node = clone("line");
  const { ok, failed } = part(node, "state").dataset;
  part(node, "state").textContent = faults.length ? failed : ok;
  for (const [name, text] of Object.entries({ asked, answer, faults: faults.join("; ") })) part(node, name).textContent = text;
  return node;
}

async function runTests({ target: button }) {
  button.disabled = true;
  complain("");
  byId("lines").replaceChildren();
  byId("verdicts").hidden = false;
  byId("verdicts").focus();
  try {
    for (let test = 0, total = 1, passed = 0; test < total; test += 1) {
      const verdict = await send("/console/policy/test", { content: byId("content").value, test });
      byId("lines").append(row(verdict));
      passed += verdict.faults.length === 0;
      total = verdict.total;
      byId("tally").textContent = say("console_check_tally", { passed, done: test + 1, total });
    }
  } catch (error) {
    complain(error.message, byId("verdicts"));
  }
  button.disabled = false;
}

byId("run-tests")?.addEventListener("click", runTests);
