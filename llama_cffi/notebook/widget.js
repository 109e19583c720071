// The front end of TokenWidget: tokens on tints, a menu of alternatives, and two buttons.
// Text only reaches the page through textContent.

const STYLE = `
.llama-tokens { position: relative; text-align: left; line-height: 1.9; max-width: 60em;
  padding: 2px; }
.llama-tokens button { font: inherit; line-height: 1.4; color: inherit; background: transparent;
  border: 1px solid rgba(128, 128, 128, .6); border-radius: .3em; padding: .15em .7em;
  margin-right: .5em; cursor: pointer; }
.llama-tokens button:disabled { opacity: .5; cursor: default; }
.llama-tokens .answer { margin: .5em 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
.llama-tokens .token { border-radius: .2em; padding: .1em 0; cursor: pointer; }
.llama-tokens .token:hover { text-decoration: underline; text-underline-offset: .2em; }
.llama-tokens .token[aria-expanded=true] { box-shadow: 0 0 0 1px currentColor; }
.llama-tokens :focus-visible { outline: 2px solid; outline-offset: 1px; }
.llama-tokens .status { opacity: .75; }
.llama-tokens .status.error { opacity: 1; font-weight: 600; }
.llama-tokens .menu { position: absolute; z-index: 10; min-width: 15em; max-width: 100%;
  box-sizing: border-box; padding: .3em; border: 1px solid rgba(128, 128, 128, .6);
  border-radius: .4em; box-shadow: 0 2px 10px rgba(0, 0, 0, .3); line-height: 1.5;
  color: var(--jp-ui-font-color1, var(--vscode-editor-foreground, CanvasText));
  background: var(--jp-layout-color1, var(--vscode-editor-background, Canvas)); }
.llama-tokens .menu button { display: flex; gap: 1em; align-items: baseline; width: 100%;
  border: 0; margin: 0; padding: .15em .5em; text-align: left;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
.llama-tokens .menu button:hover, .llama-tokens .menu button:focus {
  background-color: rgba(128, 128, 128, .25); }
.llama-tokens .menu .mark { width: 1em; }
.llama-tokens .menu .text { flex: 1; overflow-wrap: anywhere; white-space: pre-wrap; }
.llama-tokens .menu .share { opacity: .75; }
`;

const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function percent(p) {
  return p >= 0.9995 || p < 0.0005 ? (p < 0.5 ? "under 0.1 %" : "100 %") : `${(100 * p).toFixed(1)} %`;
}

function tint(p) {
  return `hsla(${Math.round(45 * p)}, 95%, 50%, ${(0.6 * (1 - p)).toFixed(2)})`;
}

function element(name, attributes, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Move the focus within a list of elements by an arrow key, Home or End; true if it moved. */
function moved(event, elements, index) {
  let next = index + (MOVES[event.key] ?? 0);
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = elements.length - 1;
  if (next === index || !elements[next]) return false;
  event.preventDefault();
  elements[next].focus();
  return true;
}

function render({ model, el }) {
  const root = element("div", { class: "llama-tokens" });
  const stop = element("button", { type: "button" }, "Stop");
  const again = element("button", { type: "button" }, "Generate again");
  const status = element("span", { class: "status", role: "status" });
  const answer = element("div", {
    class: "answer", role: "group",
    "aria-label": "Answer, token by token. Arrow keys move, Enter shows the alternatives.",
  });
  const bar = element("div", {});
  bar.append(stop, again, status);
  root.append(element("style", {}, STYLE), bar, answer);
  el.append(root);

  let current = 0; // the token that Tab reaches
  let menu = null;
  let opened = -1; // the token whose menu is open

  const tokens = () => model.get("tokens");
  // In a shadow root, as in marimo, the document knows only its host.
  const focused = () => root.getRootNode().activeElement;

  function close(takesFocus) {
    if (menu === null) return;
    const index = opened;
    const hadFocus = menu.contains(focused());
    menu.remove();
    menu = null;
    opened = -1;
    root.style.minHeight = "";
    const token = answer.children[index];
    token?.setAttribute("aria-expanded", "false");
    if (takesFocus || hadFocus) token?.focus();
  }

  function choose(choice) {
    const index = opened;
    close(true);
    if (choice !== tokens()[index]?.choice) model.send({ type: "choose", index, choice });
  }

  function open(index) {
    close(false);
    const token = tokens()[index];
    const anchor = answer.children[index];
    if (!token || !anchor) return;
    opened = index;
    anchor.setAttribute("aria-expanded", "true");
    menu = element("div", { class: "menu", role: "menu", "aria-label": `Instead of ${token.label}` });
    token.alternatives.forEach(([label, p], i) => {
      const item = element("button", {
        type: "button", role: "menuitemradio", tabindex: "-1",
        "aria-checked": String(i === token.choice), "aria-label": `${label}, ${percent(p)}`,
      });
      const width = `${(100 * p).toFixed(1)}%`;
      item.style.backgroundImage =
        `linear-gradient(90deg, rgba(128, 128, 128, .25) ${width}, transparent ${width})`;
      item.append(
        element("span", { class: "mark" }, i === token.choice ? "✓" : ""),
        element("span", { class: "text" }, label),
        element("span", { class: "share" }, percent(p)),
      );
      item.addEventListener("click", () => choose(i));
      menu.append(item);
    });
    menu.addEventListener("keydown", (event) => {
      const items = [...menu.children];
      if (event.key === "Escape") {
        event.preventDefault();
        close(true);
      } else if (event.key === "Tab") {
        close(true); // and on from the token
      } else {
        moved(event, items, items.indexOf(focused()));
      }
      event.stopPropagation(); // the keys of the notebook
    });
    root.append(menu);
    const box = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
    const frame = root.getBoundingClientRect();
    const left = Math.min(box.left - frame.left, frame.width - menu.offsetWidth);
    menu.style.left = `${Math.max(0, left)}px`;
    menu.style.top = `${box.bottom - frame.top + 3}px`;
    root.style.minHeight = `${menu.offsetTop + menu.offsetHeight + 4}px`; // outputs cut off the rest
    menu.children[token.choice].focus();
  }

  function makeToken(index) {
    const made = element("span", {
      class: "token", role: "button", "aria-haspopup": "menu", "aria-expanded": "false",
    });
    made.addEventListener("click", () => (opened === index ? close(true) : open(index)));
    made.addEventListener("focus", () => {
      answer.children[current]?.setAttribute("tabindex", "-1");
      current = index;
      made.setAttribute("tabindex", "0");
    });
    made.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open(index);
      } else {
        moved(event, answer.children, index);
      }
      event.stopPropagation();
    });
    return made;
  }

  function showTokens() {
    const found = tokens();
    found.forEach((token, i) => {
      let made = answer.children[i];
      if (made === undefined) {
        made = makeToken(i);
        answer.append(made);
      }
      if (made.textContent !== token.text) made.textContent = token.text;
      made.style.background = tint(token.p);
      made.setAttribute("aria-label", `${token.label}, ${percent(token.p)}`);
      made.title = `${token.label}  ${percent(token.p)}`;
      made.setAttribute("tabindex", i === current ? "0" : "-1");
    });
    const hadFocus = answer.contains(focused());
    while (answer.children.length > found.length) answer.lastChild.remove();
    if (opened >= found.length) close(false);
    if (current >= found.length && found.length) {
      current = found.length - 1;
      answer.children[current].setAttribute("tabindex", "0");
      if (hadFocus && !answer.contains(focused())) answer.children[current].focus();
    }
  }

  function showStatus() {
    const now = model.get("status");
    const n = tokens().length;
    const count = `${n} ${n === 1 ? "token" : "tokens"}`;
    status.textContent = {
      running: "Generating …",
      done: count,
      stopped: `Stopped after ${count}`,
      error: `Error: ${model.get("message")}`,
    }[now];
    status.classList.toggle("error", now === "error");
    const hadFocus = focused() === stop;
    stop.disabled = now !== "running";
    if (hadFocus && stop.disabled) again.focus();
    answer.setAttribute("aria-busy", String(now === "running"));
  }

  function outside(event) {
    if (menu !== null && !event.composedPath().includes(root)) close(false);
  }

  stop.addEventListener("click", () => model.send({ type: "stop" }));
  again.addEventListener("click", () => model.send({ type: "regenerate" }));
  model.on("change:tokens", showTokens);
  model.on("change:status", showStatus);
  model.on("change:message", showStatus);
  document.addEventListener("click", outside);
  showTokens();
  showStatus();
  return () => {
    model.off("change:tokens", showTokens);
    model.off("change:status", showStatus);
    model.off("change:message", showStatus);
    document.removeEventListener("click", outside);
  };
}

export default { render };
