// The form: what is asked for, kept between visits, and what is wrong with it.

import { MAX_SEED, PRESETS, STEPS, byId, config, element, local } from "./settings.js";

const form = byId("form");
const value = (name) => new FormData(form).get(name);

export function build() {
  for (const [name, [width, height, label]] of Object.entries(PRESETS)) addSize(name, label, width, height);
  addSize("own", "Own");
  byId("style").append(...config.styles.map((style) => element("option", { value: style, textContent: style })));
  restore();
  form.addEventListener("input", changed);
  byId("swap").addEventListener("click", () => {
    const [width, height] = [byId("width"), byId("height")];
    [width.value, height.value] = [height.value, width.value];
    changed();
  });
  byId("dice").addEventListener("click", roll);
  byId("lock").addEventListener("click", () => setLock(byId("lock").getAttribute("aria-pressed") !== "true"));
  changed();
}

function addSize(name, label, width, height) {
  const face = element("span");
  if (width) {
    const shape = element("i", { className: "shape", attributes: { "aria-hidden": "true" } });
    const longest = Math.max(width, height);
    shape.style.width = `${(width / longest) * 18}px`;
    shape.style.height = `${(height / longest) * 18}px`;
    face.append(shape);
  }
  face.append(element("small", { textContent: label }));
  const radio = element("input", { type: "radio", name: "size", value: name });
  if (name === "square_hd") radio.checked = true;
  const title = width ? `${label}, ${width} by ${height} pixels` : "Own width and height";
  radio.setAttribute("aria-label", title);
  byId("sizes").append(element("label", { title }, radio, face));
}

export function roll() {
  byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  changed();
}

function setLock(on) {
  byId("lock").setAttribute("aria-pressed", String(on));
  byId("lock").title = on ? "This seed is kept" : "Keep this seed";
  save();
}

// After a picture: a seed that is not kept makes room for the next, but stays readable.
export function usedSeed(seed) {
  if (byId("lock").getAttribute("aria-pressed") === "true") byId("seed").value = seed;
  else byId("seed").placeholder = `new each time, last ${seed}`;
}

export function model() {
  return value("model");
}

export function request() {
  const made = {
    prompt: byId("prompt").value,
    image_size: size(),
    num_inference_steps: Number(byId("steps").value),
    guidance_scale: Number(byId("guidance").value),
    num_images: Number(value("count")),
    output_format: value("format"),
  };
  if (model() === "base" && byId("negative").value) made.negative_prompt = byId("negative").value;
  if (byId("style").value !== config.styles[0]) made.style_name = byId("style").value;
  if (!byId("safety").checked) made.enable_safety_checker = false;
  const seed = byId("seed").value.trim();
  if (seed) made.seed = seed;
  return made;
}

function size() {
  const name = value("size");
  if (name === "own") return { width: Number(byId("width").value), height: Number(byId("height").value) };
  if (name in config.presets) return name;
  const [width, height] = PRESETS[name];
  return { width, height };
}

export function pixels() {
  const asked = size();
  return typeof asked === "string" ? PRESETS[asked] : [asked.width, asked.height];
}

// Faults that need no server: the fields they belong to are marked, the first one gets the focus.
export function check() {
  clearFaults();
  const faults = [];
  if (!byId("prompt").value.trim()) faults.push(["prompt", "Say what the picture should show."]);
  const [width, height] = pixels();
  const whole = [width, height].every((side) => Number.isInteger(side) && side >= 64 && side <= 14142);
  if (!whole) faults.push(["image_size", "Each side takes whole numbers from 64 to 14142."]);
  else if (width * height > config.max_pixels) {
    faults.push(["image_size", `At most ${(config.max_pixels / 1e6).toFixed(1)} megapixels are drawn here.`]);
  }
  const seed = byId("seed").value.trim();
  if (seed && (!/^\d{1,20}$/.test(seed) || BigInt(seed) > MAX_SEED)) faults.push(["seed", "A seed is a whole number below 2^64."]);
  return show(faults);
}

const FIELDS = {
  prompt: "prompt", image_size: "width", seed: "seed", num_inference_steps: "steps",
  guidance_scale: "guidance", negative_prompt: "negative",
};

export function show(faults) {
  for (const [name, text] of faults) {
    const box = byId(`${name}-fault`);
    if (!box) continue;
    box.textContent = text;
    box.hidden = false;
    const field = byId(FIELDS[name]);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", box.id);
  }
  const first = faults.map(([name]) => FIELDS[name]).find((id) => id && byId(id));
  if (first) {
    if (byId("more").contains(byId(first))) byId("more").open = true;
    byId(first).focus();
  }
  return faults.length === 0;
}

export function clearFaults() {
  for (const box of form.querySelectorAll(".fault")) box.hidden = true;
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

let lastModel = null;

function changed() {
  const sprint = model() === "sprint";
  const steps = byId("steps");
  if (lastModel !== null && lastModel !== model()) {
    steps.max = STEPS[model()].max;
    steps.value = STEPS[model()].start;
  }
  steps.max = STEPS[model()].max;
  lastModel = model();
  byId("steps-value").textContent = steps.value;
  byId("guidance-value").textContent = byId("guidance").value;
  byId("negative").disabled = sprint;
  byId("negative-note").hidden = !sprint;
  byId("own-size").hidden = value("size") !== "own";
  const [width, height] = pixels();
  byId("size-note").textContent = `${width || "?"} × ${height || "?"}`;
  save();
}

function save() {
  const kept = { ...request(), model: model(), size: value("size"), locked: byId("lock").getAttribute("aria-pressed") === "true" };
  local.set("form", JSON.stringify(kept));
}

function restore() {
  try {
    const kept = JSON.parse(local.get("form"));
    if (kept) {
      apply({ ...kept, seed: kept.locked ? kept.seed : undefined }, kept.size);
      setLock(kept.locked);
    }
  } catch { /* written by another version */ }
  lastModel = model();
}

const pick = (name, wanted) => {
  const radio = [...form.elements[name]].find((each) => each.value === String(wanted));
  if (radio) radio.checked = true;
};

// Put settings into the form: of the last visit, of a picture in the gallery, or of a file.
export function apply(settings, sizeName) {
  pick("model", settings.model ?? "base");
  lastModel = model();
  byId("steps").max = STEPS[model()].max;
  byId("prompt").value = settings.prompt ?? "";
  byId("negative").value = settings.negative_prompt ?? "";
  byId("style").value = config.styles.includes(settings.style_name) ? settings.style_name : config.styles[0];
  byId("steps").value = settings.num_inference_steps ?? STEPS[model()].start;
  byId("guidance").value = settings.guidance_scale ?? 5;
  byId("safety").checked = settings.enable_safety_checker !== false;
  byId("seed").value = settings.seed ?? "";
  if (settings.num_images) pick("count", settings.num_images);
  if (settings.output_format) pick("format", settings.output_format);
  const asked = settings.image_size ?? { width: settings.width, height: settings.height };
  const [width, height] = typeof asked === "string" ? PRESETS[asked] : [asked.width, asked.height];
  const preset = Object.entries(PRESETS).find(([, [w, h]]) => w === width && h === height);
  byId("width").value = width;
  byId("height").value = height;
  pick("size", sizeName ?? (preset ? preset[0] : "own"));
  if (settings.negative_prompt || settings.style_name) byId("more").open = true;
}

// From a picture: its seed is part of what it is, so it is kept.
export function applyPicture(settings) {
  apply(settings);
  setLock(true);
  changed();
}
