// The pictures of this browser, which all its tabs share.

import { Store } from "./store.js";

// The oldest go first; a thousand pictures of 1024x1024 are over a gigabyte
const MOST = 200;

/** Newest first: {id, blob, url, settings, edited, key, starred}; `edited` if it was drawn from another picture. */
export const pictures = [];

const changes = new EventTarget();
const store = new Store("jaxl", { records: "pictures" });
const tabs = new BroadcastChannel("jaxl-pictures");
tabs.onmessage = () => read();

export function onChange(listener) {
  changes.addEventListener("change", listener);
}

/** Read what earlier visits left. */
export async function open() {
  await store.open();
  await read();
}

/** Keep a picture. `key` is its own among all pictures: one that is here already is not added again. */
export async function add(blob, settings, edited, key) {
  const known = pictures.find((picture) => picture.key === key);
  if (known) return known;
  const record = { blob, settings, edited, key, starred: false };
  const id = await store.put(record);
  const picture = shown(id === undefined ? record : { ...record, id });
  // another tab's news may have brought it meanwhile
  const same = pictures.findIndex((each) => id !== undefined && each.id === id);
  if (same >= 0) return pictures[same];
  pictures.unshift(picture);
  const over = pictures.slice(MOST).filter((each) => !each.starred);
  for (const old of over) await drop(old);
  changed();
  return picture;
}

export async function star(picture, starred) {
  picture.starred = starred;
  const { url, ...record } = picture;
  if (record.id !== undefined) await store.put(record);
  changed();
}

/** Delete pictures from this browser. */
export async function remove(chosen) {
  for (const picture of [...chosen]) await drop(picture);
  changed();
}

async function drop(picture) {
  forget(picture);
  await store.remove(picture.id);
}

function forget(picture) {
  const place = pictures.indexOf(picture);
  if (place < 0) return;
  pictures.splice(place, 1);
  URL.revokeObjectURL(picture.url);
}

/** What is kept becomes what is shown; pictures that could not be kept stay. */
async function read() {
  const kept = new Map((await store.all()).map((record) => [record.id, record]));
  for (const picture of pictures.filter(({ id }) => id !== undefined && !kept.has(id))) forget(picture);
  for (const picture of pictures) {
    if (kept.has(picture.id)) picture.starred = Boolean(kept.get(picture.id).starred);
    kept.delete(picture.id);
  }
  pictures.unshift(...[...kept.values()].reverse().map(shown));
  changes.dispatchEvent(new Event("change"));
}

function shown(record) {
  return { ...record, url: URL.createObjectURL(record.blob) };
}

function changed() {
  tabs.postMessage("changed");
  changes.dispatchEvent(new Event("change"));
}
