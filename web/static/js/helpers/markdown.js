// Markdown from an allow-list, straight to DOM nodes: paragraphs, lists, code, bold, italic, same-site links, [n] citations.
// Everything else stays the text it was: HTML, images, links to other sites.

const INLINE = new RegExp(
  [
    /\\(?<escaped>[\\`*_[\]()#+\-.!>])/,
    /`(?<code>[^`\n]+)`/,
    /\*\*(?=\S)(?<bold>(?:[^*]|\*(?!\*))+)(?<=\S)\*\*/,
    /\*(?=[^\s*])(?<italic>[^*\n]+)(?<=\S)\*/,
    /(?<![\p{L}\p{N}_])_(?=[^\s_])(?<slanted>[^_\n]+)(?<=\S)_(?![\p{L}\p{N}_])/,
    /(?<image>!?)\[(?<label>[^[\]\n]*)\]\((?<url>[^()\s]+)\)/,
    /\[(?<cited>[1-9]\d?)\]/,
    /(?<newline>\n)/,
  ]
    .map((rule) => rule.source)
    .join("|"),
  "gu",
);
const ITEM = /^\s*(?:[-*+•]|(\d{1,4})[.)])\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;
const FENCE = /^\s*```/;
const MAX_DEPTH = 4;

// A growing text, closed for the moment: a mark just begun would flash as itself, bold just begun is bold already.
export function growing(text) {
  const shown = text.replace(/(?:\[\d{0,2}|\*{1,2}|`{1,3})$/, "");
  const last = shown.slice(shown.lastIndexOf("\n\n") + 1);
  return last.split("**").length % 2 ? shown : `${shown.trimEnd()}**`;
}

// -> [{kind: "p" | "h" | "ul" | "ol" | "pre", start, lines: [text]}], in reading order
export function blocks(text) {
  const found = [];
  let open = null;
  let gap = false;
  const start = (kind, lines, number = 1) => found.push((open = { kind, start: number, lines }));
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    const item = ITEM.exec(line);
    const heading = HEADING.exec(line);
    const kind = item?.[1] ? "ol" : "ul";
    if (open?.kind === "pre") {
      if (FENCE.test(line)) open = null;
      else open.lines.push(line);
      continue;
    }
    if (FENCE.test(line)) start("pre", []);
    else if (item && open?.kind === kind) open.lines.push(item[2]);
    else if (item) start(kind, [item[2]], Number(item[1] ?? 1));
    else if (heading) start("h", [heading[1]]);
    else if (line.trim() && (gap || !open || open.kind === "h")) start("p", [line]);
    else if (line.trim()) open.lines.push(`${open.lines.pop()}\n${line.trim()}`);
    gap = !line.trim();
  }
  return found;
}

function sameSite(url) {
  if (!/^(?:\/(?![/\\])|https?:\/\/)/i.test(url)) return null;
  const target = URL.canParse(url, location.origin) ? new URL(url, location.origin) : null;
  return target?.origin === location.origin ? target.href : null;
}

function wrap(tag, ...children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function link({ image, label, url }) {
  const href = image ? null : sameSite(url);
  if (!href) return !label || label === url ? url : image ? label : `${label} (${url})`;
  const anchor = wrap("a", label || url);
  anchor.href = href;
  anchor.target = "_blank";
  anchor.rel = "noopener";
  return anchor;
}

function inlineNode(groups, cite, depth) {
  const inner = groups.bold ?? groups.italic ?? groups.slanted;
  if (groups.escaped) return groups.escaped;
  if (groups.code) return wrap("code", groups.code);
  if (inner) return wrap(groups.bold ? "strong" : "em", ...inline(inner, cite, depth + 1));
  if (groups.cited) return cite(Number(groups.cited));
  return groups.newline ? document.createElement("br") : link(groups);
}

// A citation stays on the line of the word it stands behind.
function tied(before, citation) {
  const [last] = /\S? ?$/u.exec(before);
  const span = wrap("span", last.replace(" ", "\u202f"), citation);
  span.className = "tied";
  return [before.slice(0, before.length - last.length), span];
}

// `cite(number)` returns the node for a citation, or null to leave "[n]" as text.
export function inline(text, cite, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const node = inlineNode(match.groups, cite, depth);
    const before = text.slice(end, match.index);
    nodes.push(...(match.groups.cited && node ? tied(before, node) : [before, node ?? match[0]]));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)].filter((node) => node !== "");
}

function blockNode(block, cite) {
  if (block.kind === "pre") return wrap("pre", wrap("code", block.lines.join("\n")));
  if (block.kind === "p") return wrap("p", ...inline(block.lines[0], cite));
  if (block.kind === "h") return wrap("p", wrap("strong", ...inline(block.lines[0], cite)));
  const list = wrap(block.kind, ...block.lines.map((line) => wrap("li", ...inline(line, cite))));
  if (block.kind === "ol") list.start = block.start;
  return list;
}

// Draws a text that may still be growing; blocks that did not change keep their nodes, so a selection survives.
export class MarkdownView {
  #container;
  #cite;
  #drawn = [];

  constructor(container, cite) {
    this.#container = container;
    this.#cite = cite;
  }

  draw(text) {
    const wanted = blocks(text);
    const keys = wanted.map((block) => JSON.stringify(block));
    const changed = keys.findIndex((key, index) => key !== this.#drawn[index]);
    const same = changed < 0 ? keys.length : changed;
    while (this.#container.childNodes.length > same) this.#container.lastChild.remove();
    this.#container.append(...wanted.slice(same).map((block) => blockNode(block, this.#cite)));
    this.#drawn = keys;
  }
}
