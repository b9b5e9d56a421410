// From the press of Talk to the end of the call. Whatever ends it, everything that it has opened is
// closed at once, and "ended" is its last event.
import { prepareCall, readKey } from "./connect";
import type { DeviceMenus } from "./devices";
import { type Call, type CallEvent, type CallRequest, type Info, type Listener, Problem } from "./events";
import { openMicrophone } from "./microphone";
import { UNPLUGGED } from "./problems";
import { type Levels, Recorder } from "./recorder";

const PERMISSION_MS = 1500;

export class Attempt {
  #microphone: MediaStream | undefined;
  #chosen = ""; // id of the microphone that was opened last
  #recorder: Recorder | undefined;
  #call: Call | undefined;
  #connected = false;
  #muted = false;
  #over = false;

  constructor(
    private info: Info,
    private devices: DeviceMenus,
    private listener: Listener,
  ) {}

  // The call while it is connected.
  get call(): Call | undefined {
    return this.#connected && !this.#over ? this.#call : undefined;
  }

  async start(request: () => CallRequest): Promise<void> {
    try {
      await this.#connect(request);
    } catch (error) {
      this.end(error instanceof Problem ? error.message : `The call failed: ${error}`, true);
    }
  }

  // Waits for nothing: a server that does not answer must not keep the microphone open.
  end(reason: string, problem = false): void {
    if (this.#over) return;
    this.#over = true;
    this.#call?.hangUp();
    this.#recorder?.stop();
    stop(this.#microphone);
    this.listener({ kind: "ended", reason, problem });
  }

  // Begins the recording of both voices.
  record(agent: MediaStream, heard: (levels: Levels) => void): Recorder | undefined {
    if (this.#microphone) this.#recorder?.begin(this.#microphone, agent, heard);
    return this.#recorder;
  }

  toggleMute(): boolean {
    this.#muted = !this.#muted;
    this.#applyMute(this.#microphone);
    return this.#muted;
  }

  async changeMicrophone(): Promise<void> {
    if (!this.call) return;
    const chosen = this.devices.microphone;
    try {
      const fresh = await this.#openMicrophone();
      if (chosen !== this.devices.microphone) return stop(fresh); // another one was chosen since
      await this.#useMicrophone(fresh);
    } catch (error) {
      this.#report({ kind: "problem", text: (error as Error).message });
    }
  }

  async #connect(request: () => CallRequest): Promise<void> {
    const key = readKey(this.info);
    const asking = setTimeout(() => this.#report({ kind: "opening", asking: true }), PERMISSION_MS);
    const microphone = await this.#openMicrophone().finally(() => clearTimeout(asking));
    if (this.#over) return stop(microphone);
    this.#microphone = microphone;
    this.#report({ kind: "opening", asking: false });
    void this.devices.list();
    const recorder = await Recorder.create();
    if (this.#over) return recorder.stop();
    this.#recorder = recorder;
    this.#call = prepareCall(this.info, key, microphone, (event) => this.#report(event));
    await this.#call.start(request());
  }

  #report(event: CallEvent): void {
    if (this.#over) return;
    if (event.kind === "ended") return this.end(event.reason, event.problem);
    if (event.kind === "connected") this.#connected = true;
    try {
      this.listener(event);
      // It may have been chosen while the call connected.
      if (event.kind === "connected" && this.#chosen !== this.devices.microphone) {
        void this.changeMicrophone();
      }
    } catch (error) {
      // Such as a recorder that cannot begin: else the call would go on behind "Connecting".
      this.end(`The call failed: ${error}`, true);
    }
  }

  async #openMicrophone(): Promise<MediaStream> {
    this.#chosen = this.devices.microphone;
    const opened = await openMicrophone(this.#chosen, this.info.server);
    for (const track of opened.getAudioTracks()) {
      track.onended = () => this.#report({ kind: "problem", text: UNPLUGGED });
    }
    return opened;
  }

  // Of the old and the new microphone, the one that is not used is stopped, whatever happens.
  async #useMicrophone(fresh: MediaStream): Promise<void> {
    let unused: MediaStream | undefined = fresh;
    try {
      this.#applyMute(fresh);
      await this.call?.useMicrophone(fresh);
      [unused, this.#microphone] = [this.#microphone, fresh];
      this.#applyMute(fresh); // it may have changed meanwhile
      if (!this.#over) this.#recorder?.connect(fresh, 0);
    } finally {
      stop(unused);
      if (this.#over) stop(fresh);
    }
  }

  #applyMute(microphone: MediaStream | undefined): void {
    for (const track of microphone?.getAudioTracks() ?? []) track.enabled = !this.#muted;
  }
}

function stop(stream: MediaStream | undefined): void {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
