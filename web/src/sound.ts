// The microphone as PCM, and PCM as the agent's voice: for calls over a WebSocket.

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
    const context = new AudioContext({ latencyHint: "interactive" });
    await context.audioWorklet.addModule("static/line.js");
    const node = new AudioWorkletNode(context, "line", {
      numberOfInputs: 1,
      outputChannelCount: [1],
      channelCount: 1,
      channelCountMode: "explicit",
    });
    await context.resume();
    return new SoundLine(context, node, heard);
  }

  get voice(): MediaStream {
    return this.#target.stream;
  }

  connect(microphone: MediaStream): void {
    this.#source?.disconnect();
    this.#source = this.context.createMediaStreamSource(microphone);
    this.#source.connect(this.node);
  }

  // Plays PCM of the agent, 16 bits at 24 kHz.
  play(pcm: Int16Array<ArrayBuffer>): void {
    this.node.port.postMessage(pcm, [pcm.buffer]);
  }

  close(): void {
    this.node.port.onmessage = null;
    if (this.context.state !== "closed") void this.context.close();
  }
}
