// A call over /v1/session, the protocol of `personaplex serve`.
import { now, openSocket } from "./dom";
import { type Call, type CallRequest, type Listener, Problem, type Sampling } from "./events";
import {
  BLOCKED,
  ENDED,
  NO_SOUND,
  NOT_CONNECTED,
  OVER,
  refusal,
  UNKNOWN_KEY,
  whyBroken,
} from "./problems";
import { SoundLine } from "./sound";
import { SILENT_MS, Watch } from "./watch";

const FRAME = 1920; // samples of 80 ms at 24 kHz
const HEADER = 5; // of a client's frame: kind, sequence
const AUDIO_KIND = 1;
const LATE_MS = 80;
const OPEN_MS = 3000;
const PROMPT_MS = 30_000; // the server may compute the role and the voice for twice as long
const PAUSED_MS = 1000; // without a frame of the caller: its sound has stopped
const CHANGE_MS = 1100; // between two changes of the persona: the server takes one a second
const TURN_GAP_FRAMES = 10; // 0.8 s without text end a turn
const UTF8 = new TextDecoder();

// A run of pieces of one byte each: "<0xC3><0xA9>" is "é".
const fromBytes = (run: string): string =>
  UTF8.decode(Uint8Array.from(run.split("<").slice(1), (byte) => parseInt(byte)));
const STEP_FRAMES = 25; // step times are averaged

interface Persona {
  voice: string;
  prompt: string;
}

interface Message {
  type: string;
  code?: string;
  message?: string;
  fatal?: boolean;
  id?: number;
  ok?: boolean;
  state?: "speaking" | "said" | "cut" | "waiting";
  spoken?: number;
}

export class SessionCall implements Call {
  #socket: WebSocket;
  #line: SoundLine | undefined;
  #request: CallRequest | undefined;
  #frame = new DataView(new ArrayBuffer(HEADER + 2 * FRAME));
  #filled = 0;
  #sent = 0;
  #ready = false;
  #over = false;
  #sentAt = 0;
  #pauses = 0; // noticed since then
  #watch: Watch | undefined;
  #word = "";
  #quiet = 0; // frames without text
  #late = 0;
  #steps: number[] = [];
  #ids = 0;
  #texts = new Map<number, string>(); // speeches by id
  #begun = new Set<number>(); // ids of speeches
  #prompts = new Map<number, (problem?: Problem) => void>();
  #persona: Persona = { voice: "", prompt: "" };
  #wanted = this.#persona;
  #changing: Promise<void> | undefined;
  #changedAt = -CHANGE_MS; // when the last change was sent

  constructor(
    private microphone: MediaStream,
    private listener: Listener,
    private key: string,
  ) {
    this.#socket = openSocket("v1/session", key ? ["personaplex.v1", `bearer.${key}`] : []);
  }

  async start(request: CallRequest): Promise<void> {
    this.#request = request;
    this.#persona = this.#wanted = { voice: request.voice, prompt: request.prompt };
    await this.#hello();
    if (this.#over) return;
    this.#line = await SoundLine.create((pcm) => this.#push(pcm));
    if (this.#over) return this.#line.close();
    await this.#opened(request);
    if (this.#over) return;
    this.#line.connect(this.microphone);
    this.#watch = new Watch((why) => this.#end(why), PROMPT_MS, () => this.#paused());
    this.listener({ kind: "connected", voice: this.#line.voice, over: "websocket" });
  }

  async say(text: string): Promise<void> {
    const id = ++this.#ids;
    this.#texts.set(id, text);
    this.#send({ type: "say", text, id });
  }

  hush = async () => this.#send({ type: "hush" });
  hold = async (seconds: number) => this.#send({ type: "hold", seconds });
  release = async () => this.#send({ type: "release" });
  sample = async (sampling: Sampling) => this.#send({ type: "update", sampling });

  // The server takes one change at a time; of those that come meanwhile, the newest is sent next.
  prompt(change: { text?: string; voice?: string }): Promise<void> {
    const { voice, prompt } = this.#wanted;
    this.#wanted = { voice: change.voice ?? voice, prompt: change.text ?? prompt };
    this.#changing ??= this.#change().finally(() => {
      this.#changing = undefined;
    });
    return this.#changing;
  }

  async useMicrophone(microphone: MediaStream): Promise<void> {
    this.#line?.connect(microphone);
  }

  hangUp(): void {
    if (this.#over) return;
    this.#over = true;
    this.#watch?.stop();
    if (this.#socket.readyState === WebSocket.OPEN) this.#send({ type: "close" });
    this.#socket.close();
    this.#line?.close();
    for (const answer of this.#prompts.values()) answer(new Problem(OVER));
  }

  async #change(): Promise<void> {
    for (;;) {
      const left = this.#changedAt + CHANGE_MS - now();
      await new Promise((resolve) => setTimeout(resolve, left));
      const next = this.#wanted;
      this.#changedAt = now();
      try {
        await this.#replace(next);
      } catch (problem) {
        if (this.#wanted !== next) continue;
        this.#wanted = this.#persona;
        throw problem;
      }
      const { voice, prompt } = this.#wanted;
      if (voice === next.voice && prompt === next.prompt) return;
    }
  }

  async #replace(next: Persona): Promise<void> {
    const id = ++this.#ids;
    this.#send({ type: "prompt", id, voice: next.voice, text_prompt: next.prompt });
    await new Promise<void>((resolve, reject) => {
      this.#prompts.set(id, (problem) => (problem ? reject(problem) : resolve()));
    });
    this.#persona = next;
    this.listener({ kind: "persona", state: "changed", ...next });
  }

  #send(message: object): void {
    if (this.#socket.readyState !== WebSocket.OPEN) throw new Problem(OVER);
    this.#socket.send(JSON.stringify(message));
  }

  // Waits for the server's first message.
  #hello(): Promise<void> {
    return this.#until("hello", this.key ? UNKNOWN_KEY : NOT_CONNECTED);
  }

  async #opened(request: CallRequest): Promise<void> {
    const { voice, prompt, sampling } = request;
    this.#send({ type: "open", voice, text_prompt: prompt, sampling, audio: "pcm16" });
    await this.#until("opened", BLOCKED);
    this.#socket.onmessage = ({ data }) => this.#receive(data as string | ArrayBuffer);
    this.#socket.onclose = () => void whyBroken(ENDED).then((why) => this.#end(why));
  }

  #until(type: string, closed: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Problem(BLOCKED)), OPEN_MS);
      this.#socket.onclose = async () => reject(new Problem(await whyBroken(closed)));
      this.#socket.onmessage = ({ data }) => {
        const message = JSON.parse(String(data)) as Message;
        if (message.type !== type && message.type !== "error") return;
        clearTimeout(timer);
        if (message.type === type) return resolve();
        reject(new Problem(refusal(message.message ?? ENDED)));
      };
    });
  }

  // Collects 80 ms and sends them, once the agent listens: the server would keep what came before,
  // and answer it faster than real time.
  #push(pcm: Int16Array): void {
    if (!this.#ready) return;
    for (const sample of pcm) {
      this.#frame.setInt16(HEADER + 2 * this.#filled, sample, true);
      if (++this.#filled < FRAME) continue;
      this.#filled = this.#pauses = 0;
      this.#sentAt = now();
      if (this.#socket.readyState !== WebSocket.OPEN) continue;
      this.#frame.setUint8(0, AUDIO_KIND);
      this.#frame.setUint32(1, this.#sent++);
      this.#socket.send(this.#frame);
    }
  }

  #receive(data: string | ArrayBuffer): void {
    this.#watch?.heard();
    if (typeof data === "string") this.#message(JSON.parse(data) as Message);
    else this.#output(data);
  }

  #message(message: Message): void {
    switch (message.type) {
      case "ready":
        this.#ready = true;
        if (this.#watch) this.#watch.patience = SILENT_MS;
        this.listener({ kind: "persona", state: "started", ...this.#persona });
        if (this.#request?.greeting) void this.say(this.#request.greeting);
        break;
      case "speech":
        if (message.state && message.state !== "waiting") {
          const id = message.id ?? 0;
          const text = this.#texts.get(id) ?? "";
          if (message.state === "speaking" && this.#begun.has(id)) break;
          this.#begun.add(id);
          this.listener({ kind: "speech", state: message.state, text, spoken: message.spoken });
        }
        break;
      case "prompted":
        this.#prompts.get(message.id ?? 0)?.(
          message.ok ? undefined : new Problem(message.message ?? "The old role stays in effect."),
        );
        this.#prompts.delete(message.id ?? 0);
        break;
      case "error":
        if (message.fatal) this.#end(message.message ?? ENDED);
        else this.listener({ kind: "problem", text: message.message ?? "" });
        break;
      case "draining":
        this.listener({ kind: "problem", text: "The server is stopping; the call ends soon." });
    }
  }

  // 80 ms of the agent: PROTOCOL.md gives the layout.
  #output(data: ArrayBuffer): void {
    const view = new DataView(data);
    const [queued, step] = [view.getFloat32(41), view.getFloat32(45)];
    const size = view.getUint8(49);
    const piece = UTF8.decode(new Uint8Array(data, 50, size));
    this.#line?.play(new Int16Array(data.slice(50 + size)));
    this.#read(piece);
    if (queued + step > LATE_MS && this.#ready) {
      this.listener({ kind: "late", ms: queued + step, frames: ++this.#late });
    }
    this.#steps.push(step);
    if (this.#steps.length < STEP_FRAMES) return;
    const mean = this.#steps.reduce((sum, ms) => sum + ms, 0) / STEP_FRAMES;
    this.#steps = [];
    this.listener({ kind: "step", ms: mean });
  }

  // Pieces follow each other within a word; padding, or a piece with a space, ends it.
  #read(piece: string): void {
    this.#quiet = piece ? 0 : this.#quiet + 1;
    if (this.#quiet === TURN_GAP_FRAMES) this.listener({ kind: "turn", speaking: false });
    if (!piece || /^\s/.test(piece)) {
      const word = this.#word.trim().replace(/(<0x..>)+/g, fromBytes);
      this.#word = "";
      if (word) this.listener({ kind: "word", text: word });
    }
    this.#word += piece;
  }

  // Whether the browser has stopped the caller's sound, without which the server sends nothing.
  #paused(): boolean {
    if (!this.#ready || now() - this.#sentAt < PAUSED_MS) return false;
    this.#line?.resume();
    if (++this.#pauses === 2) this.listener({ kind: "problem", text: NO_SOUND });
    return true;
  }

  #end(reason: string): void {
    if (this.#over) return;
    this.hangUp();
    this.listener({ kind: "ended", reason, problem: true });
  }
}
