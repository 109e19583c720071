// A subset of Markdown as elements. Text of the model becomes text nodes only, and links lead to
// http, https and mailto only.
import { copyButton, h } from "./dom.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const TABLE_RULE = /^ {0,3}\|?( *:?-+:? *\|)+( *:?-+:? *)?$|^ {0,3}\| *:?-+:? *$/;
const MAX_DEPTH = 12;

/** Show `text` in `container`; blocks that are the same as before stay, with what is selected. */
export function showMarkdown(container, text) {
  const blocks = split(text);
  const { children } = container;
  blocks.forEach((block, i) => {
    const source = block.kind + block.lines.join("\n");
    if (children[i]?.markdown === source) return;
    const element = render(block, 0);
    element.markdown = source;
    if (children[i]) children[i].replaceWith(element);
    else container.append(element);
  });
  while (children.length > blocks.length) container.lastElementChild.remove();
}

/** Return a block of code with its language and a button that copies it. */
export function codeBlock(text, language, content = text) {
  return h(
    "div",
    { class: "code-block" },
    h("div", { class: "code-head" }, h("span", {}, language || "text"), copyButton("Copy code", () => text)),
    h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, h("code", {}, content)),
  );
}

/** Return JSON, indented and with its parts marked; null: it is none. */
export function jsonBlock(text) {
  let shown;
  try {
    const value = JSON.parse(text);
    if (value === null || typeof value !== "object") return null;
    shown = JSON.stringify(value, null, 2);
  } catch {
    return null;
  }
  const parts = [];
  let end = 0;
  for (const match of shown.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|\b(?:true|false|null)\b|-?\d[\d.eE+-]*/g)) {
    parts.push(shown.slice(end, match.index));
    const kind = match[2] ? "key" : match[1] ? "string" : "literal";
    parts.push(h("span", { class: `json-${kind}` }, match[1] ?? match[0]), match[2] ?? "");
    end = match.index + match[0].length;
  }
  return codeBlock(shown, "json", [...parts, shown.slice(end)]);
}

/** Split text into blocks. */
function split(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let i = 0;
  const takeWhile = (kind, test) => {
    const start = i;
    while (i < lines.length && test(lines[i], i > start)) i++;
    blocks.push({ kind, lines: lines.slice(start, i) });
  };
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      i++;
    } else if (fence) {
      const close = new RegExp(`^ {0,3}${fence[2][0]}{${fence[2].length},}\\s*$`);
      const start = i++;
      while (i < lines.length && !close.test(lines[i])) i++;
      blocks.push({ kind: "code", lines: lines.slice(start, i), language: fence[3], indent: fence[1].length });
      i++;
    } else if (HEADING.test(line)) {
      blocks.push({ kind: "heading", lines: [line] });
      i++;
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule", lines: [line] });
      i++;
    } else if (QUOTE.test(line)) {
      takeWhile("quote", (l) => QUOTE.test(l));
    } else if (isItem(line)) {
      const ordered = isOrdered(line);
      takeWhile("list", (l, later) => {
        if (!later) return true;
        if (!l.trim()) return i + 1 < lines.length && (/^\s{2,}\S/.test(lines[i + 1]) || isSibling(lines[i + 1], ordered));
        if (isItem(l) && !/^\s{2,}/.test(l)) return isOrdered(l) === ordered;
        return /^\s/.test(l) || (lines[i - 1].trim() && !startsBlock(l));
      });
    } else if (line.includes("|") && TABLE_RULE.test(lines[i + 1] ?? "")) {
      takeWhile("table", (l) => l.includes("|"));
    } else {
      takeWhile("paragraph", (l, later) => l.trim() && !(later && startsBlock(l)));
    }
  }
  return blocks;
}

const isItem = (line) => ITEM.test(line) && !RULE.test(line);
const isOrdered = (line) => /^\s*\d/.test(line);
const isSibling = (line, ordered) => isItem(line) && isOrdered(line) === ordered;
const startsBlock = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isItem(line);

function render({ kind, lines, language, indent }, depth) {
  if (depth > MAX_DEPTH) return h("p", {}, lines.join("\n"));
  switch (kind) {
    case "code": {
      const margin = new RegExp(`^ {0,${indent}}`);
      return codeBlock(lines.slice(1).map((l) => l.replace(margin, "")).join("\n"), language);
    }
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // The page has levels 1 and 2.
      const title = text.trim().replace(/(^|\s)#+$/, "");
      return h(`h${Math.min(marks.length + 2, 6)}`, {}, inline(title.trimEnd()));
    }
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, blocksOf(lines.map((l) => l.replace(QUOTE, "")), depth));
    case "list":
      return list(lines, depth);
    case "table":
      return table(lines);
    default:
      return h("p", {}, inline(lines.map((l) => l.trimStart()).join("\n")));
  }
}

const blocksOf = (lines, depth) => split(lines.join("\n")).map((block) => render(block, depth + 1));

function list(lines, depth) {
  const base = ITEM.exec(lines[0])[1].length;
  const ordered = isOrdered(lines[0]);
  const items = [];
  let width = 0;
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length < base + 2 && isItem(line)) {
      width = match[0].length;
      items.push([line.slice(width)]);
    } else {
      items.at(-1).push(line.replace(new RegExp(`^ {0,${width}}`), ""));
    }
  }
  const start = ordered ? Number.parseInt(lines[0], 10) : 1;
  const content = items.map((item) => {
    while (item.length > 1 && !item.at(-1).trim()) item.pop();
    const blocks = blocksOf(item, depth);
    // Lists without blank lines have no paragraphs.
    if (blocks[0]?.tagName === "P" && !item.includes("")) blocks[0] = [...blocks[0].childNodes];
    return h("li", {}, ...blocks.flat());
  });
  return h(ordered ? "ol" : "ul", { start: start !== 1 && start }, content);
}

function table([head, rule, ...rows]) {
  const cells = (line) => {
    const text = line.trim().replace(/^\|/, "").replace(/\|$/, "");
    return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  };
  const sides = cells(rule).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
  const titles = cells(head);
  const row = (tag, texts) =>
    h("tr", {}, titles.map((_, i) => h(tag, { class: sides[i] && `align-${sides[i]}` }, inline(texts[i] ?? ""))));
  return h(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", titles)), h("tbody", {}, rows.map((line) => row("td", cells(line))))),
  );
}

const INLINE = new RegExp(
  [
    "\\\\(?<escaped>[!-/:-@[-`{-~])",
    "(?<ticks>`+)(?<code>[^`]|[^`][\\s\\S]*?[^`])\\k<ticks>(?!`)",
    "!?\\[(?<label>(?:[^\\[\\]\\\\\\n]|\\\\.)*)\\]\\((?<href>[^\\s()<>]*(?:\\([^\\s()]*\\)[^\\s()]*)*)(?:\\s+\"[^\"\\n]*\")?\\)",
    "(?<url>\\bhttps?://[^\\s<>`]*[^\\s<>`.,:;!?'\"*_~)\\]])",
    "\\*\\*(?=\\S)(?<strong>[\\s\\S]{0,2000}?\\S)\\*\\*(?!\\*)",
    "(?<![\\w_])__(?=\\S)(?<strong2>[\\s\\S]{0,2000}?\\S)__(?![\\w_])",
    "\\*(?=[^\\s*])(?<em>[^*]*[^\\s*])\\*",
    "(?<![\\w_])_(?=[^\\s_])(?<em2>[^_]*[^\\s_])_(?![\\w_])",
    "~~(?=\\S)(?<del>[\\s\\S]{0,2000}?\\S)~~",
    "(?<br> {2,}\\n)",
  ].join("|"),
  "g",
);

/** Return the nodes of a text inside a block. */
function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, match.index));
    nodes.push(inlineNode(match, depth));
    end = match.index + match[0].length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

function inlineNode(match, depth) {
  const found = match.groups;
  const inner = (content) => inline(content, depth + 1);
  if (found.escaped) return found.escaped;
  if (found.code !== undefined) return h("code", {}, found.code);
  if (found.url) return link(found.url, [found.url]);
  if (found.href !== undefined) return link(found.href, inner(found.label || found.href)) ?? match[0];
  if (found.strong ?? found.strong2) return h("strong", {}, inner(found.strong ?? found.strong2));
  if (found.em ?? found.em2) return h("em", {}, inner(found.em ?? found.em2));
  if (found.del) return h("del", {}, inner(found.del));
  return h("br");
}

/** Return a link; null: it would lead elsewhere than to a web page or a mail address. */
function link(href, content) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return null;
  return h("a", { href, target: "_blank", rel: "noopener noreferrer" }, content);
}
