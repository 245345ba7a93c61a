// <jaxl-source>: a picture to start from, and a mask painted on it.

import { button, make, tell } from "./dom.js";
import { LONGEST_SIDE, TYPES } from "./pictures.js";

// How much changes: of the whole picture, and of what is masked, as the server has it
const STRENGTH = 0.6;
const MASKED_STRENGTH = 1;

class Source extends HTMLElement {
  connectedCallback() {
    if (this.canvas) return;
    this.strokes = [];
    this.cursor = null;
    const file = make("input", { type: "file", accept: TYPES, className: "jaxl-file", "aria-label": "Picture to start from" });
    file.onchange = () => {
      if (file.files.length) this.take(file.files[0]);
      file.value = "";
    };
    this.chooser = make("label", { className: "jaxl-drop" }, file, "Choose a picture, or drop it here");
    this.canvas = make("canvas", {
      tabIndex: 0,
      role: "img",
      "aria-label": "Mask: paint what is to be drawn anew; arrow keys move the brush, the space bar paints",
    });
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointermove = (event) => this.drag(event);
    this.canvas.onpointerup = () => this.tell();
    this.canvas.onkeydown = (event) => this.key(event);
    this.canvas.onblur = () => this.point(null);
    this.brush = make("input", { type: "range", min: 1, max: 40, value: 12, "aria-label": "Brush, in hundredths of the width" });
    this.tools = make(
      "div",
      { className: "jaxl-row" },
      make("label", { className: "jaxl-brush" }, "Brush", this.brush),
      button("Undo", () => this.undo()),
      button("Clear mask", () => this.wipe()),
      button("Remove picture", () => this.empty()),
    );
    this.editor = make("div", { hidden: true }, this.canvas, this.tools);
    this.append(this.chooser, this.editor);
    this.ondragover = (event) => event.preventDefault();
    this.ondrop = (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      event.stopPropagation();
      this.take(event.dataTransfer.files[0]);
    };
  }

  /** Start from a picture, a file or a blob. */
  async take(blob) {
    if (!(await this.show(blob, []))) {
      tell("say", `${blob.name ?? "This"} is no picture that can be read; choose a PNG, JPEG or WebP file`);
      return;
    }
    tell("fill", { strength: STRENGTH, near: `${this.canvas.width}x${this.canvas.height}` });
  }

  /** What `restore` takes, after a reload too; null without a picture. */
  kept() {
    return this.bitmap ? { blob: this.blob, strokes: this.strokes } : null;
  }

  async restore({ blob, strokes }) {
    await this.show(blob, strokes);
  }

  /** Whether a blob can be shown. */
  async show(blob, strokes) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      return false;
    }
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    this.canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    this.canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    this.blob = blob;
    this.bitmap = bitmap;
    this.strokes = strokes;
    this.chooser.hidden = true;
    this.editor.hidden = false;
    this.paint();
    this.tell();
    return true;
  }

  empty() {
    this.bitmap = null;
    this.strokes = [];
    this.chooser.hidden = false;
    this.editor.hidden = true;
    this.tell();
  }

  tell() {
    tell("source", { picture: Boolean(this.bitmap), mask: this.strokes.length > 0 });
  }

  /** {image, mask} as PNG blobs, the mask null if nothing is painted; null without a picture. */
  async blobs() {
    if (!this.bitmap) return null;
    return { image: await this.png((pen) => this.drawPicture(pen)), mask: this.strokes.length ? await this.png((pen) => this.drawMask(pen)) : null };
  }

  async png(draw) {
    const { width, height } = this.canvas;
    const canvas = make("canvas", { width, height });
    draw(canvas.getContext("2d"));
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  drawPicture(pen) {
    pen.drawImage(this.bitmap, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** Opaque, but transparent where it is painted: OpenAI's way of saying what to draw anew. */
  drawMask(pen) {
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    pen.globalCompositeOperation = "destination-out";
    this.drawStrokes(pen);
  }

  drawStrokes(pen) {
    pen.lineCap = pen.lineJoin = "round";
    for (const { size, points } of this.strokes) {
      pen.lineWidth = size;
      pen.beginPath();
      const [x, y] = points[0];
      pen.moveTo(x - 0.01, y); // a line without length would not be drawn
      for (const point of points) pen.lineTo(...point);
      pen.stroke();
    }
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    pen.reset();
    this.drawPicture(pen);
    const layer = make("canvas", { width: this.canvas.width, height: this.canvas.height });
    const ink = layer.getContext("2d");
    ink.strokeStyle = "#ff2d78";
    this.drawStrokes(ink);
    pen.globalAlpha = 0.6;
    pen.drawImage(layer, 0, 0);
    if (!this.cursor) return;
    pen.globalAlpha = 1;
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = Math.max(1, this.canvas.width / 150);
    pen.beginPath();
    pen.arc(...this.cursor, this.size() / 2, 0, 2 * Math.PI);
    pen.stroke();
  }

  size() {
    return (this.canvas.width * Number(this.brush.value)) / 100;
  }

  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * this.canvas.width, ((event.clientY - top) / height) * this.canvas.height];
  }

  press(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke(this.place(event));
    this.paint();
  }

  stroke(point) {
    if (!this.strokes.length) tell("fill", { strength: MASKED_STRENGTH });
    this.strokes.push({ size: this.size(), points: [point] });
    this.tell();
  }

  drag(event) {
    if (!event.buttons || !this.strokes.length) return;
    this.strokes.at(-1).points.push(this.place(event));
    this.paint();
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { width, height } = this.canvas;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    if (way) {
      const stride = width / 32;
      this.point([Math.min(Math.max(x + way[0] * stride, 0), width), Math.min(Math.max(y + way[1] * stride, 0), height)]);
    } else if (event.key === " ") {
      this.stroke([x, y]);
      this.point([x, y]);
    } else {
      return;
    }
    event.preventDefault();
  }

  point(cursor) {
    this.cursor = cursor;
    if (this.bitmap) this.paint();
  }

  undo() {
    this.strokes.pop();
    this.tell();
    this.paint();
  }

  wipe() {
    this.strokes = [];
    this.tell();
    this.paint();
  }
}

customElements.define("jaxl-source", Source);
