// Reads pairs out of pairs.safetensors by byte ranges: the header first, then only what is looked at.
//
// The file is eight bytes of header length (little endian), the header as JSON, and the tensors.
// HQ and LQ are float32 in window units, or float16 where a run keeps what it had after a round. Three layouts of LQ are read:
//   lq (N, 1, S, S) beside hq (N, 1, S, S), where `task` (int32) is each pair's place in the tasks;
//   lq (T, N, 1, S, S), or (T N, 1, S, S) task by task, over one set of hq (N, 1, S, S);
//   a tensor for each task, lq.NAME (or lq/NAME, lq_NAME), over one set of hq.

const FIRST_BYTES = 64 * 1024;
const MAX_HEADER_BYTES = 1024 * 1024;
const KEPT_PAIRS = 16;
const WIDTHS = { F16: 2, F32: 4, I32: 4, I64: 8 };

/** Half floats, IEEE 754: a sign, five bits of exponent, ten of fraction. */
function fromHalf(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14;
  return bits >> 15 ? -size : size;
}

class Source {
  constructor(address) {
    this.address = address;
    this.whole = null;
  }

  /** The bytes from start up to end; fewer where the file ends. */
  async read(start, end) {
    if (this.whole === null) {
      const answer = await fetch(this.address, { headers: { Range: `bytes=${start}-${end - 1}` } });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const body = await answer.arrayBuffer();
      if (answer.status === 206) return body;
      this.whole = body; // something between us and the server dropped the range
    }
    return this.whole.slice(start, end);
  }
}

function count(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

export class Pairs {
  static async open(address) {
    const source = new Source(address);
    let start = await source.read(0, FIRST_BYTES);
    if (start.byteLength < 8) throw new Error("the file ends early");
    const length = Number(new DataView(start).getBigUint64(0, true));
    if (length > MAX_HEADER_BYTES) throw new Error("the header is too long");
    if (8 + length > start.byteLength) start = await source.read(0, 8 + length);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(start, 8, length)));
    const pairs = new Pairs(source, header, 8 + length);
    await pairs.arrange();
    return pairs;
  }

  constructor(source, header, offset) {
    this.source = source;
    this.offset = offset;
    const { __metadata__: metadata = {}, ...tensors } = header;
    this.tensors = tensors;
    this.about = metadata.fedstill ? JSON.parse(metadata.fedstill) : {};
    this.kept = new Map();
  }

  /** Works out which LQ and which HQ make the pairs of each task. */
  async arrange() {
    const { hq, lq, task } = this.tensors;
    if (!["F16", "F32"].includes(hq?.dtype)) throw new Error("the file has no hq in floats");
    this.size = hq.shape.at(-1);
    if (hq.shape.at(-2) !== this.size) throw new Error("the images are not square");
    const images = hq.shape[0];
    const named = this.about.tasks ?? [this.about.task ?? "task"];
    this.tasks = new Map(named.map((name) => [name, []]));
    const into = (name, pair) => {
      if (!this.tasks.has(name)) this.tasks.set(name, []);
      this.tasks.get(name).push(pair);
    };
    if (lq && lq.shape[0] === images && lq.shape.length === hq.shape.length) {
      const which = task ? await this.integers("task") : new Array(images).fill(0);
      which.forEach((place, index) => {
        into(named[place] ?? `task ${place}`, { hq: index, lq: ["lq", index] });
      });
    } else if (lq) {
      const all = count(lq.shape) / this.size ** 2;
      for (let index = 0; index < all; index++) {
        const place = Math.floor(index / images);
        into(named[place] ?? `task ${place}`, { hq: index % images, lq: ["lq", index] });
      }
    } else {
      for (const key of Object.keys(this.tensors)) {
        const name = /^lq[._/:-](.+)$/.exec(key)?.[1];
        if (name === undefined) continue;
        for (let index = 0; index < images; index++) into(name, { hq: index, lq: [key, index] });
      }
    }
    for (const [name, pairs] of this.tasks) if (!pairs.length) this.tasks.delete(name);
    if (!this.tasks.size) throw new Error("the file has no lq");
  }

  /** Images of pair number `index` of a task: {hq, lq}, Float32Array of S x S each. */
  async pair(name, index) {
    const key = `${name} ${index}`;
    if (!this.kept.has(key)) {
      const { hq, lq } = this.tasks.get(name)[index];
      const both = Promise.all([this.image("hq", hq), this.image(...lq)]);
      this.kept.set(key, both.then(([high, low]) => ({ hq: high, lq: low })));
      both.catch(() => this.kept.delete(key));
      if (this.kept.size > KEPT_PAIRS) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(key);
  }

  async image(key, index) {
    const [{ dtype }, pixels] = [this.tensors[key], this.size ** 2];
    if (!["F16", "F32"].includes(dtype)) throw new Error(`${key} has no floats`);
    const content = await this.bytes(key, index * pixels, (index + 1) * pixels);
    return dtype === "F32" ? new Float32Array(content) : Float32Array.from(new Uint16Array(content), fromHalf);
  }

  async integers(key) {
    const { dtype, shape } = this.tensors[key];
    const content = await this.bytes(key, 0, count(shape));
    if (dtype === "I32") return Array.from(new Int32Array(content));
    return Array.from(new BigInt64Array(content), Number);
  }

  async bytes(key, first, last) {
    const { data_offsets: [start, end], dtype } = this.tensors[key];
    const width = WIDTHS[dtype];
    if (!width || start + last * width > end) throw new Error(`${key} is not as long as it says`);
    const from = this.offset + start;
    const content = await this.source.read(from + first * width, from + last * width);
    if (content.byteLength !== (last - first) * width) throw new Error("the file ends early");
    return content;
  }
}
