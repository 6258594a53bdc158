// The words of the page, in its language; the server wrote them into the page as a data block.

const strings = JSON.parse(document.getElementById("strings").textContent);

export const language = document.documentElement.dataset.language;

export function say(key, values = {}) {
  return strings[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function count(number) {
  return new Intl.NumberFormat(document.documentElement.lang).format(number);
}
