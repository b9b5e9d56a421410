// The role of the agent: NVIDIA's three kinds of prompts, and how much of the window they take.
import { byId, debounce, on, post, show } from "./dom";
import type { Info, Kind } from "./events";

const CASUAL = "You enjoy having a good conversation.";
const SERVICE = /^You work for (.+?) which is an? (.+?) and your name is (.+?)\.(?: Information: ([^]*))?$/;
const FRAME_SECONDS = 0.08;

interface Size {
  text: number;
  voice: number;
  frames: number;
  limit: number;
  window: number;
}

export class PersonaEditor {
  #text = byId<HTMLTextAreaElement>("prompt");
  #fields = ["company", "business", "name", "information", "topic"].map((id) =>
    byId<HTMLInputElement>(id),
  );
  #kinds = [...document.querySelectorAll<HTMLInputElement>("input[name=kind]")];
  #measure = debounce(250, () => void this.#countTokens());

  constructor(
    private info: Info,
    private voice: () => string,
    private changed: () => void,
  ) {
    for (const field of this.#fields) on(field, "input", () => this.#compose());
    for (const kind of this.#kinds) on(kind, "change", () => this.#choose());
    on(this.#text, "input", () => {
      this.#recognise();
      this.update();
    });
  }

  get prompt(): string {
    return this.#text.value.trim();
  }

  set prompt(text: string) {
    this.#text.value = text;
    this.#recognise();
    this.update();
  }

  // The prompt with more facts in it, in the place where the model expects them.
  withFacts(facts: string): string {
    const text = this.prompt;
    const full = /[.!?]$/.test(facts.trim()) ? facts.trim() : `${facts.trim()}.`;
    return /Information:/.test(text) ? `${text} ${full}` : `${text} Information: ${full}`.trim();
  }

  update(): void {
    this.#measure();
    this.changed();
  }

  get #kind(): Kind | undefined {
    return this.#kinds.find((kind) => kind.checked)?.value as Kind | undefined;
  }

  #choose(): void {
    const known = this.info.roles.find((role) => role.kind === this.#kind)?.prompt ?? CASUAL;
    this.prompt = known;
  }

  // Writes the prompt from the fields of its kind.
  #compose(): void {
    const [company, business, name, information, topic] = this.#fields.map((f) => f.value.trim());
    if (this.#kind === "service") {
      const article = /^[aeiou]/i.test(business) ? "an" : "a";
      const facts = information ? ` Information: ${information}` : "";
      this.#text.value = `You work for ${company} which is ${article} ${business} and your name is ${name}.${facts}`;
    } else if (this.#kind === "casual") {
      this.#text.value = topic ? `${CASUAL} ${topic}` : CASUAL;
    }
    this.update();
  }

  // Finds the kind of a prompt, and fills the fields of that kind.
  #recognise(): void {
    const service = SERVICE.exec(this.prompt);
    const casual = this.prompt.startsWith(CASUAL);
    const assistant = /wise and friendly teacher/.test(this.prompt);
    const kind = service ? "service" : casual ? "casual" : assistant ? "assistant" : "";
    for (const input of this.#kinds) input.checked = input.value === kind;
    if (service) service.slice(1, 5).forEach((part, i) => (this.#fields[i].value = part ?? ""));
    if (casual) this.#fields[4].value = this.prompt.slice(CASUAL.length).trim();
    show(byId("service-fields"), kind === "service");
    show(byId("casual-fields"), kind === "casual");
    show(byId("other-kind"), kind === "" && this.prompt !== "");
  }

  async #countTokens(): Promise<void> {
    if (this.info.server !== "talk") return;
    const count = byId("tokens");
    const bar = byId("tokens-bar");
    const response = await post("api/prompt", { voice: this.voice(), prompt: this.prompt }).catch(
      () => undefined,
    );
    if (!response?.ok) return;
    const size = (await response.json()) as Size;
    const over = size.frames > size.limit;
    const minutes = ((size.window - size.frames) * FRAME_SECONDS) / 60;
    const remembered = minutes > 0 ? `${minutes.toFixed(1)} minutes` : "nothing";
    count.textContent = over
      ? `${size.text} tokens: ${size.frames - size.limit} too many`
      : `${size.text} tokens, and ${size.frames - size.text} for the voice, of ${size.limit}; ` +
        `the agent remembers ${remembered} of the call word for word`;
    count.classList.toggle("bad", over);
    bar.style.width = `${Math.min(100, (100 * size.frames) / size.limit)}%`;
    bar.classList.toggle("bad", over);
  }
}
