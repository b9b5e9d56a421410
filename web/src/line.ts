// An AudioWorklet for calls without WebRTC: the microphone out in pieces of 20 ms at 24 kHz, the
// agent's voice in, with a small buffer against an unsteady network.

const RATE = 24000;
const PIECE = 480;
const STEP = sampleRate / RATE; // of the context's samples, for one sample at 24 kHz
const START = RATE * 0.1; // buffered before playing starts
const MOST = RATE * 0.5; // beyond which the oldest sound is dropped

class Line extends AudioWorkletProcessor {
  #piece = new Int16Array(PIECE);
  #filled = 0;
  #sum = 0;
  #summed = 0;
  #due = STEP; // context samples until the next sample at 24 kHz is complete
  #queue: number[] = [];
  #position = 0;
  #playing = false;

  constructor() {
    super();
    this.port.onmessage = ({ data }: MessageEvent<Int16Array>) => {
      for (const sample of data) this.#queue.push(sample / 32768);
      if (this.#queue.length > MOST) this.#queue.splice(0, this.#queue.length - START);
      if (this.#queue.length >= START) this.#playing = true;
    };
  }

  process(inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const [output] = outputs[0];
    const input = inputs[0]?.[0];
    for (let i = 0; i < output.length; i++) {
      this.#capture(input?.[i] ?? 0);
      output[i] = this.#playing ? this.#next() : 0;
    }
    const used = Math.floor(this.#position);
    this.#queue.splice(0, used);
    this.#position -= used;
    return true;
  }

  #capture(sample: number): void {
    this.#sum += sample;
    this.#summed += 1;
    this.#due -= 1;
    if (this.#due > 0) return;
    const mean = Math.max(-1, Math.min(1, this.#sum / this.#summed));
    [this.#sum, this.#summed] = [0, 0];
    // A context below 24 kHz, as of a headset that also records, gives some samples twice.
    for (; this.#due <= 0; this.#due += STEP) this.#store(Math.round(mean * 32767));
  }

  #store(sample: number): void {
    this.#piece[this.#filled++] = sample;
    if (this.#filled < PIECE) return;
    this.port.postMessage(this.#piece, [this.#piece.buffer]);
    this.#piece = new Int16Array(PIECE);
    this.#filled = 0;
  }

  // Interpolates between neighbouring samples.
  #next(): number {
    const left = Math.floor(this.#position);
    if (left + 1 >= this.#queue.length) {
      this.#playing = false; // it goes on once enough is buffered again
      return 0;
    }
    const part = this.#position - left;
    this.#position += 1 / STEP;
    return this.#queue[left] * (1 - part) + this.#queue[left + 1] * part;
  }
}

registerProcessor("line", Line);

export {};
