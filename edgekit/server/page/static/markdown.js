// Markdown, as models write it, to elements. Text becomes text nodes: what looks like HTML stays as it is.
//
// Not all of CommonMark: code, headings, lists, quotes, tables, rules; emphasis, links, TeX left as it is.
// Everything is linear in the text, since it is parsed anew with every piece that arrives.

import { element } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?[ \t:|-]*-[ \t:|-]*$/;
const MAX_DEPTH = 6;

// Shows a text in `target`. Called again with a longer text, it keeps the blocks that have not changed.
export function showMarkdown(target, text) {
  const blocks = parseBlocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
  const shown = target.markdownSources ?? [];
  let same = 0;
  while (same < shown.length && same < blocks.length && shown[same] === blocks[same].source) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...blocks.slice(same).map((block) => block.build()));
  target.markdownSources = blocks.map((block) => block.source);
}

// Blocks of lines: {source, build}. What a block shows depends on its source alone.
function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [end, build] = readBlock(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), build });
    at = end;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readCode(lines, at, fence);
  const heading = HEADING.exec(line);
  // The page has headings of its own above these.
  if (heading) {
    const level = Math.min(6, heading[1].length + 2);
    return [at + 1, () => element(`h${level}`, {}, ...inline(heading[2].replace(/ +#+ *$/, "")))];
  }
  if (RULE.test(line)) return [at + 1, () => element("hr")];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && isTableRule(lines[at + 1])) return readTable(lines, at);
  return readParagraph(lines, at, depth);
}

const isTableRule = (line) => line.includes("|") && TABLE_RULE.test(line);

function readCode(lines, at, [, marks, language]) {
  let end = at + 1;
  const closes = (line) => {
    const text = line.trim();
    return text.length >= marks.length && text === marks[0].repeat(text.length);
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const indent = lines[at].length - lines[at].trimStart().length;
  const body = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, leading(line))));
  return [Math.min(end + 1, lines.length), () => codeBlock(body.join("\n"), language)];
}

function codeBlock(code, language) {
  const copy = element("button", { type: "button", className: "quiet copy", textContent: "Copy" });
  copy.dataset.copy = "code";
  const label = element("span", {}, language || "text");
  const text = element("pre", { tabIndex: 0 }, element("code", {}, code));
  return element("div", { className: "code" }, element("div", { className: "code-head" }, label, copy), text);
}

const leading = (line) => line.length - line.trimStart().length;

function readQuote(lines, at, depth) {
  let end = at;
  const inner = [];
  for (let match; end < lines.length && (match = QUOTE.exec(lines[end])); end += 1) inner.push(match[1]);
  return [end, () => element("blockquote", {}, ...children(inner, depth))];
}

const children = (lines, depth) => parseBlocks(lines, depth + 1).map((block) => block.build());

function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const base = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  let width = 0;
  let blank = false;
  let loose = false;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (!line.trim()) {
      blank = true;
      continue;
    }
    const item = ITEM.exec(line);
    if (item && item[1].length < base + 2 && item[1].length >= base && !RULE.test(line)) {
      if (/\d/.test(item[2]) !== ordered) break;
      width = item[1].length + item[2].length + Math.min(item[3].length, 4);
      loose ||= blank && items.length > 0;
      items.push([item[4]]);
    } else if (leading(line) > base) {
      if (blank) items[items.length - 1].push("");
      items[items.length - 1].push(line.slice(Math.min(width, leading(line))));
    } else if (!blank && !item && !startsBlock(line)) {
      items[items.length - 1].push(line.trim());
    } else {
      break;
    }
    blank = false;
  }
  while (!lines[end - 1].trim()) end -= 1;
  const build = () => {
    const list = element(ordered ? "ol" : "ul", loose ? { className: "loose" } : {});
    if (ordered) list.start = Number.parseInt(first[2], 10);
    list.append(...items.map((item) => element("li", {}, ...itemChildren(item, depth))));
    return list;
  };
  return [end, build];
}

// A paragraph that is all there is, or that comes before a list inside, needs no space around it.
function itemChildren(lines, depth) {
  const [first, ...rest] = children(lines, depth);
  if (!first) return [];
  return first.tagName === "P" ? [...first.childNodes, ...rest] : [first, ...rest];
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);

function readTable(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
  const build = () => {
    const head = cells(lines[at]);
    const row = (tag, texts) =>
      element("tr", {}, ...head.map((_, index) => element(tag, {}, ...inline(texts[index] ?? ""))));
    const body = lines.slice(at + 2, end).map((line) => row("td", cells(line)));
    const table = element("table", {}, element("thead", {}, row("th", head)), element("tbody", {}, ...body));
    return element("div", { className: "wide", tabIndex: 0 }, table);
  };
  return [end, build];
}

const cells = (line) =>
  line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());

function readParagraph(lines, at, depth) {
  let end = at + 1;
  const goesOn = (line) => line.trim() && !startsBlock(line) && !(depth < MAX_DEPTH && ITEM.test(line));
  while (end < lines.length && goesOn(lines[end])) end += 1;
  const text = () => lines.slice(at, end).map((line) => line.trim());
  return [end, () => element("p", {}, ...inline(text().join("\n")))];
}

// Text with code, emphasis and links, as nodes.
function inline(text, depth = 0) {
  const nodes = [];
  // A mark that does not come again after one place does not after any later one: no search is made twice.
  const absent = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  while (at < text.length) {
    const read = depth < MAX_DEPTH && readInline(text, at, absent, depth);
    if (read) {
      flush();
      nodes.push(read.node);
      at = read.end;
    } else {
      const escaped = text[at] === "\\" && "*_`#~|>".includes(text[at + 1] ?? "?");
      plain += escaped ? text[at + 1] : text[at];
      at += escaped ? 2 : 1;
    }
  }
  flush();
  return nodes;
}

function find(text, mark, from, absent) {
  if (absent.has(mark)) return -1;
  const found = text.indexOf(mark, from);
  if (found < 0) absent.add(mark);
  return found;
}

const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);

function readInline(text, at, absent, depth) {
  switch (text[at]) {
    case "`":
      return readInlineCode(text, at, absent);
    case "\\":
      return readTex(text, at, absent);
    case "*":
    case "_":
    case "~":
      return readEmphasis(text, at, absent, depth);
    case "[":
      return readLink(text, at, absent, depth);
    case "!":
      // A picture is never fetched: it is a link to it.
      return text[at + 1] === "[" ? readLink(text, at + 1, absent, depth) : null;
    default:
      return null;
  }
}

function readInlineCode(text, at, absent) {
  let start = at;
  while (text[start] === "`") start += 1;
  const mark = text.slice(at, start);
  const end = find(text, mark, start, absent);
  if (end < 0) return null;
  const code = text.slice(start, end);
  const trimmed = /^ .*[^ ].* $/s.test(code) ? code.slice(1, -1) : code;
  return { node: element("code", {}, trimmed), end: end + mark.length };
}

function readTex(text, at, absent) {
  const closing = { "(": "\\)", "[": "\\]" }[text[at + 1]];
  const end = closing ? find(text, closing, at + 2, absent) : -1;
  if (end < 0) return null;
  return { node: element("span", { className: "tex" }, text.slice(at + 2, end).trim()), end: end + 2 };
}

function readEmphasis(text, at, absent, depth) {
  const mark = text[at] === text[at + 1] ? text.slice(at, at + 2) : text[at];
  if (mark === "~") return null;
  const start = at + mark.length;
  // 2*3*4, snake_case and a lone * are none.
  if (!text[start]?.trim() || (mark.length === 1 && isWord(text[at - 1]))) return null;
  let end = find(text, mark, start + 1, absent);
  if (end < 0 || !text[end - 1].trim()) return null;
  // ***both***: the last of three ends the inner one.
  if (mark.length === 2 && text[end + 2] === mark[0]) end += 1;
  const after = text[end + mark.length];
  if (mark.length === 1 && (isWord(after) || after === mark)) return null;
  const tag = { "~~": "s" }[mark] ?? (mark.length === 2 ? "strong" : "em");
  const inner = inline(text.slice(start, end), depth + 1);
  return { node: element(tag, {}, ...inner), end: end + mark.length };
}

function readLink(text, at, absent, depth) {
  const middle = find(text, "](", at + 1, absent);
  const end = middle < 0 ? -1 : find(text, ")", middle + 2, absent);
  if (end < 0) return null;
  const address = text.slice(middle + 2, end).trim();
  // The web and nothing else: no javascript:, no data:, nothing of this server.
  if (!/^https?:\/\/[^\s<>"]+$/i.test(address)) return null;
  const properties = { href: address, title: address, target: "_blank", rel: "noopener noreferrer" };
  const label = text.slice(at + 1, middle);
  const inner = label ? inline(label, depth + 1) : [address];
  return { node: element("a", properties, ...inner), end: end + 1 };
}
