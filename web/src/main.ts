// The page: loads what the bot offers, and connects the views with a call.
import { readAddress, writeAddress } from "./address";
import { readKey } from "./connect";
import { byId, element, keep, on, recall, show } from "./dom";
import { type Info, Problem } from "./events";
import { Banner, followKeys, followTheme } from "./look";
import { PersonaEditor } from "./persona";
import { askInfo, GONE, requireOk, WRONG_KEY } from "./problems";
import { SamplingPanel } from "./sampling";
import { Stage } from "./stage";
import { VoiceGallery } from "./voices";

const POLL_MS = 1000;
const PATIENCE_MS = 2500;

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
    const response = await askInfo(PATIENCE_MS);
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
  // What `personaplex serve` does not offer: prompt sizes, previews, new voices and transcripts.
  document.documentElement.dataset.server = info.server;
  show(byId("key-card"), info.key_required);
}

function run(info: Info): void {
  banner.clear();
  if (info.refusal) banner.show(info.refusal);
  const settings = readAddress(info);
  const key = byId<HTMLInputElement>("key");
  key.value = recall("sessionStorage", "key") ?? "";
  const useKey = async () => {
    keep("sessionStorage", "key", key.value.trim());
    banner.clear();
    try {
      Object.assign(info, await listVoices(readKey(info)));
    } catch (error) {
      return banner.show(error instanceof Problem ? error.message : GONE);
    }
    voices.set(info.voices, info.voices.includes(voices.voice) ? voices.voice : info.voice);
    changed();
  };
  on(key, "change", () => void useKey());
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
      void stage.changeVoice(voice);
    },
    (text) => banner.show(text),
  );
  voices.set(info.voices, settings.voice);
  const persona = new PersonaEditor(info, () => voices.voice, () => changed());
  const stage = new Stage(info, banner, request, persona, voices);
  on(greeting, "input", changed);
  persona.prompt = settings.prompt;
  if (info.key_required && key.value) void useKey();
  followKeys({
    t: () => byId("talk").click(),
    m: () => byId("mute").click(),
    h: () => byId("hold").click(),
    "/": () => byId("say").focus(),
  });
}

// What a server that requires a key tells with it.
async function listVoices(key: string): Promise<Pick<Info, "voices" | "voice">> {
  const response = await fetch("v1/voices", { headers: { Authorization: `Bearer ${key}` } });
  if (response.status === 401) throw new Problem(WRONG_KEY);
  await requireOk(response);
  const { voices } = (await response.json()) as Pick<Info, "voices">;
  return { voices, voice: voices[0] ?? "" };
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
