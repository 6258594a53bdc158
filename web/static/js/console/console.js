// The console's pages: forms that leave as JSON, keys, answers drawn as the customer saw them.

import { drawAnswers } from "./answers.js";
import { sendForms } from "./forms.js";
import { listenToKeys } from "./keys.js";

sendForms();
listenToKeys();
drawAnswers();
