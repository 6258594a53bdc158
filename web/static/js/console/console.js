// The console's pages: forms that leave as JSON, keys, answers drawn as the customer saw them.

import { drawAnswers } from "./answers.js";
import { sendForms } from "./forms.js";
import "./inbox.js";
import { listenToKeys } from "./keys.js";
import "./policy.js";

// Who follows a link from another site comes without the cookie. Asked from this page, the server sees it.
async function goOnIfSignedIn(form) {
  const response = await fetch(location.href, { redirect: "manual", cache: "no-store" }).catch(() => null);
  if (response?.type === "opaqueredirect") location.replace(form.elements.next.value || "/console");
}

const signIn = document.querySelector('form[data-send="/console/sign_in"]');
if (signIn) goOnIfSignedIn(signIn);
sendForms();
listenToKeys();
drawAnswers();
