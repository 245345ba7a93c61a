// <jaxl-image_prompts>: IP-Adapters of the server, each with the pictures that the image is to be like.

import { button, make } from "./dom.js";
import { Networks, Row } from "./networks.js";

class ImagePrompt extends Row {
  static several = true;
  static invitations = ["Choose pictures, or drop them here", "Choose more pictures, or drop them here"];

  constructor(prompts, settings, label) {
    super(prompts, settings, label);
    const { blocks: given = null } = settings;
    this.shown = make("ul", { "aria-label": `Pictures of ${label}`, className: "jaxl-thumbnails" });
    const choices = [null, ...prompts.choices];
    if (!choices.includes(given)) choices.push(given); // of a picture that another program asked for
    const options = choices.map((blocks) => make("option", { blocks, value: written(blocks) }, written(blocks) || "all"));
    this.blocks = make("select", { "aria-label": `Blocks that read ${label}`, onchange: () => prompts.changed() }, ...options);
    this.blocks.value = written(given);
    this.drop.after(this.shown);
    this.problem.after(make("label", { className: "jaxl-field" }, "Blocks that read it", this.blocks));
  }

  get value() {
    const [{ blocks }] = this.blocks.selectedOptions;
    return { ...super.value, ...(blocks ? { blocks } : {}) };
  }

  show(pictures) {
    super.show(pictures);
    this.shown.replaceChildren(...pictures.map((picture, i) => this.thumbnail(picture, `picture ${i + 1} of ${this.label}`)));
  }

  thumbnail(picture, called) {
    const image = make("img", { alt: called, src: URL.createObjectURL(picture) });
    image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
    const leave = () => {
      this.show(this.pictures.filter((each) => each !== picture));
      this.file.focus();
    };
    return make("li", {}, image, button("Remove", leave, { "aria-label": `Remove ${called}` }));
  }
}

class ImagePrompts extends Networks {
  one = "Image prompt";
  several = "Image prompts";
  adding = "Add an image prompt";
  Row = ImagePrompt;
}

/** Blocks as text: a name, or a mapping as JSON. */
export function written(blocks) {
  return typeof blocks === "string" ? blocks : blocks ? JSON.stringify(blocks) : "";
}

customElements.define("jaxl-image_prompts", ImagePrompts);
