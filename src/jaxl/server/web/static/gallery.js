// <jaxl-gallery>: the pictures that this browser keeps.

import { button, caption, make, tell } from "./dom.js";
import { clear, onChange, pictures } from "./history.js";

class Gallery extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.list = make("ul", { className: "jaxl-gallery" });
    this.count = make("h2", {}, "History");
    const forget = () => confirm("Delete all pictures from this browser?") && clear();
    this.forget = button("Delete all", forget);
    this.append(make("div", { className: "jaxl-row" }, this.count, this.forget), this.list);
    onChange(() => this.show());
    this.show();
  }

  show() {
    this.hidden = !pictures.length;
    this.count.textContent = `History (${pictures.length})`;
    const item = (picture) => {
      const image = make("img", { src: picture.url, alt: "", loading: "lazy" });
      const open = make("button", { type: "button", title: caption(picture), "aria-label": `Open: ${caption(picture)}`, onclick: () => tell("open", picture) }, image);
      return make("li", {}, open);
    };
    this.list.replaceChildren(...pictures.map(item));
  }
}

customElements.define("jaxl-gallery", Gallery);
