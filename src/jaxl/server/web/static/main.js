// Brings the form and the elements of the page together. Gradio's events call `window.jaxl`.

import "./board.js";
import "./gallery.js";
import "./viewer.js";
import "./source.js";
import "./model.js";
import "./size.js";
import "./scheduler.js";
import "./loras.js";
import "./controls.js";
import "./image_prompts.js";
import "./hires.js";
import "./refiner.js";
import "./grid.js";
import "./enlarge.js";
import "./tokens.js";
import "./waiting.js";
import "./statistics.js";
import { Gone, Unreachable, draw, drawGrid, isReady, ofCell, release, resume, settingsOf } from "./client.js";
import { arrived, part, tell } from "./dom.js";
import * as form from "./form.js";
import { add, open } from "./history.js";
import { NETWORKS } from "./networks.js";
import * as queue from "./queue.js";
import { sheet } from "./sheet.js";

const VARIATION_STRENGTH = 0.5;
const POLL = 2000;
// in which brackets have a meaning
const SYNTAXES = ["a1111", "lenient"];

let lastSeed = "";
let begin;
// the form is there, with what it had before a reload
const begun = new Promise((resolve) => (begin = resolve));

/** Draw what the form asks for, after what is drawn now. */
async function generate() {
  const asked = form.asked();
  if (!/^\d*$/.test(asked.seed)) {
    part("board").end("Not drawn", `Seed: ${asked.seed} is no whole number; give one, or leave it empty`);
    return;
  }
  const pictured = networks();
  if (!pictured) return;
  let grid;
  try {
    grid = await part("grid").read(asked);
  } catch (error) {
    part("board").end("Not drawn", error.message || "The server cannot be reached");
    return;
  }
  const more = grid && { grid, num_images: grid.cells.length };
  const source = await part("source").blobs();
  if (!source && grid?.cells.some(({ strength }) => strength !== undefined)) {
    part("board").end("Not drawn", "Grid: a strength changes nothing without a picture to start from; choose one");
    return;
  }
  await queue.add({ ...seeded(asked), ...pictured, ...more }, source);
}

/** The networks with their pictures, as requests of the queue have them; null if one lacks its own. */
function networks() {
  const lacking = NETWORKS.map((name) => part(name).lacking).find(Boolean);
  if (lacking) part("board").end("Not drawn", `${lacking}: choose its picture, or remove it`);
  return lacking ? null : Object.fromEntries(NETWORKS.map((name) => [name, part(name).asked]));
}

/** Draw what the form asks for now, again and again, or stop doing so. */
async function again() {
  if (queue.isRepeating()) {
    queue.stop();
    return;
  }
  const asked = form.asked();
  const pictured = networks();
  if (!pictured) return;
  const source = await part("source").blobs();
  queue.repeat(() => ({ asked: seeded({ ...asked, ...pictured, seed: "" }), source }));
}

/** With a seed of 32 bits, which every program that reads seeds can read, unless there is one. */
function seeded(asked) {
  return { ...asked, seed: asked.seed || String(crypto.getRandomValues(new Uint32Array(1))[0]) };
}

/** Draw a request of the queue, or go on with it if it has been sent before. Whether it was drawn. */
async function perform(request, signal) {
  const { id, asked, source } = request;
  const board = part("board");
  const [width, height] = asked.size.split("x").map(Number);
  const keep = part("waiting").dataset.keeps !== undefined && !asked.grid;
  let { sent } = request;
  let lost = false;
  lastSeed = asked.seed;
  board.begin(asked.num_images, width, height, asked.grid?.labels);
  for (;;) {
    try {
      if (asked.grid) await show(request, drawGrid(asked, source, { id, signal }));
      else await show(request, sent ? resume(id, signal) : draw(asked, source, { id, keep, signal }));
      board.end("Done");
      if (keep) release(id);
      return true;
    } catch (error) {
      if (error instanceof Unreachable) {
        board.end("Not drawn", "The server cannot be reached; trying again …");
        while (!signal.aborted && !(await isReady())) await new Promise((resolve) => setTimeout(resolve, POLL));
        lost = sent = true;
      } else if (error instanceof Gone && !lost) {
        sent = false; // the page was loaded again before it arrived, or after the server was
      } else {
        if (error instanceof Gone) board.end("The server is back; generate again.");
        else if (error.name === "AbortError") board.end("Cancelled");
        else board.end("Not drawn", error.message);
        if (keep && error.name === "AbortError") release(id);
        return false;
      }
    }
  }
}

async function show({ id, asked, source }, coming) {
  const board = part("board");
  const blobs = [];
  for await (const news of coming) {
    if (news.name === "queued") board.queued(news.position, news.starts_in);
    else if (news.name === "progress") board.progress(news.image_index, news.done, news.total);
    else if (news.name === "partial_image") board.preview(news.image_index, news.url);
    else if (news.name === "completed") {
      blobs[news.image_index] = news.blob;
      board.completed(news.image_index, await keep(news, id, asked, source));
    }
  }
  if (asked.grid) board.offer(await sheet(blobs, asked.grid.labels));
}

/** Put a picture into the history. */
async function keep({ image_index, blob }, id, asked, source) {
  const drawn = asked.grid ? ofCell(asked, asked.grid.cells[image_index]) : asked;
  const { num_images, strength, mask_blur, only_masked, padding_mask_crop, more, axes, ...settings } = drawn;
  const [width, height] = drawn.size.split("x").map(Number);
  const made = { ...settings, width, height, seed: asked.grid ? drawn.seed : String(BigInt(asked.seed) + BigInt(image_index)) };
  if (source) made.strength = strength;
  for (const name of NETWORKS) made[name] = made[name]?.map(({ pictures, ...own }) => own);
  return add(blob, made, Boolean(source), `${id}/${image_index}`);
}

/** Put a picture's settings into the form. */
async function restore(file) {
  await begun;
  try {
    tell("fill", { ...(await settingsOf(file)), num_images: 1, whole: true });
  } catch (error) {
    tell("say", error instanceof Unreachable ? "The server cannot be reached" : error.message);
  }
}

function cancel() {
  if (part("viewer").leave()) tell("say", "");
  else queue.cancel();
}

window.jaxl = { generate, again, cancel: queue.cancel, remember: form.remember, fill: form.fill, seed: () => lastSeed };

const listen = (name, listener) => document.addEventListener(`jaxl:${name}`, ({ detail }) => listener(detail));

listen("say", (text) => (queue.isBusy() ? part("board").note(text) : part("board").end(text)));
listen("changed", form.keep);
listen("pictured", form.keepPictures);
listen("open", (picture) => part("viewer").open(picture));
listen("use", (picture) => tell("fill", { ...picture.settings, num_images: 1, whole: true }));
listen("edit", async (picture) => {
  await part("source").take(picture.blob);
  part("source").scrollIntoView({ block: "nearest" });
});
listen("enlarge", (picture) => {
  part("enlarge").take([picture.blob]);
  part("enlarge").scrollIntoView({ block: "nearest" });
});
listen("word", (word) => {
  const { prompt = "", prompt_syntax } = form.asked();
  const text = SYNTAXES.includes(prompt_syntax) ? word.replace(/[\\()[\]]/g, "\\$&") : word;
  tell("fill", { prompt: [prompt.trim(), text].filter(Boolean).join(", ") });
});
listen("vary", (picture) => {
  const { width, height, controls, image_prompts, ...settings } = picture.settings; // whose pictures are not kept
  const asked = { ...settings, size: `${width}x${height}`, strength: VARIATION_STRENGTH, seed: "", num_images: variations() };
  queue.add(seeded(asked), { image: picture.blob, mask: null });
});
queue.onChange(() => {
  document.body.classList.toggle("jaxl-drawing", queue.isBusy());
  document.querySelector("#jaxl-again")?.setAttribute("aria-pressed", String(queue.isRepeating()));
});

function variations() {
  return form.asked().num_images || 4;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.querySelector("#jaxl-generate").click();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    cancel();
  }
});

document.addEventListener("click", ({ target }) => {
  if (target.closest(".jaxl-theme")) localStorage.setItem("jaxl-theme", document.body.classList.toggle("dark") ? "dark" : "light");
});
// what a picture to start from, and a mask, have does nothing without them
listen("source", ({ picture, mask }) => {
  document.body.classList.toggle("jaxl-from-picture", picture);
  document.body.classList.toggle("jaxl-masked", mask);
  form.keepSource();
});
document.addEventListener("change", ({ target }) => {
  if (!target.matches(".jaxl-restore input")) return;
  if (target.files.length) restore(target.files[0]);
  target.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  restore(event.dataTransfer.files[0]);
});

document.body.append(document.createElement("jaxl-viewer"));

const theme = localStorage.getItem("jaxl-theme");
if (theme) document.body.classList.toggle("dark", theme === "dark");
await open();
// Gradio's form may come before or after this
if (!document.body.classList.contains("jaxl-formed")) await new Promise((resolve) => listen("formed", resolve));
await Promise.all(["board", "waiting", "model", "size", "scheduler", "loras", ...NETWORKS, "hires", "refiner", "grid", "enlarge", "source"].map(arrived));
await Promise.all(["model", "loras", "refiner", ...NETWORKS].map((name) => part(name).looked));
await form.begin();
begin();
await queue.open(perform);
