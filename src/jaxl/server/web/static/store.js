// Records of this browser: in IndexedDB, or for as long as the page is open where there is none.

const RECORDS = "records";

export class Store {
  /** `key` is the path of the records' keys, which are numbers that rise if they are not given. */
  constructor(name, { records = RECORDS, key = "id" } = {}) {
    this.name = name;
    this.records = records;
    this.key = key;
    this.database = null;
  }

  async open() {
    try {
      this.database = await promised(indexedDB.open(this.name, 1), (request) => {
        request.onupgradeneeded = () => request.result.createObjectStore(this.records, { keyPath: this.key, autoIncrement: true });
      });
    } catch {
      this.database = null; // private windows of some browsers have none
    }
  }

  /** All records, the oldest first. */
  async all() {
    return this.database ? promised(this.inside("readonly").getAll()) : [];
  }

  /** Add or replace a record. Its key; undefined if it could not be kept. */
  async put(record) {
    try {
      return this.database ? await promised(this.inside("readwrite").put(record)) : undefined;
    } catch {
      return undefined; // the browser's quota is used up
    }
  }

  async remove(key) {
    if (this.database && key !== undefined) await promised(this.inside("readwrite").delete(key));
  }

  inside(mode) {
    return this.database.transaction(this.records, mode).objectStore(this.records);
  }
}

function promised(request, prepare = () => {}) {
  prepare(request);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
