// An answer as the customer saw it; its citations lead to the sources below it.

import { clone } from "../helpers/dom.js";
import { MarkdownView } from "../helpers/markdown.js";

export function drawAnswers() {
  for (const box of document.querySelectorAll("[data-answer]")) {
    const text = box.textContent;
    const cite = (number) => {
      const source = document.getElementById(`${box.dataset.answer}-${number}`);
      if (!source) return null;
      const link = clone("citation");
      link.textContent = number;
      link.href = `#${source.id}`;
      link.addEventListener("click", () => (source.querySelector("details").open = true));
      return link;
    };
    box.replaceChildren();
    new MarkdownView(box, cite).draw(text);
  }
}
