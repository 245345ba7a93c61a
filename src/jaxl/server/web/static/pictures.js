// Pictures that people choose.

import { make } from "./dom.js";

export const TYPES = "image/png,image/jpeg,image/webp";
// Pixels; more than the model draws helps nobody
export const LONGEST_SIDE = 2048;

/** A picture as a PNG blob, scaled down if it is large. Throws for what is none. */
export async function scaled(blob) {
  const bitmap = await createImageBitmap(blob);
  const factor = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * factor)));
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
