// A grid of pictures as one picture, with labels for columns, rows and pages.

import { make } from "./dom.js";

const GAP = 8;

/** A PNG of blobs, columns running fastest, pages below each other. `labels` are those of columns, rows and pages. */
export async function sheet(blobs, [columns, rows = [""], pages = [""]]) {
  const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
  const [wide, tall] = ["width", "height"].map((side) => Math.max(...bitmaps.map((bitmap) => bitmap[side])));
  const size = Math.max(12, Math.round(Math.min(wide, 640) / 16));
  const canvas = make("canvas");
  const pen = canvas.getContext("2d");
  pen.font = `${size}px sans-serif`;
  const longest = Math.max(...rows.map((text) => pen.measureText(text).width));
  const line = size + 2 * GAP;
  const aside = longest && longest + 2 * GAP;
  const title = pages.some(Boolean) ? line : 0;
  const page = title + line + rows.length * (tall + GAP);
  canvas.width = aside + columns.length * (wide + GAP);
  canvas.height = pages.length * page;
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { fillStyle: "black", font: `${size}px sans-serif`, textAlign: "center", textBaseline: "middle" });
  const left = (c) => aside + c * (wide + GAP);
  const top = (p, r) => p * page + title + line + r * (tall + GAP);
  pages.forEach((text, p) => {
    pen.fillText(text, canvas.width / 2, p * page + title / 2);
    columns.forEach((label, c) => pen.fillText(label, left(c) + wide / 2, p * page + title + line / 2, wide));
    rows.forEach((label, r) => pen.fillText(label, aside / 2, top(p, r) + tall / 2));
  });
  bitmaps.forEach((bitmap, i) => {
    const r = Math.floor(i / columns.length);
    pen.drawImage(bitmap, left(i % columns.length), top(Math.floor(r / rows.length), r % rows.length));
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
