// A call over a WebSocket to `personaplex talk`, where WebRTC does not get through.
import { now } from "./dom";
import { type Call, type CallRequest, type Listener, Problem } from "./events";
import { BLOCKED, ENDED, GONE, refusal, whyBroken } from "./problems";
import { Rtvi, RtviCall } from "./rtvi";
import { SoundLine } from "./sound";

const SILENT_MS = 2500; // the bot sends a message at least once a second
const CHECK_MS = 400;
const CONNECT_MS = 1300; // from its creation
const LEAST_MS = 300;
const ANSWER_MS = 6000; // a call that is ending may still have the slot

export class SocketCall extends RtviCall implements Call {
  protected rtvi: Rtvi;
  #socket: WebSocket;
  #line: SoundLine | undefined;
  #created = now();
  #heardAt = 0;
  #timer = 0;
  #over = false;

  constructor(
    private microphone: MediaStream,
    private listener: Listener,
  ) {
    super();
    const address = new URL("api/socket", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.#socket = new WebSocket(address);
    this.#socket.binaryType = "arraybuffer";
    this.rtvi = new Rtvi(this.#socket, listener);
  }

  async start(request: CallRequest): Promise<void> {
    await this.#connected();
    await this.#opened(request);
    if (this.#over) return;
    this.#line = await SoundLine.create((pcm) => {
      if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(pcm);
    });
    if (this.#over) return this.#line.close();
    this.#line.connect(this.microphone);
    this.#heardAt = now();
    this.#socket.onmessage = ({ data }) => this.#receive(data as string | ArrayBuffer);
    this.#socket.onclose = () => this.#end(ENDED);
    this.#timer = setInterval(() => {
      if (now() - this.#heardAt > SILENT_MS) this.#end(GONE);
    }, CHECK_MS);
    this.listener({ kind: "connected", voice: this.#line.voice, over: "websocket" });
    this.rtvi.ready();
  }

  async useMicrophone(microphone: MediaStream): Promise<void> {
    this.#line?.connect(microphone);
  }

  hangUp(): void {
    this.#over = true;
    clearInterval(this.#timer);
    this.#socket.close();
    this.#line?.close();
    this.rtvi.close();
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
    this.#heardAt = now();
    if (typeof data === "string") this.rtvi.receive(data);
    else this.#line?.play(new Int16Array(data));
  }

  #end(reason: string): void {
    if (this.#over) return;
    this.hangUp();
    void whyBroken(reason).then((why) => {
      this.listener({ kind: "ended", reason: why, problem: true });
    });
  }
}
