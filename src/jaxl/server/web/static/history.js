// The pictures of this browser: kept in IndexedDB, or for as long as the page is open where there is none.

const NAME = "jaxl";
const STORE = "pictures";

// The oldest go first; a thousand pictures of 1024x1024 are over a gigabyte
const MOST = 200;

/** Newest first: {id, blob, url, settings, edited}; `edited` if it was drawn from another picture. */
export const pictures = [];

const changes = new EventTarget();
let database = null;

export function onChange(listener) {
  changes.addEventListener("change", listener);
}

/** Read what earlier visits left. */
export async function open() {
  try {
    database = await promised(indexedDB.open(NAME, 1), (request) => {
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    });
    const kept = await promised(store("readonly").getAll());
    pictures.push(...kept.reverse().map(shown));
  } catch {
    database = null; // private windows of some browsers have none
  }
  changed();
}

export async function add(blob, settings, edited) {
  const record = { blob, settings, edited };
  if (database) {
    try {
      record.id = await promised(store("readwrite").add(record));
    } catch {
      // the browser's quota is used up: it is still here until the page is closed
    }
  }
  const picture = shown(record);
  pictures.unshift(picture);
  for (const old of pictures.slice(MOST)) await remove(old);
  changed();
  return picture;
}

export async function remove(picture) {
  const place = pictures.indexOf(picture);
  if (place < 0) return;
  pictures.splice(place, 1);
  URL.revokeObjectURL(picture.url);
  if (database && picture.id !== undefined) await promised(store("readwrite").delete(picture.id));
  changed();
}

export async function clear() {
  for (const picture of pictures.splice(0)) URL.revokeObjectURL(picture.url);
  if (database) await promised(store("readwrite").clear());
  changed();
}

function shown(record) {
  return { ...record, url: URL.createObjectURL(record.blob) };
}

function store(mode) {
  return database.transaction(STORE, mode).objectStore(STORE);
}

function promised(request, prepare = () => {}) {
  prepare(request);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function changed() {
  changes.dispatchEvent(new Event("change"));
}
