// An AudioWorklet with two inputs, caller and agent: both voices by one clock, in pieces of 20 ms.
// Its samples become the recording, the levels and the response times, so that these agree.

const PIECE_SECONDS = 0.02;
const TARGET_RATE = 24000;

class Tap extends AudioWorkletProcessor {
  // Neighbouring samples are averaged down to about 24 kHz, the rate of the model.
  private factor = Math.max(1, Math.floor(sampleRate / TARGET_RATE));
  private size = Math.round((sampleRate / this.factor) * PIECE_SECONDS);
  private voices = [new Int16Array(this.size), new Int16Array(this.size)];
  private filled = 0;
  private sums = [0, 0];
  private summed = 0;

  process(inputs: Float32Array[][]): boolean {
    const [caller, agent] = [inputs[0]?.[0], inputs[1]?.[0]];
    const length = caller?.length ?? agent?.length ?? 128;
    for (let i = 0; i < length; i++) {
      this.sums[0] += caller?.[i] ?? 0;
      this.sums[1] += agent?.[i] ?? 0;
      if (++this.summed === this.factor) this.store();
    }
    return true;
  }

  private store(): void {
    for (const voice of [0, 1]) {
      const sample = Math.max(-1, Math.min(1, this.sums[voice] / this.factor));
      this.voices[voice][this.filled] = Math.round(sample * 32767);
      this.sums[voice] = 0;
    }
    this.summed = 0;
    if (++this.filled < this.size) return;
    this.port.postMessage(this.voices, [this.voices[0].buffer, this.voices[1].buffer]);
    this.voices = [new Int16Array(this.size), new Int16Array(this.size)];
    this.filled = 0;
  }
}

registerProcessor("tap", Tap);

export {};
