// A call over a WebSocket to `personaplex talk`, where WebRTC does not get through.
import { now, openSocket } from "./dom";
import { type Call, type CallRequest, type Listener, Problem } from "./events";
import { BLOCKED, ENDED, refusal, whyBroken } from "./problems";
import { Rtvi, RtviCall } from "./rtvi";
import { SoundLine } from "./sound";
import { Watch } from "./watch";

const CONNECT_MS = 1300; // from its creation
const LEAST_MS = 300;
const ANSWER_MS = 6000; // a call that is ending may still have the slot

export class SocketCall extends RtviCall implements Call {
  protected rtvi: Rtvi;
  #socket: WebSocket;
  #line: SoundLine | undefined;
  #created = now();
  #watch: Watch | undefined;
  #accepted = false;
  #over = false;

  constructor(
    private microphone: MediaStream,
    private listener: Listener,
  ) {
    super();
    this.#socket = openSocket("api/socket");
    this.rtvi = new Rtvi(this.#socket, listener);
  }

  async start(request: CallRequest): Promise<void> {
    await this.#connected();
    if (this.#over) return;
    this.#line = await SoundLine.create((pcm) => this.#push(pcm));
    if (this.#over) return this.#line.close();
    await this.#opened(request);
    if (this.#over) return;
    // At once: sound and messages of the call follow the answer.
    this.#socket.onmessage = ({ data }) => this.#receive(data as string | ArrayBuffer);
    this.#socket.onclose = () => void this.#findOutWhy();
    this.#line.connect(this.microphone);
    this.#accepted = true;
    this.#watch = new Watch((why) => this.#end(why));
    this.listener({ kind: "connected", voice: this.#line.voice, over: "websocket" });
    this.rtvi.ready();
  }

  async useMicrophone(microphone: MediaStream): Promise<void> {
    this.#line?.connect(microphone);
  }

  hangUp(): void {
    this.#over = true;
    this.#watch?.stop();
    this.#socket.close();
    this.#line?.close();
    this.rtvi.close();
  }

  #push(pcm: Int16Array<ArrayBuffer>): void {
    if (this.#accepted && this.#socket.readyState === WebSocket.OPEN) this.#socket.send(pcm);
  }

  #connected(): Promise<void> {
    return new Promise((resolve, reject) => {
      const { readyState } = this.#socket;
      const block = () => reject(new Problem(BLOCKED));
      if (readyState === WebSocket.OPEN) return resolve();
      if (readyState !== WebSocket.CONNECTING) return block();
      const left = CONNECT_MS - (now() - this.#created);
      setTimeout(block, Math.max(LEAST_MS, left));
      this.#socket.onopen = () => resolve();
      this.#socket.onerror = this.#socket.onclose = block;
    });
  }

  #opened(request: CallRequest): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#socket.readyState !== WebSocket.OPEN) return reject(new Problem(BLOCKED));
      const timer = setTimeout(() => reject(new Problem(BLOCKED)), ANSWER_MS);
      this.#socket.send(JSON.stringify(request));
      this.#socket.onclose = () => reject(new Problem(BLOCKED));
      this.#socket.onmessage = ({ data }) => {
        clearTimeout(timer);
        const { detail } = JSON.parse(String(data)) as { detail?: string };
        if (detail === undefined) resolve();
        else reject(new Problem(refusal(detail)));
      };
    });
  }

  #receive(data: string | ArrayBuffer): void {
    this.#watch?.heard();
    if (typeof data === "string") this.rtvi.receive(data);
    else this.#line?.play(new Int16Array(data));
  }

  async #findOutWhy(): Promise<void> {
    if (!this.#over) this.#end(await whyBroken(ENDED));
  }

  #end(reason: string): void {
    if (this.#over) return;
    this.hangUp();
    this.listener({ kind: "ended", reason, problem: true });
  }
}
