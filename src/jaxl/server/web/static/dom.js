// Elements without markup: what people write is text, and stays it.

/** An element with properties, `data-` and `aria-` attributes as they are written in HTML, and children or texts. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", onclick, className: "jaxl-button", ...properties }, text);
}

/** Tell the page; whoever listens decides what comes of it. */
export function tell(name, detail) {
  document.dispatchEvent(new CustomEvent(`jaxl:${name}`, { detail }));
}

/** How a picture is called where it cannot be seen. */
export function caption(picture) {
  return `${picture.settings.prompt || "No prompt"}, seed ${picture.settings.seed}`;
}

export function seconds(number) {
  return number < 1 ? "less than a second" : number < 90 ? `${Math.round(number)} s` : `${Math.round(number / 60)} min`;
}

/** The name of a picture's file; `number` sets it apart from others of its seed. */
export function fileName(picture, number) {
  return `jaxl-${picture.settings.seed}${number === undefined ? "" : `-${number}`}.png`;
}

/** Let the browser save a blob. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // large ones take a while
}

/** One of the page's own elements. */
export const part = (name) => document.querySelector(`jaxl-${name}`);

/** Wait until an element of the page's own is there. */
export function arrived(name) {
  return new Promise((resolve) => {
    const look = () => part(name) && (observer.disconnect(), resolve());
    const observer = new MutationObserver(look);
    observer.observe(document.body, { subtree: true, childList: true });
    look();
  });
}
