// Opens a call in a way that gets through: WebRTC, else a WebSocket.
import { byId } from "./dom";
import type { Call, CallRequest, Info, Listener, Sampling } from "./events";
import { SessionCall } from "./session";
import { SocketCall } from "./socket";
import { WebRtcCall } from "./webrtc";

export function prepareCall(info: Info, microphone: MediaStream, listener: Listener): Call {
  if (info.server === "talk") return new TalkCall(info, microphone, listener);
  return new SessionCall(microphone, listener, byId<HTMLInputElement>("key").value.trim());
}

// WebRTC has the smaller delay. Browsers do not offer it without a network, even for a bot on the
// same machine, and some networks block it.
class TalkCall implements Call {
  #way: Call;
  #request: CallRequest | undefined;
  #over = false;

  constructor(
    info: Info,
    private microphone: MediaStream,
    private listener: Listener,
  ) {
    this.#way = new WebRtcCall(info, microphone, listener, () => void this.#useSocket());
  }

  async start(request: CallRequest): Promise<void> {
    this.#request = request;
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
    this.#way.hangUp();
  }

  async #useSocket(): Promise<void> {
    if (this.#over || !this.#request) return;
    const socket = new SocketCall(this.microphone, this.listener);
    this.#way = socket;
    this.listener({ kind: "blocked" });
    try {
      await socket.start(this.#request);
    } catch (error) {
      if (this.#over) return;
      this.#over = true;
      this.listener({ kind: "ended", reason: (error as Error).message, problem: true });
    }
  }
}
