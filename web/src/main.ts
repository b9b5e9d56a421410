// The page: loads what the bot offers, and connects the views with a call.
import { readAddress, writeAddress } from "./address";
import { byId, element, show } from "./dom";
import type { Info } from "./events";
import { Banner, followKeys, followTheme } from "./look";
import { PersonaEditor } from "./persona";
import { GONE } from "./problems";
import { SamplingPanel } from "./sampling";
import { Stage } from "./stage";
import { VoiceGallery } from "./voices";

const POLL_MS = 1000;

const banner = new Banner();
followTheme();
void begin();

async function begin(): Promise<void> {
  const status = byId("status");
  for (;;) {
    const info = await fetchInfo();
    if (info) {
      describe(info);
      if (info.state === "ready") return run(info);
      if (info.state === "failed") {
        status.textContent = "The model cannot be loaded";
        return banner.show(info.failure);
      }
      status.textContent = `Loading ${info.model} …`;
      banner.clear();
    } else {
      banner.show(GONE);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function fetchInfo(): Promise<Info | undefined> {
  try {
    const response = await fetch("api/info", { signal: AbortSignal.timeout(2500) });
    return response.ok ? ((await response.json()) as Info) : undefined;
  } catch {
    return undefined;
  }
}

function describe(info: Info): void {
  byId("model").textContent = info.model;
  byId("description").textContent = info.description;
  byId("note").textContent = info.note;
  show(byId("note"), info.note !== "");
  show(byId("hears"), !info.transcribes);
  // What `personaplex serve` does not offer: prompt sizes, previews and new voices.
  document.documentElement.dataset.server = info.server;
  show(byId("key-card"), info.key_required);
}

function run(info: Info): void {
  banner.clear();
  const settings = readAddress(info);
  const key = byId<HTMLInputElement>("key");
  key.value = sessionStorage.getItem("key") ?? "";
  const listVoices = async () => {
    sessionStorage.setItem("key", key.value.trim());
    const headers = { Authorization: `Bearer ${key.value.trim()}` };
    const response = await fetch("v1/voices", { headers });
    if (!response.ok) return banner.show("The server does not know this key.");
    const { voices: names } = (await response.json()) as { voices: string[] };
    voices.set(names, names.includes(settings.voice) ? settings.voice : names[0]);
  };
  key.addEventListener("change", () => void listVoices());
  const greeting = byId<HTMLInputElement>("greeting");
  greeting.value = settings.greeting;
  const request = () => ({
    voice: voices.voice,
    prompt: persona.prompt,
    greeting: greeting.value.trim(),
    sampling: sampling.values,
  });
  const changed = () => {
    writeAddress(info, request());
    suggest(info, persona.prompt);
    stage.settingsChanged();
  };
  const sampling = new SamplingPanel(info.sampling, settings.sampling, (values) => {
    changed();
    stage.sample(values);
  });
  const voices = new VoiceGallery(
    (voice) => {
      persona.update();
      stage.changeVoice(voice);
    },
    (text) => banner.show(text),
  );
  voices.set(info.voices, settings.voice);
  const persona = new PersonaEditor(info, () => voices.voice, () => changed());
  const stage = new Stage(info, banner, request, persona);
  greeting.addEventListener("input", changed);
  persona.prompt = settings.prompt;
  if (info.key_required && key.value) void listVoices();
  followKeys({
    t: () => byId("talk").click(),
    m: () => byId("mute").click(),
    h: () => byId("hold").click(),
    "/": () => byId("say").focus(),
  });
}

// What one can ask the agent in the role that is written now.
function suggest(info: Info, prompt: string): void {
  const teacher = /teacher/i.test(prompt);
  const service = /^You work for/.test(prompt);
  const kind = teacher ? "assistant" : service ? "service" : "casual";
  const role = info.roles.find((role) => role.kind === kind);
  const questions = role?.questions ?? [];
  byId("questions").replaceChildren(
    ...questions.map((question) => element("li", { textContent: question })),
  );
  show(byId("questions").previousElementSibling as HTMLElement, questions.length > 0);
}
