// Elements without HTML: every text of the server becomes a text node.

/** Return an element; attributes that start with "on" are listeners, null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** Return the icon `#icon-NAME` of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Return a button that shows an icon and is called `label`. */
export function iconButton(name, label, onclick, attributes = {}) {
  const all = { type: "button", class: "icon-button", "aria-label": label, title: label };
  return h("button", { ...all, ...attributes, onclick }, icon(name));
}

/** Copy text, also on pages without HTTPS, where browsers have no clipboard API. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "visually-hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Return a button that copies the text that `get` returns, and says so. */
export function copyButton(label, get) {
  const button = iconButton("copy", label, async () => {
    await copyText(get());
    button.replaceChildren(icon("check"));
    announce("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Have screen readers say something. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}
