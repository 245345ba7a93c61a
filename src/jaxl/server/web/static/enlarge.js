// <jaxl-enlarge>: pictures made larger, by an upscaler of the server or without any.

import { enlarged } from "./client.js";
import { button, make } from "./dom.js";
import { TYPES } from "./pictures.js";

const FACTOR = { min: 1, max: 8, step: 0.5, value: 2 };

class Enlarge extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.files = [];
    this.file = make("input", { type: "file", accept: TYPES, multiple: true, className: "jaxl-file", "aria-label": "Pictures to enlarge" });
    this.file.onchange = () => {
      this.take([...this.file.files]);
      this.file.value = "";
    };
    this.drop = make("label", { className: "jaxl-drop" }, this.file, "Choose pictures, or drop them here");
    this.by = make("select", { "aria-label": "Upscaler" }, ...JSON.parse(this.dataset.upscalers).map((name) => make("option", { value: name }, name)));
    this.factor = make("input", { type: "number", "aria-label": "Times as large", ...FACTOR });
    this.start = button("Enlarge", () => this.run(), { disabled: true });
    this.problem = make("p", { role: "status", className: "jaxl-problem" });
    this.list = make("ul", { className: "jaxl-gallery", "aria-label": "Enlarged pictures" });
    const field = (text, input) => make("label", { className: "jaxl-field" }, text, input);
    this.fold = make(
      "details",
      { ondragover: (event) => event.preventDefault(), ondrop: (event) => this.dropped(event) },
      make("summary", {}, "Enlarge pictures"),
      this.drop,
      field("Upscaler", this.by),
      field("Times as large", this.factor),
      this.start,
      this.problem,
      this.list,
    );
    this.append(this.fold);
  }

  /** Take pictures, files or other blobs, in the place of those that it has. */
  take(files) {
    this.files = files;
    this.fold.open = true;
    this.start.disabled = !files.length;
    this.drop.lastChild.textContent = files.length ? `Chosen: ${files.map(({ name }) => name ?? "a picture").join(", ")}` : "";
  }

  dropped(event) {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.take([...event.dataTransfer.files]);
  }

  async run() {
    this.start.disabled = true;
    this.problem.textContent = "Enlarging …";
    try {
      const made = await enlarged(this.files, this.by.value, Number(this.factor.value));
      this.list.replaceChildren(...made.map((blob, i) => this.item(blob, i)));
      this.problem.textContent = "";
    } catch (error) {
      this.problem.textContent = error.message || "The server cannot be reached";
    }
    this.start.disabled = false;
  }

  item(blob, i) {
    const url = URL.createObjectURL(blob);
    const name = `enlarged-${(this.files[i].name ?? "picture").replace(/\.[a-z]+$/i, "")}.png`;
    // Gradio takes clicks on links for itself, and opens a window
    const link = make("a", { href: url, download: name, title: "Download", onclick: (event) => event.stopPropagation() });
    link.append(make("img", { src: url, alt: name }));
    return make("li", {}, link);
  }
}

customElements.define("jaxl-enlarge", Enlarge);
