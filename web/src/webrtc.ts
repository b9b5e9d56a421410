// A call over WebRTC to `personaplex talk`.
import { now, on, post } from "./dom";
import { type Call, type CallRequest, type Info, type Listener, Problem } from "./events";
import { ENDED, GONE, requireOk, whenGone, whyBroken } from "./problems";
import { Rtvi, RtviCall } from "./rtvi";

const BLOCKED_MS = 2300; // after the press of Talk: the page must say why within three seconds
const ANSWER_MS = 6000; // a call that is ending may still have the slot
const LOST_MS = 10_000; // an answer that comes until then is hung up, to free its slot
const LEAST_MS = 800; // for a connection, once the bot has answered
const SILENT_MS = 1800; // the bot sends a message at least once a second
const CHECK_MS = 400;
const PING_MS = 1000;
const GATHER_MS = 1200;
const TELL_MS = 500; // the WebSocket that takes over waits for this

export class WebRtcCall extends RtviCall implements Call {
  #peer: RTCPeerConnection;
  #sender: RTCRtpSender;
  protected rtvi: Rtvi;
  #voice = new MediaStream();
  #id = "";
  #heardAt = now();
  #connected = false;
  #over = false;
  #timers: number[] = [];

  constructor(
    info: Info,
    microphone: MediaStream,
    private listener: Listener,
    private blocked: () => void, // WebRTC does not get through
  ) {
    super();
    this.#peer = new RTCPeerConnection({ iceServers: info.ice_servers });
    const [track] = microphone.getAudioTracks();
    const options: RTCRtpTransceiverInit = { direction: "sendrecv", streams: [microphone] };
    this.#sender = this.#peer.addTransceiver(track, options).sender;
    this.#peer.addEventListener("track", ({ track }) => this.#voice.addTrack(track));
    const channel = this.#peer.createDataChannel("rtvi-ai", { ordered: true });
    this.rtvi = new Rtvi(channel, listener);
    channel.addEventListener("message", ({ data }) => {
      this.#heardAt = now();
      if (typeof data === "string") this.rtvi.receive(data);
    });
    on(channel, "open", () => {
      this.rtvi.ready();
      this.#every(PING_MS, () => this.#ping(channel));
    });
    on(channel, "close", () => void this.#findOutWhy());
    on(this.#peer, "connectionstatechange", () => this.#follow());
  }

  // Connects; throws a Problem if the bot refuses the call.
  async start(request: CallRequest): Promise<void> {
    const started = now();
    await this.#peer.setLocalDescription();
    await this.#gathered();
    if (this.#over) return;
    // Without a network, browsers offer no address, although the bot may be on this machine.
    if (!/a=candidate/.test(this.#peer.localDescription?.sdp ?? "")) return this.#giveUp();
    const response = await this.#offer(request);
    if (this.#over && !response?.ok) return;
    if (!response) throw new Problem(GONE);
    await requireOk(response);
    const answer = (await response.json()) as RTCSessionDescriptionInit & { pc_id: string };
    this.#id = answer.pc_id;
    if (this.#over) return void this.#tellBot();
    await this.#peer.setRemoteDescription(answer);
    const left = Math.max(LEAST_MS, BLOCKED_MS - (now() - started));
    this.#timers.push(setTimeout(() => void this.#giveUp(), left));
  }

  async useMicrophone(microphone: MediaStream): Promise<void> {
    await this.#sender.replaceTrack(microphone.getAudioTracks()[0]);
  }

  hangUp(): void {
    if (this.#over) return;
    this.#close();
    void this.#tellBot();
  }

  // The bot's answer; undefined if none comes.
  #offer(request: CallRequest): Promise<Response | undefined> {
    const offer = { ...this.#peer.localDescription?.toJSON(), request_data: request };
    const answer = post("api/offer", offer, AbortSignal.timeout(LOST_MS)).catch(() => undefined);
    whenGone(answer).catch(({ message }: Problem) => this.#end(message));
    const waiting = setTimeout(() => void this.#giveUp(), ANSWER_MS);
    return answer.finally(() => clearTimeout(waiting));
  }

  #follow(): void {
    const state = this.#peer.connectionState;
    if (state === "connected" && !this.#connected) {
      this.#connected = true;
      this.#heardAt = now();
      this.listener({ kind: "connected", voice: this.#voice, over: "webrtc" });
      this.#every(CHECK_MS, () => {
        if (now() - this.#heardAt > SILENT_MS) void this.#findOutWhy();
      });
    } else if (state === "failed") {
      if (this.#connected) void this.#findOutWhy();
      else void this.#giveUp();
    }
  }

  // The bot is silent: has it ended this call, or has it died?
  async #findOutWhy(): Promise<void> {
    if (this.#over) return;
    this.#heardAt = now(); // one inquiry at a time
    const why = await whyBroken(ENDED);
    if (why === GONE || this.#peer.connectionState !== "connected") this.#end(why);
  }

  // Frees the slot at once, so that the call can be made in another way.
  async #giveUp(): Promise<void> {
    if (this.#over || this.#connected) return;
    this.#close();
    await this.#tellBot();
    this.blocked();
  }

  #end(reason: string): void {
    if (this.#over) return;
    this.hangUp();
    this.listener({ kind: "ended", reason, problem: true });
  }

  #close(): void {
    this.#over = true;
    this.#timers.forEach(clearTimeout);
    this.#peer.close();
    this.rtvi.close();
  }

  async #tellBot(): Promise<void> {
    if (!this.#id) return;
    const body = JSON.stringify({ pc_id: this.#id });
    const signal = AbortSignal.timeout(TELL_MS);
    // keepalive: also while the page is being closed.
    const told = fetch("api/hangup", { method: "POST", body, signal, keepalive: true });
    await told.catch(() => undefined);
  }

  #gathered(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => this.#peer.iceGatheringState === "complete" && resolve();
      on(this.#peer, "icegatheringstatechange", done);
      setTimeout(resolve, GATHER_MS); // a server that does not answer must not hold us up
      done();
    });
  }

  #ping(channel: RTCDataChannel): void {
    if (channel.readyState === "open") channel.send(`ping: ${Date.now()}`);
  }

  #every(milliseconds: number, run: () => void): void {
    this.#timers.push(setInterval(run, milliseconds));
  }
}
