// What the page knows of the service, and the browser of its user.

export const config = JSON.parse(document.querySelector('meta[name="sana"]').content);

// Where the service is, a proxy's path prefix included; no slash at the end.
export const base = new URL(".", location.href).href.replace(/\/$/, "");
export const host = base.replace(/^https?:\/\//, "");

export const PRESETS = {
  square_hd: [1024, 1024, "Square"],
  landscape_4_3: [1024, 768, "4:3"],
  landscape_16_9: [1024, 576, "16:9"],
  uhd: [3840, 2160, "4K"],
  square: [512, 512, "Small"],
  portrait_4_3: [768, 1024, "3:4"],
  portrait_16_9: [576, 1024, "9:16"],
};
export const STEPS = { base: { max: 50, start: 18 }, sprint: { max: 20, start: 2 } };
export const MAX_SEED = 2n ** 64n - 1n;

const store = (area) => ({
  get(name) {
    try { return area.getItem(`sana.${name}`); } catch { return null; }
  },
  set(name, value) {
    try {
      if (value === null) area.removeItem(`sana.${name}`);
      else area.setItem(`sana.${name}`, value);
    } catch { /* a browser that keeps nothing still draws */ }
  },
});
export const local = store(window.localStorage);
export const session = store(window.sessionStorage);

export function sizeOf(imageSize) {
  return typeof imageSize === "string" ? PRESETS[imageSize] : [imageSize.width, imageSize.height];
}

export function element(tag, { attributes = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

let hiding;
export function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { box.hidden = true; }, 4000);
}
