// The microphone as PCM, and PCM as the agent's voice: for calls over a WebSocket.
import { closeContext, openContext } from "./audio";

export class SoundLine {
  #source: MediaStreamAudioSourceNode | undefined;
  #target: MediaStreamAudioDestinationNode;

  private constructor(
    private context: AudioContext,
    private node: AudioWorkletNode,
    heard: (pcm: Int16Array<ArrayBuffer>) => void, // 20 ms of the caller at 24 kHz
  ) {
    this.#target = context.createMediaStreamDestination();
    node.connect(this.#target);
    node.port.onmessage = ({ data }: MessageEvent<Int16Array<ArrayBuffer>>) => heard(data);
  }

  static async create(heard: (pcm: Int16Array<ArrayBuffer>) => void): Promise<SoundLine> {
    const context = await openContext("line");
    const node = new AudioWorkletNode(context, "line", {
      numberOfInputs: 1,
      outputChannelCount: [1],
      channelCount: 1,
      channelCountMode: "explicit",
    });
    return new SoundLine(context, node, heard);
  }

  get voice(): MediaStream {
    return this.#target.stream;
  }

  connect(microphone: MediaStream): void {
    const source = this.context.createMediaStreamSource(microphone);
    this.#source?.disconnect();
    this.#source = source;
    source.connect(this.node);
  }

  // Plays PCM of the agent, 16 bits at 24 kHz.
  play(pcm: Int16Array<ArrayBuffer>): void {
    this.node.port.postMessage(pcm, [pcm.buffer]);
  }

  // For a browser that has stopped the sound.
  resume(): void {
    void this.context.resume();
  }

  close(): void {
    this.node.port.onmessage = null;
    closeContext(this.context);
  }
}
