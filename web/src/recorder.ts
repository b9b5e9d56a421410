// Both voices of a call: their levels as they sound, and the recording.
import { closeContext, openContext } from "./audio";

export const PIECE_SECONDS = 0.02;
const MAX_SECONDS = 30 * 60; // about 170 MB in this tab

export interface Levels {
  caller: number; // RMS of 20 ms
  agent: number;
}

export class Recorder {
  readonly seconds = () => this.#pieces * PIECE_SECONDS;
  keep = true; // whether the samples are stored
  #pieces = 0;
  #stored: [Int16Array, Int16Array][] = [];
  #node: AudioWorkletNode | undefined;
  #sources: MediaStreamAudioSourceNode[] = [];

  private constructor(private context: AudioContext) {}

  static async create(): Promise<Recorder> {
    return new Recorder(await openContext("tap"));
  }

  // Its clock starts now: the time in which the call was connected is not recorded.
  begin(caller: MediaStream, agent: MediaStream, listener: (levels: Levels) => void): void {
    this.#node = new AudioWorkletNode(this.context, "tap", {
      numberOfInputs: 2,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.#node.port.onmessage = ({ data }: MessageEvent<[Int16Array, Int16Array]>) => {
      this.#pieces += 1;
      if (this.keep && this.#stored.length < MAX_SECONDS / PIECE_SECONDS) this.#stored.push(data);
      listener({ caller: level(data[0]), agent: level(data[1]) });
    };
    this.#node.connect(this.context.destination); // silent; without it, nothing is processed
    this.connect(caller, 0);
    this.connect(agent, 1);
  }

  connect(stream: MediaStream, voice: 0 | 1): void {
    if (!this.#node) return;
    const source = this.context.createMediaStreamSource(stream);
    this.#sources[voice]?.disconnect();
    this.#sources[voice] = source;
    source.connect(this.#node, 0, voice);
  }

  stop(): void {
    if (this.#node) this.#node.port.onmessage = null;
    closeContext(this.context);
  }

  get recorded(): number {
    return this.#stored.length * PIECE_SECONDS;
  }

  // Stereo, 16 bits: caller left, agent right.
  wav(): Blob {
    const size = this.#stored[0]?.[0].length ?? 1;
    const rate = Math.round(size / PIECE_SECONDS);
    const samples = new Int16Array(this.#stored.length * size * 2);
    this.#stored.forEach(([caller, agent], piece) => {
      for (let i = 0; i < size; i++) {
        samples[(piece * size + i) * 2] = caller[i];
        samples[(piece * size + i) * 2 + 1] = agent[i];
      }
    });
    return new Blob([header(samples.byteLength, rate), samples], { type: "audio/wav" });
  }
}

function level(samples: Int16Array): number {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / samples.length) / 32768;
}

function header(bytes: number, rate: number): ArrayBuffer {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at: number, value: string) =>
    [...value].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 2, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 4, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  return view.buffer;
}
