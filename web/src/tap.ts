// An AudioWorklet with two inputs, caller and agent: both voices by one clock, in pieces of 20 ms.
// Its samples become the recording, the levels and the response times, so that these agree.

const PIECE = 480;
const STEP = sampleRate / 24000; // of the context's samples, for one sample at the model's 24 kHz

class Tap extends AudioWorkletProcessor {
  #voices = [new Int16Array(PIECE), new Int16Array(PIECE)];
  #filled = 0;
  #sums = [0, 0]; // neighbouring samples are averaged
  #summed = 0;
  #due = STEP;

  process(inputs: Float32Array[][]): boolean {
    const [caller, agent] = [inputs[0]?.[0], inputs[1]?.[0]];
    const length = caller?.length ?? agent?.length ?? 128;
    for (let i = 0; i < length; i++) {
      this.#sums[0] += caller?.[i] ?? 0;
      this.#sums[1] += agent?.[i] ?? 0;
      this.#summed += 1;
      this.#due -= 1;
      if (this.#due > 0) continue;
      const means = this.#sums.map((sum) => Math.max(-1, Math.min(1, sum / this.#summed)));
      this.#sums = [0, 0];
      this.#summed = 0;
      // A context below 24 kHz, as of a headset that also records, gives some samples twice.
      for (; this.#due <= 0; this.#due += STEP) this.#store(means);
    }
    return true;
  }

  #store(samples: number[]): void {
    for (const voice of [0, 1]) {
      this.#voices[voice][this.#filled] = Math.round(samples[voice] * 32767);
    }
    if (++this.#filled < PIECE) return;
    this.port.postMessage(this.#voices, [this.#voices[0].buffer, this.#voices[1].buffer]);
    this.#voices = [new Int16Array(PIECE), new Int16Array(PIECE)];
    this.#filled = 0;
  }
}

registerProcessor("tap", Tap);

export {};
