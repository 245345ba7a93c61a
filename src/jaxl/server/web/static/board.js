// <jaxl-board>: the pictures that are being drawn, from the queue to the last step.

import { button, caption, download, make, seconds, tell } from "./dom.js";

// Pixels of blur before the first step, as a share of a tile; previews sharpen as they come
const BLUR = 0.03;

class Board extends HTMLElement {
  connectedCallback() {
    if (this.tiles) return;
    this.status = make("p", { role: "status", className: "jaxl-status" }, "Write what you would like to see.");
    this.bar = make("progress", { max: 1, value: 0, hidden: true, "aria-label": "Steps" });
    this.detail = make("span", { className: "jaxl-detail" });
    this.alert = make("p", { role: "alert", className: "jaxl-alert", hidden: true });
    this.tiles = make("div", { className: "jaxl-tiles" });
    this.sheet = make("div", { className: "jaxl-row" });
    this.append(this.status, make("div", { className: "jaxl-progress" }, this.bar, this.detail), this.alert, this.tiles, this.sheet);
  }

  /** Begin with `count` empty tiles of a shape. Those of a grid have `labels`: those of its columns, rows and pages. */
  begin(count, width, height, labels) {
    this.alert.hidden = true;
    this.shares = Array(count).fill(0);
    this.began = null;
    this.style.setProperty("--jaxl-aspect", `${width} / ${height}`);
    this.style.setProperty("--jaxl-columns", labels ? labels[0].length : count === 1 ? 1 : count <= 4 ? 2 : 3);
    const tile = (_, index) => make("button", { type: "button", className: "jaxl-tile", disabled: true, "aria-label": `Picture ${index + 1}, not begun` });
    const tiles = Array.from({ length: count }, tile);
    if (labels) named(tiles, labels);
    this.tiles.replaceChildren(...tiles);
    this.sheet.replaceChildren();
    this.bar.removeAttribute("value");
    this.bar.hidden = false;
    this.say("Sending …");
    this.scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  }

  queued(position, startsIn) {
    const ahead = position === 1 ? "1 picture of others is" : `${position} pictures of others are`;
    this.say(position ? `Waiting: ${ahead} ahead` : "Waiting for a free place", `begins in ${seconds(startsIn)}`);
  }

  progress(index, done, total) {
    this.began ??= performance.now();
    this.shares[index] = done / total;
    const share = this.shares.reduce((sum, each) => sum + each, 0) / this.shares.length;
    const left = ((performance.now() - this.began) / 1000) * (1 / share - 1);
    const steps = Math.round(Math.max(...this.shares) * total);
    this.bar.value = share;
    this.tiles.children[index]?.style.setProperty("--jaxl-blur", `${(1 - done / total) * BLUR * this.tiles.children[index].clientWidth}px`);
    this.say("Drawing", `step ${steps} of ${total}${share < 1 && steps > 1 ? `, ${seconds(left)} left` : ""}`);
  }

  preview(index, url) {
    const tile = this.tiles.children[index];
    const image = tile.querySelector("img") ?? tile.appendChild(make("img", { alt: "" }));
    image.src = url;
    tile.setAttribute("aria-label", `Picture ${index + 1}, being drawn`);
    tile.dataset.previews = Number(tile.dataset.previews ?? 0) + 1;
  }

  completed(index, picture) {
    const tile = this.tiles.children[index];
    tile.replaceChildren(make("img", { src: picture.url, alt: "" }));
    tile.setAttribute("aria-label", `Open picture ${index + 1}: ${caption(picture)}`);
    tile.classList.add("jaxl-done");
    tile.disabled = false;
    tile.onclick = () => tell("open", picture);
  }

  /** Offer a grid's pictures as one. */
  offer(blob) {
    this.sheet.replaceChildren(button("Download the grid", () => download(blob, "jaxl-grid.png")));
  }

  /** End, with a word for people. */
  end(word, message = "") {
    this.bar.hidden = true;
    this.say(word);
    this.note(message);
    for (const tile of this.tiles.querySelectorAll(".jaxl-tile:not(.jaxl-done)")) tile.classList.add("jaxl-given-up");
  }

  /** Say something beside what is drawn. */
  note(message) {
    this.alert.textContent = message;
    this.alert.hidden = !message;
  }

  say(word, detail = "") {
    // announced by screen readers, so the numbers that change at each step are not in it
    if (this.status.textContent !== word) this.status.textContent = word;
    this.detail.textContent = detail;
  }
}

/** Label the tiles of a grid, columns running fastest. */
function named(tiles, [columns, rows = [""], pages = [""]]) {
  const all = pages.flatMap((page) => rows.flatMap((row) => columns.map((column) => [page, row, column])));
  tiles.forEach((tile, i) => (tile.dataset.label = all[i].filter(Boolean).join(" · ")));
}

customElements.define("jaxl-board", Board);
