// The call as one sees and steers it.
import { byId, clock, show } from "./dom";
import { type Call, type CallEvent, type CallRequest, type Info, Problem, type Sampling } from "./events";
import { prepareCall } from "./connect";
import { save } from "./files";
import type { Banner } from "./look";
import { Meter, rounded } from "./meter";
import { DeviceMenus } from "./devices";
import { openMicrophone } from "./microphone";
import type { PersonaEditor } from "./persona";
import { BLOCKED_HINT } from "./problems";
import { type Levels, Recorder } from "./recorder";
import { Timeline } from "./timeline";
import { Transcript } from "./transcript";

const HOLD_SECONDS = 10;
const PERMISSION_MS = 1500;
const BLINK_MS = 2500;

type State = "idle" | "busy" | "live";
const PROBLEM = { idle: "", busy: "Not connected", live: "The call is over" };

export class Stage {
  #info: Info;
  #banner: Banner;
  #request: () => CallRequest;
  #persona: PersonaEditor;
  #state: State = "idle";
  #call: Call | undefined;
  #microphone: MediaStream | undefined;
  #recorder: Recorder | undefined;
  #devices = new DeviceMenus((text) => this.#banner.show(text));
  #meter = new Meter();
  #timeline = new Timeline(byId<HTMLCanvasElement>("timeline"));
  #transcript = new Transcript(byId("transcript"));
  #log: Record<string, unknown>[] = [];
  #started = new Date();
  #attempt = 0;
  #holding = 0;
  #inEffect = "";

  constructor(
    info: Info,
    banner: Banner,
    request: () => CallRequest,
    persona: PersonaEditor,
  ) {
    [this.#info, this.#banner, this.#request, this.#persona] = [info, banner, request, persona];
    byId("talk").addEventListener("click", () => void this.#toggle());
    byId("mute").addEventListener("click", () => this.#mute());
    byId("hush").addEventListener("click", () => void this.#steer((call) => call.hush(), "Hushed"));
    byId("hold").addEventListener("click", () => void this.#toggleHold());
    byId("apply").addEventListener("click", () => void this.#applyPrompt());
    this.#onSubmit("say", (text) => this.#steer((call) => call.say(text), "Will be said"));
    this.#onSubmit("facts", (text) => {
      this.#persona.prompt = this.#persona.withFacts(text);
      return this.#applyPrompt();
    });
    byId("wav").addEventListener("click", () => {
      if (this.#recorder) save(this.#recorder.wav(), this.#started, "wav");
    });
    byId("json").addEventListener("click", () => this.#saveReport());
    byId<HTMLInputElement>("keep").addEventListener("change", () => this.#keep());
    byId("microphone").addEventListener("change", () => void this.#changeMicrophone());
    window.addEventListener("pagehide", () => this.#call?.hangUp());
    this.#show("idle", "Ready", "Press Talk, allow the microphone, and speak.");
    void this.#devices.list();
  }

  sample(values: Sampling): void {
    if (this.#state === "live") void this.#steer((call) => call.sample(values), "Sampling changed");
  }

  changeVoice(voice: string): void {
    if (this.#state === "live") void this.#steer((call) => call.prompt({ voice }), "Changing the voice");
  }

  settingsChanged(): void {
    const differs = this.#persona.prompt !== this.#inEffect;
    byId<HTMLButtonElement>("apply").disabled = this.#state !== "live" || !differs;
  }

  async #toggle(): Promise<void> {
    if (this.#call) return this.#call.hangUp();
    if (this.#state === "busy") {
      this.#attempt += 1;
      return this.#finish("Cancelled");
    }
    this.#banner.clear();
    const attempt = ++this.#attempt;
    try {
      await this.#connect(() => attempt === this.#attempt);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#finish("Not connected");
      const text = error instanceof Problem ? error.message : `The call failed: ${error}`;
      this.#banner.show(text, () => void this.#toggle());
    }
  }

  // Stops quietly once `wanted` is false: the person has cancelled.
  async #connect(wanted: () => boolean): Promise<void> {
    this.#show("busy", "Connecting …", "");
    this.#recorder?.stop();
    const asking = setTimeout(
      () => this.#show("busy", "Waiting for the microphone", "Allow it in the browser's question."),
      PERMISSION_MS,
    );
    const microphone = await openMicrophone(this.#devices.microphone).finally(
      () => clearTimeout(asking),
    );
    if (!wanted()) return microphone.getTracks().forEach((track) => track.stop());
    this.#microphone = microphone;
    this.#show("busy", "Connecting …", "");
    void this.#devices.list();
    this.#recorder = await Recorder.create((levels) => this.#hear(levels));
    this.#keep();
    if (!wanted()) return this.#recorder.stop();
    this.#recorder.connect(microphone, 0);
    this.#meter = new Meter();
    this.#timeline.clear();
    this.#transcript.clear();
    [this.#log, this.#started, this.#inEffect] = [[], new Date(), ""];
    const call = prepareCall(this.#info, microphone, (event) => {
      if (wanted()) this.#follow(event);
    });
    this.#call = call;
    await call.start(this.#request());
  }

  #follow(event: CallEvent): void {
    const at = this.#recorder?.seconds() ?? 0;
    if (event.kind !== "step") this.#log.push({ seconds: Number(at.toFixed(2)), ...event });
    switch (event.kind) {
      case "connected":
        this.#show("live", "Connected", "The agent is getting ready …");
        this.#play(event.voice);
        if (event.over === "websocket" && this.#info.server === "talk") {
          this.#transcript.note("WebRTC is not available here: a WebSocket takes its place.", at);
        }
        break;
      case "ended":
        this.#finish(event.problem ? PROBLEM[this.#state] : event.reason);
        if (event.problem) this.#banner.show(event.reason, () => void this.#toggle());
        break;
      case "problem":
        this.#banner.show(event.text);
        break;
      case "word":
        this.#transcript.word(event.text, at);
        this.#timeline.mark("word", event.text);
        break;
      case "turn":
        if (!event.speaking) this.#transcript.endTurn();
        break;
      case "caller":
        this.#transcript.caller(event.text, event.final, this.#meter.callerStart);
        // A transcript comes a second after its speech.
        if (event.final) this.#timeline.mark("caller", event.text, this.#meter.callerStart);
        break;
      case "persona":
        this.#personaInEffect(event.state, event.voice, event.prompt, at);
        break;
      case "speech":
        this.#speech(event.state, event.spoken);
        break;
      case "late":
        byId("late").textContent = String(event.frames);
        this.#timeline.mark("late");
        break;
      case "step":
        byId("step").textContent = `${event.ms.toFixed(0)} ms`;
        break;
      case "tool":
        if (event.phase === "started") {
          this.#timeline.span("tool", event.name, event.id);
          this.#transcript.toolStarted(event.id, event.name, event.detail, at);
        } else {
          this.#timeline.close("tool", event.id);
          this.#transcript.toolStopped(event.id, event.detail);
        }
        break;
      case "order":
        this.#timeline.mark("event", "order");
        this.#transcript.ordered(event.order, at);
        break;
      case "blocked":
        byId("hint").textContent = BLOCKED_HINT;
        break;
      case "other":
        this.#timeline.mark("event");
    }
  }

  #play(voice: MediaStream): void {
    const player = byId<HTMLAudioElement>("agent");
    player.srcObject = voice;
    player.play().catch(() => this.#banner.show("The browser plays no sound: click into the page."));
    this.#recorder?.connect(voice, 1);
  }

  #personaInEffect(state: string, voice: string, prompt: string, at: number): void {
    this.#inEffect = prompt;
    this.settingsChanged();
    if (state === "started") {
      const question = byId("questions").firstElementChild?.textContent;
      const hint = "It listens while it speaks: interrupt it whenever you like.";
      this.#show("live", "Talk now", question ? `Try “${question}” ${hint}` : hint);
      return;
    }
    this.#note("The new role is in effect");
    this.#timeline.mark("event", "new role");
    this.#transcript.note(`The agent has a new role or voice (${voice}).`, at);
  }

  #speech(state: string, spoken?: number): void {
    if (state === "speaking") return this.#timeline.span("forced", "given words");
    this.#timeline.close("forced");
    this.#note(state === "said" ? "Said" : `Cut after ${spoken ?? 0} words`);
  }

  // 20 ms of both voices.
  #hear(levels: Levels): void {
    const now = this.#recorder?.seconds() ?? 0;
    const response = this.#meter.push(levels);
    this.#timeline.push(levels, now);
    if (response) {
      const milliseconds = Math.round((response.onset - response.stop) * 1000);
      byId("response").textContent = `${milliseconds} ms`;
      byId("median").textContent = `${Math.round((this.#meter.median ?? 0) * 1000)} ms`;
      this.#timeline.span("response", `${milliseconds} ms`, "", response.stop, response.onset);
    }
    const piece = Math.round(now * 50);
    if (piece % 2) return; // 25 pictures a second leave the processor to the model
    this.#timeline.show();
    byId("level-caller").style.transform = `scaleX(${Math.min(1, levels.caller * 6)})`;
    byId("talk").style.setProperty("--voice", String(Math.min(1, levels.agent * 5)));
    if (piece % 50) return; // the rest once a second
    show(byId("echo"), this.#meter.echo);
    const recorded = this.#recorder?.recorded ?? 0;
    byId("recorded").textContent = recorded ? `${clock(recorded)} in this tab` : "Not recorded";
    byId<HTMLButtonElement>("wav").disabled = recorded === 0;
    byId<HTMLButtonElement>("json").disabled = this.#log.length === 0;
    if (this.#state === "live") byId("talk").textContent = `Hang up\n${clock(now)}`;
  }

  // Steering.

  #onSubmit(name: string, action: (text: string) => Promise<boolean>): void {
    const input = byId<HTMLInputElement>(name);
    byId(`${name}-form`).addEventListener("submit", async (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (text && (await action(text))) input.value = "";
    });
  }

  async #steer(action: (call: Call) => Promise<void>, done: string): Promise<boolean> {
    if (!this.#call || this.#state !== "live") {
      this.#note("Only during a call");
      return false;
    }
    try {
      await action(this.#call);
      this.#note(done);
      return true;
    } catch (error) {
      this.#banner.show((error as Error).message);
      return false;
    }
  }

  #applyPrompt(): Promise<boolean> {
    const text = this.#persona.prompt;
    if (!text) {
      this.#note("Write a role first");
      return Promise.resolve(false);
    }
    if (this.#state !== "live") {
      this.#note("Used in the next call");
      return Promise.resolve(true);
    }
    return this.#steer((call) => call.prompt({ text }), "Changing the role");
  }

  async #toggleHold(): Promise<void> {
    if (this.#holding) {
      if (await this.#steer((call) => call.release(), "Released")) this.#endHold();
    } else if (await this.#steer((call) => call.hold(HOLD_SECONDS), "Held: it says nothing of its own")) {
      this.#timeline.span("held", "held");
      this.#holding = setTimeout(() => this.#endHold(), HOLD_SECONDS * 1000);
      byId("hold").setAttribute("aria-pressed", "true");
      byId("hold").textContent = "Release";
    }
  }

  #endHold(): void {
    clearTimeout(this.#holding);
    this.#holding = 0;
    this.#timeline.close("held");
    byId("hold").setAttribute("aria-pressed", "false");
    byId("hold").textContent = `Hold ${HOLD_SECONDS} s`;
  }

  #mute(): void {
    const [track] = this.#microphone?.getAudioTracks() ?? [];
    if (!track) return;
    track.enabled = !track.enabled;
    byId("mute").setAttribute("aria-pressed", String(!track.enabled));
    byId("mute").textContent = track.enabled ? "Mute" : "Muted";
  }

  // Devices.

  async #changeMicrophone(): Promise<void> {
    if (this.#state !== "live" || !this.#call) return;
    try {
      const fresh = await openMicrophone(this.#devices.microphone);
      const [old] = this.#microphone?.getAudioTracks() ?? [];
      fresh.getAudioTracks()[0].enabled = old?.enabled ?? true;
      await this.#call.useMicrophone(fresh);
      old?.stop();
      this.#microphone = fresh;
      this.#recorder?.connect(fresh, 0);
    } catch (error) {
      this.#banner.show((error as Error).message);
    }
  }

  // States.

  #show(state: State, status: string, hint: string): void {
    this.#state = state;
    const talk = byId<HTMLButtonElement>("talk");
    talk.disabled = false;
    talk.dataset.state = state;
    talk.textContent = { idle: "Talk", busy: "Cancel", live: "Hang up" }[state];
    byId("status").textContent = status;
    byId("hint").textContent = hint;
    byId<HTMLButtonElement>("mute").disabled = state !== "live";
    this.settingsChanged();
  }

  #finish(reason: string): void {
    this.#call = undefined;
    this.#microphone?.getTracks().forEach((track) => track.stop());
    this.#microphone = undefined;
    if (this.#holding) this.#endHold();
    byId<HTMLAudioElement>("agent").srcObject = null;
    byId("mute").setAttribute("aria-pressed", "false");
    byId("mute").textContent = "Mute";
    byId("level-caller").style.transform = "scaleX(0)";
    byId("talk").style.setProperty("--voice", "0");
    const recorded = this.#recorder?.recorded ?? 0;
    byId<HTMLButtonElement>("json").disabled = this.#log.length === 0;
    byId<HTMLButtonElement>("wav").disabled = recorded === 0;
    this.#recorder?.stop();
    const talked = this.#state === "live" && recorded >= 1;
    this.#show("idle", reason, talked ? `${clock(recorded)} recorded in this tab.` : "");
  }

  #keep(): void {
    const { checked } = byId<HTMLInputElement>("keep");
    if (this.#recorder) this.#recorder.keep = checked;
  }

  #note(text: string): void {
    const place = byId("steered");
    place.textContent = text;
    setTimeout(() => {
      if (place.textContent === text) place.textContent = "";
    }, BLINK_MS);
  }

  #saveReport(): void {
    const { model, version } = this.#info;
    const report = {
      model,
      version,
      started: this.#started.toISOString(),
      request: this.#request(),
      response_times: this.#meter.responses.map(rounded),
      transcript: this.#transcript.lines,
      events: this.#log,
    };
    save(new Blob([JSON.stringify(report, null, 1)]), this.#started, "json");
  }
}
