// Opens a call in a way that gets through: WebRTC, else a WebSocket.
import { byId } from "./dom";
import { type Call, type CallRequest, type Info, type Listener, Problem, type Sampling } from "./events";
import { NO_KEY, WRONG_KEY } from "./problems";
import { SessionCall } from "./session";
import { SocketCall } from "./socket";
import { WebRtcCall } from "./webrtc";

// The key that is written in the page, if the server requires one; throws a Problem if it cannot be
// a key: it is sent as the name of a subprotocol.
export function readKey({ key_required }: Info): string {
  if (!key_required) return "";
  const key = byId<HTMLInputElement>("key").value.trim();
  if (!key) throw new Problem(NO_KEY);
  if (/[^\w!#$%&'*+.^`|~-]/.test(key)) throw new Problem(WRONG_KEY);
  return key;
}

export function prepareCall(
  info: Info,
  key: string,
  microphone: MediaStream,
  listener: Listener,
): Call {
  if (info.server === "talk") return new TalkCall(info, microphone, listener);
  return new SessionCall(microphone, listener, key);
}

const SPARE_MS = 1200; // after which a WebSocket is opened, so that it can take over at once

// WebRTC has the smaller delay. Browsers do not offer it without a network, even for a bot on the
// same machine, and some networks block it.
class TalkCall implements Call {
  #spare: SocketCall | undefined; // used if WebRTC does not get through
  #timer = 0;
  #way: Call;
  #request: CallRequest | undefined;
  #over = false;

  constructor(
    info: Info,
    private microphone: MediaStream,
    private listener: Listener,
  ) {
    const settled: Listener = (event) => {
      if (event.kind === "connected") this.#dropSpare();
      listener(event);
    };
    this.#way = new WebRtcCall(info, microphone, settled, () => void this.#useSocket());
  }

  async start(request: CallRequest): Promise<void> {
    this.#request = request;
    this.#timer = setTimeout(() => {
      this.#spare = new SocketCall(this.microphone, this.listener);
    }, SPARE_MS);
    await this.#way.start(request);
  }

  say = (text: string) => this.#way.say(text);
  hush = () => this.#way.hush();
  hold = (seconds: number) => this.#way.hold(seconds);
  release = () => this.#way.release();
  prompt = (change: { text?: string; voice?: string }) => this.#way.prompt(change);
  sample = (sampling: Sampling) => this.#way.sample(sampling);
  useMicrophone = (microphone: MediaStream) => this.#way.useMicrophone(microphone);

  hangUp(): void {
    this.#over = true;
    this.#dropSpare();
    this.#way.hangUp();
  }

  #dropSpare(): void {
    clearTimeout(this.#timer);
    this.#spare?.hangUp();
    this.#spare = undefined;
  }

  async #useSocket(): Promise<void> {
    if (this.#over || !this.#request) return;
    clearTimeout(this.#timer);
    const socket = this.#spare ?? new SocketCall(this.microphone, this.listener);
    this.#spare = undefined;
    this.#way = socket;
    this.listener({ kind: "blocked" });
    try {
      await socket.start(this.#request);
    } catch (error) {
      this.listener({ kind: "ended", reason: (error as Error).message, problem: true });
    }
  }
}
