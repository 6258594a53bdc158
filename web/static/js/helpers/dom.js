// Markup comes from the page's <template> elements; data goes in as text.

export function clone(templateId) {
  return document.getElementById(templateId).content.firstElementChild.cloneNode(true);
}

export function part(node, name) {
  return node.querySelector(`[data-part="${name}"]`);
}

// -> is `text` in the clipboard? A frame on another site's page, or a page without TLS, has only the older way there.
export async function copied(text) {
  const isOurs = parent === window && navigator.clipboard;
  if (isOurs && (await navigator.clipboard.writeText(text).then(() => true, () => false))) return true;
  const give = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  addEventListener("copy", give, { once: true });
  return document.execCommand("copy");
}

// A UUID also where the page is served without TLS and crypto.randomUUID is missing.
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
