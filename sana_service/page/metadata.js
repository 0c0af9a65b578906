// Reads back what a picture made here says of its making: the JSON in PNG's iTXt chunk `sana` or JPEG's comment.

const utf8 = new TextDecoder();
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

export async function readSettings(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = PNG.every((byte, i) => bytes[i] === byte) ? fromPng(bytes) : fromJpeg(bytes);
  if (text === null) return null;
  try {
    const told = JSON.parse(text);
    // digits, because a seed may be larger than JavaScript's whole numbers
    const seed = /"seed":\s*(\d+)/.exec(text)?.[1];
    return typeof told.prompt === "string" && seed && ["base", "sprint"].includes(told.model) ? { ...told, seed } : null;
  } catch {
    return null;
  }
}

function fromPng(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = utf8.decode(bytes.subarray(at + 4, at + 8));
    if (type === "iTXt") {
      const chunk = bytes.subarray(at + 8, at + 8 + length);
      const keyword = chunk.indexOf(0);
      if (utf8.decode(chunk.subarray(0, keyword)) === "sana" && chunk[keyword + 1] === 0) {
        const language = chunk.indexOf(0, keyword + 3);
        return utf8.decode(chunk.subarray(chunk.indexOf(0, language + 1) + 1));
      }
    }
    if (type === "IDAT") return null;
    at += 12 + length;
  }
  return null;
}

function fromJpeg(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return null;
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff;) {
    const marker = bytes[at + 1];
    if (marker === 0xda) return null;
    const length = view.getUint16(at + 2);
    if (marker === 0xfe) return utf8.decode(bytes.subarray(at + 4, at + 2 + length));
    at += 2 + length;
  }
  return null;
}
