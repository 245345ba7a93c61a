// A ZIP archive of files that are compressed already, as pictures are, so they are stored as they are.
// Its form: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20;
const UTF8 = 0x0800;
// The first of January 1980, the day that ZIP counts from
const DATE = 0x0021;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let sum = byte;
  for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? 0xedb88320 ^ (sum >>> 1) : sum >>> 1;
  return sum;
});

/** An archive as a blob. `files` is a list of {name, blob}. */
export async function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const encoded = new TextEncoder().encode(name);
    const about = [VERSION, UTF8, 0, 0, DATE];
    const sizes = [checksum(new Uint8Array(await blob.arrayBuffer())), blob.size, blob.size];
    const header = record([[4, LOCAL], ...words(about), ...longs(sizes), [2, encoded.length], [2, 0]]);
    parts.push(header, encoded, blob);
    // without comment, disk and attributes
    const rest = [...words([encoded.length, 0, 0, 0, 0]), [4, 0], [4, offset]];
    directory.push(record([[4, CENTRAL], [2, VERSION], ...words(about), ...longs(sizes), ...rest]), encoded);
    offset += header.byteLength + encoded.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = record([[4, END], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** CRC-32, as PNG has it too. */
function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

/** Numbers as bytes, the least first; `fields` has their widths and values. */
function record(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [width]) => sum + width, 0));
  const view = new DataView(bytes.buffer);
  let place = 0;
  for (const [width, value] of fields) {
    if (width === 2) view.setUint16(place, value, true);
    else view.setUint32(place, value, true);
    place += width;
  }
  return bytes;
}

const words = (values) => values.map((value) => [2, value]);
const longs = (values) => values.map((value) => [4, value]);
