// <jaxl-waiting>: the requests of this tab that are not drawn yet.

import { button, make } from "./dom.js";
import { isRepeating, onChange, remove, stop, waiting } from "./queue.js";

class Waiting extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.heading = make("h2", { role: "status" });
    this.list = make("ol");
    this.repeating = make("p", { className: "jaxl-row" }, "Again and again, each time with another seed", button("Stop", stop));
    this.append(this.heading, this.list, this.repeating);
    onChange(() => this.show());
    this.show();
  }

  show() {
    this.hidden = !waiting.length && !isRepeating();
    this.heading.textContent = waiting.length ? `Next (${waiting.length})` : "";
    this.repeating.hidden = !isRepeating();
    const item = (request) => {
      const { asked } = request;
      const text = `${asked.prompt || "No prompt"} (${asked.num_images} of ${asked.size})`;
      return make("li", {}, make("span", {}, text), button("Remove", () => remove(request), { "aria-label": `Remove: ${text}` }));
    };
    this.list.replaceChildren(...waiting.map(item));
  }
}

customElements.define("jaxl-waiting", Waiting);
