// The requests of this tab: one is at the server at a time, the others wait here, and all of them outlive a reload.

import { Store } from "./store.js";
import { tab, token } from "./tab.js";

// Milliseconds after which nobody comes back to a request; the server does not keep it longer either
const OLD = 3600_000;

/** Those that have not been sent: {id, tab, order, asked, source, sent}; `source` is null or {image, mask}, of blobs. */
export const waiting = [];

const store = new Store("jaxl-requests");
const changes = new EventTarget();
let perform = null;
let current = null;
let repeated = null;

export function onChange(listener) {
  changes.addEventListener("change", listener);
}

export const isBusy = () => Boolean(current);
export const isRepeating = () => Boolean(repeated);

/**
 * Go on with what this tab was at. `draw` is called as draw(request, signal) for one request at a time; it does not
 * throw, and says whether the request was drawn.
 */
export async function open(draw) {
  perform = draw;
  await store.open();
  const kept = (await store.all()).sort((one, other) => one.order - other.order);
  for (const request of kept) {
    if (request.order < Date.now() - OLD) await store.remove(request.id);
    else if (request.tab === tab) waiting.push(request);
  }
  next();
}

/** Draw as soon as what came before is drawn. */
export async function add(asked, source) {
  const request = { id: `page-${token()}`, tab, order: Date.now(), asked, source, sent: false };
  waiting.push(request);
  changed();
  await store.put(request);
  next();
}

/** Ask `make` for {asked, source} whenever nothing waits, until `stop`. */
export function repeat(make) {
  repeated = make;
  changed();
  next();
}

export function stop() {
  repeated = null;
  changed();
}

/** Give up on what is drawn now, and on repeating. Whether there was anything to give up. */
export function cancel() {
  const busy = isBusy();
  stop();
  current?.abort();
  return busy;
}

/** Give up on a request that waits. */
export function remove(request) {
  const place = waiting.indexOf(request);
  if (place < 0) return;
  waiting.splice(place, 1);
  store.remove(request.id);
  changed();
}

async function next() {
  if (current || !perform) return;
  const request = waiting.shift();
  if (!request) {
    if (repeated) {
      const { asked, source } = repeated();
      await add(asked, source);
    }
    return;
  }
  const controller = new AbortController();
  current = controller;
  changed();
  await store.put({ ...request, sent: true });
  const drawn = await perform(request, controller.signal);
  await store.remove(request.id);
  current = null;
  if (!drawn) repeated = null;
  changed();
  next();
}

function changed() {
  changes.dispatchEvent(new Event("change"));
}
