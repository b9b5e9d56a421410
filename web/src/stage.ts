// The call as one sees and steers it.
import { byId, clock, element, on, show } from "./dom";
import { Attempt } from "./attempt";
import type { Call, CallEvent, CallRequest, Info, Sampling } from "./events";
import { save } from "./files";
import type { Banner } from "./look";
import { Meter, rounded } from "./meter";
import { DeviceMenus } from "./devices";
import type { PersonaEditor } from "./persona";
import { BLOCKED_HINT, NO_SOUND } from "./problems";
import type { Levels, Recorder } from "./recorder";
import { Timeline } from "./timeline";
import { Transcript } from "./transcript";
import type { VoiceGallery } from "./voices";

const HOLD_SECONDS = 10;
const BLINK_MS = 2500;

type State = "idle" | "busy" | "live";
const NO_NUMBERS = { response: "–", median: "–", step: "–", late: "0" };

export class Stage {
  #info: Info;
  #banner: Banner;
  #request: () => CallRequest;
  #persona: PersonaEditor;
  #voices: VoiceGallery;
  #clock = element("span"); // of the call, in the button
  #state: State = "idle";
  #attempt: Attempt | undefined; // until it has ended
  #devices = new DeviceMenus((text) => this.#banner.show(text));
  // Of the last call that was connected.
  #recorder: Recorder | undefined;
  #meter = new Meter();
  #timeline = new Timeline(byId<HTMLCanvasElement>("timeline"));
  #transcript = new Transcript(byId("transcript"));
  #log: Record<string, unknown>[] = [];
  #started = new Date();
  #asking: CallRequest | undefined; // of the call that is connecting
  #asked: CallRequest | undefined;
  #inEffect = ""; // the prompt of the running call
  #voice = ""; // and its voice
  #chosen = ""; // the voice that was chosen last during a call
  #holding = 0;

  constructor(
    info: Info,
    banner: Banner,
    request: () => CallRequest,
    persona: PersonaEditor,
    voices: VoiceGallery,
  ) {
    [this.#info, this.#banner, this.#request] = [info, banner, request];
    [this.#persona, this.#voices] = [persona, voices];
    // Else the button would have another name each second.
    this.#clock.setAttribute("aria-hidden", "true");
    on("talk", "click", () => this.#toggle());
    on("mute", "click", () => {
      this.#showMute(this.#attempt?.toggleMute() ?? false);
    });
    on("hush", "click", () => void this.#steer((call) => call.hush(), "Hushed"));
    on("hold", "click", () => void this.#toggleHold());
    on("apply", "click", () => void this.#applyPrompt());
    this.#onSubmit("say", (text) => this.#steer((call) => call.say(text), "Will be said"));
    this.#onSubmit("facts", (text) => this.#addFacts(text));
    on("wav", "click", () => {
      if (this.#recorder) save(this.#recorder.wav(), this.#started, "wav");
    });
    on("json", "click", () => this.#saveReport());
    on("keep", "change", () => this.#keep());
    on("microphone", "change", () => void this.#attempt?.changeMicrophone());
    on(window, "pagehide", () => this.#attempt?.end("You hung up."));
    this.#show("idle", "Ready", "Press Talk, allow the microphone, and speak.");
    void this.#devices.list();
  }

  sample(values: Sampling): void {
    if (this.#state === "live") void this.#steer((call) => call.sample(values), "Sampling changed");
  }

  async changeVoice(voice: string): Promise<void> {
    if (this.#state !== "live") return;
    this.#chosen = voice;
    if (!(await this.#change({ voice }, "Changing the voice"))) this.#showVoice();
  }

  settingsChanged(): void {
    const differs = this.#persona.prompt !== this.#inEffect;
    byId<HTMLButtonElement>("apply").disabled = this.#state !== "live" || !differs;
  }

  #toggle(): void {
    if (this.#attempt) {
      return this.#attempt.end(this.#state === "live" ? "You hung up." : "Cancelled");
    }
    this.#banner.clear();
    this.#show("busy", "Connecting …", "");
    this.#attempt = new Attempt(this.#info, this.#devices, (event) => this.#follow(event));
    void this.#attempt.start(() => (this.#asking = this.#request()));
  }

  // Only a call that is connected replaces the one before, whose recording may not be saved yet.
  #begin(voice: MediaStream): void {
    this.#meter = new Meter();
    this.#timeline.clear();
    this.#transcript.clear();
    [this.#log, this.#started, this.#asked, this.#inEffect] = [[], new Date(), this.#asking, ""];
    this.#voice = this.#chosen = this.#asked?.voice ?? "";
    for (const [id, text] of Object.entries(NO_NUMBERS)) byId(id).textContent = text;
    this.#recorder = this.#attempt?.record(voice, (levels) => this.#hear(levels));
    this.#keep();
    this.#show("live", "Connected", "The agent is getting ready …");
    this.#play(voice);
  }

  #follow(event: CallEvent): void {
    if (event.kind === "connected") this.#begin(event.voice);
    const at = this.#recorder?.seconds() ?? 0;
    if (this.#state === "live" && event.kind !== "step") {
      this.#log.push({ seconds: Number(at.toFixed(2)), ...event });
    }
    switch (event.kind) {
      case "opening":
        if (event.asking) {
          this.#show("busy", "Waiting for the microphone", "Allow it in the browser's question.");
        } else {
          this.#show("busy", "Connecting …", "");
        }
        break;
      case "connected":
        if (event.over === "websocket" && this.#info.server === "talk") {
          this.#transcript.note("WebRTC is not available here: a WebSocket takes its place.", at);
        }
        break;
      case "ended":
        this.#finish(event);
        if (event.problem) this.#banner.show(event.reason, () => this.#toggle());
        break;
      case "problem":
        this.#banner.show(event.text);
        this.#showVoice(); // a new voice may be what has failed
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
    player.play().catch(() => this.#banner.show(NO_SOUND));
  }

  #personaInEffect(state: string, voice: string, prompt: string, at: number): void {
    [this.#inEffect, this.#voice] = [prompt, voice];
    this.settingsChanged();
    if (voice === this.#chosen) this.#showVoice();
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
    this.#showRecording();
    if (this.#state === "live") this.#clock.textContent = `\n${clock(now)}`;
  }

  // Steering.

  #onSubmit(name: string, action: (text: string) => Promise<boolean>): void {
    const input = byId<HTMLInputElement>(name);
    on(`${name}-form`, "submit", async (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text) return;
      input.value = ""; // at once: a second press must not send it again
      if (!(await action(text))) input.value ||= text;
    });
  }

  // Whether the call has done it and goes on.
  async #steer(action: (call: Call) => Promise<void>, done = ""): Promise<boolean> {
    const call = this.#attempt?.call;
    if (!call) {
      this.#note("Only during a call");
      return false;
    }
    const goesOn = () => call === this.#attempt?.call;
    try {
      await action(call);
      if (done && goesOn()) this.#note(done);
      return goesOn();
    } catch (error) {
      if (goesOn()) this.#banner.show((error as Error).message);
      return false;
    }
  }

  // The note comes first: the change may be in effect, and noted, before its request is answered.
  #change(change: { text?: string; voice?: string }, doing: string): Promise<boolean> {
    this.#note(doing);
    return this.#steer((call) => call.prompt(change));
  }

  // The gallery shows the voice of the running call again, after another one was refused.
  #showVoice(): void {
    if (this.#state !== "live" || this.#voices.voice === this.#voice) return;
    this.#voices.voice = this.#voice;
    this.#persona.update();
  }

  async #addFacts(text: string): Promise<boolean> {
    const before = this.#persona.prompt;
    this.#persona.prompt = this.#persona.withFacts(text);
    const changed = this.#persona.prompt;
    const applied = await this.#applyPrompt();
    if (!applied && this.#persona.prompt === changed) this.#persona.prompt = before;
    return applied;
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
    return this.#change({ text }, "Changing the role");
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

  #showMute(muted: boolean): void {
    byId("mute").setAttribute("aria-pressed", String(muted));
    byId("mute").textContent = muted ? "Muted" : "Mute";
  }

  // States.

  #show(state: State, status: string, hint: string): void {
    this.#state = state;
    const talk = byId<HTMLButtonElement>("talk");
    talk.disabled = false;
    talk.dataset.state = state;
    this.#clock.textContent = "";
    talk.replaceChildren({ idle: "Talk", busy: "Cancel", live: "Hang up" }[state], this.#clock);
    byId("status").textContent = status;
    byId("hint").textContent = hint;
    byId<HTMLButtonElement>("mute").disabled = state !== "live";
    this.settingsChanged();
  }

  #finish({ reason, problem }: { reason: string; problem: boolean }): void {
    const talked = this.#state === "live";
    this.#attempt = undefined;
    if (this.#holding) this.#endHold();
    byId<HTMLAudioElement>("agent").srcObject = null;
    this.#showMute(false);
    byId("level-caller").style.transform = "scaleX(0)";
    byId("talk").style.setProperty("--voice", "0");
    if (talked) this.#showRecording();
    const recorded = talked ? (this.#recorder?.recorded ?? 0) : 0;
    const status = talked ? "The call is over" : "Not connected";
    const hint = recorded >= 1 ? `${clock(recorded)} recorded in this tab.` : "";
    this.#show("idle", problem ? status : reason, hint);
  }

  #showRecording(): void {
    const recorded = this.#recorder?.recorded ?? 0;
    byId("recorded").textContent = recorded ? `${clock(recorded)} in this tab` : "Not recorded";
    byId<HTMLButtonElement>("wav").disabled = recorded === 0;
    byId<HTMLButtonElement>("json").disabled = this.#log.length === 0;
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
      request: this.#asked,
      response_times: this.#meter.responses.map(rounded),
      transcript: this.#transcript.lines,
      events: this.#log,
    };
    save(new Blob([JSON.stringify(report, null, 1)]), this.#started, "json");
  }
}
