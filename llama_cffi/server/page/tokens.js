// An answer as its tokens: how probable each was, and what else the model considered.
import { h } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1];
const tip = document.getElementById("token-tip");

/** Return the tokens of an answer; the pointer or the arrow keys show their alternatives. */
export function tokenView(tokens) {
  const view = h("div", {
    class: "tokens",
    role: "group",
    "aria-label": "Tokens of the answer; the arrow keys move between them",
  });
  view.append(...tokens.map((token, i) => tokenSpan(token, i)));
  const show = (event) => {
    const span = event.target.closest(".token");
    if (span) showTip(span, tokens[span.dataset.index]);
  };
  view.addEventListener("pointerover", show);
  view.addEventListener("focusin", show);
  view.addEventListener("pointerleave", hideTip);
  view.addEventListener("focusout", hideTip);
  view.addEventListener("keydown", (event) => {
    const from = Number(document.activeElement.dataset.index);
    const last = tokens.length - 1;
    const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined) return;
    event.preventDefault();
    const next = view.children[Math.max(0, Math.min(last, to))];
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return view;
}

/** Hide the alternatives. */
export function hideTip() {
  tip.hidden = true;
}

function tokenSpan([text, logprob], i) {
  const p = Math.exp(logprob);
  const level = LEVELS.findIndex((limit) => p >= limit);
  return h(
    "span",
    {
      class: `token p${level < 0 ? LEVELS.length : level}`,
      "data-index": String(i),
      tabindex: i === 0 ? "0" : "-1",
      "aria-describedby": "token-tip",
    },
    text,
  );
}

function showTip(span, [chosen, logprob, others]) {
  const rows = others.some(([text]) => text === chosen) ? others : [[chosen, logprob], ...others];
  tip.replaceChildren(
    h(
      "table",
      {},
      h("caption", {}, "Probability of this token"),
      h("tbody", {}, rows.map(([text, value]) => row(text, Math.exp(value), text === chosen))),
    ),
  );
  tip.hidden = false;
  const box = span.getClientRects()[0];
  const { width, height } = tip.getBoundingClientRect();
  const below = box.bottom + 6 + height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - height - 6)}px`;
}

function row(text, p, isChosen) {
  const bar = h("span", { class: "bar" });
  bar.style.width = `${Math.max(1, p * 100)}%`;
  const percent = p < 0.0005 ? "< 0.1 %" : `${(p * 100).toFixed(1)} %`;
  return h(
    "tr",
    { class: isChosen && "chosen" },
    h("th", { scope: "row" }, visible(text)),
    h("td", { class: "track", "aria-hidden": "true" }, bar),
    h("td", { class: "percent" }, percent),
  );
}

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(empty)";
