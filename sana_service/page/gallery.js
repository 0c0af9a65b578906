// Pictures and their settings, kept in this browser's IndexedDB: the server's files expire.

const NAME = "sana";
const MOST = 200;
let memory = null;

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, act) {
  if (memory === null) {
    try {
      const database = await open();
      return await new Promise((resolve, reject) => {
        const transaction = database.transaction("pictures", mode);
        const request = act(transaction.objectStore("pictures"));
        transaction.oncomplete = () => { database.close(); resolve(request.result); };
        transaction.onerror = () => { database.close(); reject(transaction.error); };
        transaction.onabort = () => { database.close(); reject(transaction.error); };
      });
    } catch {
      memory = new Map(); // a private window, or a full disk: kept until the page is left
    }
  }
  return null;
}

let counter = 0;

export async function add(entry) {
  const id = await within("readwrite", (store) => store.add(entry));
  if (memory !== null) {
    counter += 1;
    memory.set(-counter, { ...entry, id: -counter });
    return -counter;
  }
  const kept = await all();
  for (const old of kept.slice(MOST)) await remove(old.id);
  return id;
}

export async function all() {
  const kept = (await within("readonly", (store) => store.getAll())) ?? [...memory.values()];
  return kept.sort((one, other) => other.made - one.made);
}

export async function remove(id) {
  await within("readwrite", (store) => store.delete(id));
  memory?.delete(id);
}

export async function clear() {
  await within("readwrite", (store) => store.clear());
  memory?.clear();
}
