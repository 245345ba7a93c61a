// <jaxl-gallery>: the pictures that this browser keeps, those that are asked for among them.

import { button, caption, download, fileName, make, tell } from "./dom.js";
import { onChange, pictures, remove } from "./history.js";
import { zip } from "./zip.js";

class Gallery extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.list = make("ul", { className: "jaxl-gallery" });
    this.count = make("h2", { role: "status" });
    this.search = make("input", { type: "search", placeholder: "Words of a prompt", "aria-label": "Show pictures whose prompt has these words" });
    this.search.oninput = () => this.show();
    this.starred = make("input", { type: "checkbox" });
    this.starred.onchange = () => this.show();
    const starred = make("label", { className: "jaxl-check" }, this.starred, "Starred");
    this.save = button("Download all", () => this.download());
    this.forget = button("Delete all", () => this.delete());
    this.append(make("div", { className: "jaxl-row" }, this.count, this.search, starred, this.save, this.forget), this.list);
    onChange(() => this.show());
    this.show();
  }

  /** The pictures that are shown. */
  chosen() {
    const words = this.search.value.toLowerCase().split(/\s+/);
    const fits = ({ settings }) => words.every((word) => (settings.prompt ?? "").toLowerCase().includes(word));
    return pictures.filter((picture) => (picture.starred || !this.starred.checked) && fits(picture));
  }

  show() {
    const chosen = this.chosen();
    this.hidden = !pictures.length;
    this.count.textContent = `History (${chosen.length === pictures.length ? "" : `${chosen.length} of `}${pictures.length})`;
    this.save.disabled = this.forget.disabled = !chosen.length;
    const item = (picture) => {
      const image = make("img", { src: picture.url, alt: "", loading: "lazy" });
      const name = `Open${picture.starred ? ", starred" : ""}: ${caption(picture)}`;
      const open = make("button", { type: "button", title: caption(picture), "aria-label": name, onclick: () => tell("open", picture) }, image);
      return make("li", { className: picture.starred ? "jaxl-starred" : "" }, open);
    };
    this.list.replaceChildren(...chosen.map(item));
  }

  async download() {
    const chosen = this.chosen();
    const files = chosen.map((picture, i) => ({ name: fileName(picture, chosen.length - i), blob: picture.blob }));
    download(await zip(files), "jaxl.zip");
  }

  delete() {
    const chosen = this.chosen();
    const which = chosen.length === 1 ? "the picture that is shown" : `the ${chosen.length} pictures that are shown`;
    if (confirm(`Delete ${which} from this browser?`)) remove(chosen);
  }
}

customElements.define("jaxl-gallery", Gallery);
