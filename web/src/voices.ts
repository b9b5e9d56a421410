// The voice gallery: choose, listen to a preview, drop a recording to make a voice.
import { byId, detailOf, element } from "./dom";
import { Problem } from "./events";

export class VoiceGallery {
  #list = byId("voices");
  #player = new Audio();
  #names: string[] = [];

  constructor(
    private chosen: (voice: string) => void,
    private report: (text: string) => void,
  ) {
    const file = byId<HTMLInputElement>("voice-file");
    file.addEventListener("change", () => {
      for (const item of file.files ?? []) void this.#add(item);
      file.value = "";
    });
    const zone = byId("voice-drop");
    for (const name of ["dragover", "dragleave", "drop"]) {
      zone.addEventListener(name, (event) => {
        event.preventDefault();
        zone.classList.toggle("over", name === "dragover");
      });
    }
    zone.addEventListener("drop", (event) => {
      for (const item of (event as DragEvent).dataTransfer?.files ?? []) void this.#add(item);
    });
  }

  get voice(): string {
    return this.#list.querySelector<HTMLInputElement>("input:checked")?.value ?? "";
  }

  set voice(name: string) {
    const input = this.#list.querySelector<HTMLInputElement>(`input[value="${CSS.escape(name)}"]`);
    if (input) input.checked = true;
  }

  set(names: string[], voice: string): void {
    this.#names = names;
    this.#list.replaceChildren(...names.map((name) => this.#item(name)));
    this.voice = voice;
  }

  #item(name: string): HTMLElement {
    const input = element("input", { type: "radio", name: "voice", value: name });
    input.addEventListener("change", () => this.chosen(name));
    const play = element("button", { type: "button", className: "small", textContent: "▶" });
    play.setAttribute("aria-label", `Play a preview of ${name}`);
    play.addEventListener("click", () => void this.#preview(name, play));
    const label = element("label", {}, input, element("span", {}, name, hint(name)));
    return element("div", { className: "voice" }, label, play);
  }

  async #preview(name: string, button: HTMLElement): Promise<void> {
    button.classList.add("busy");
    try {
      const response = await fetch(`api/voices/${encodeURIComponent(name)}.wav`);
      if (!response.ok) throw new Problem(await detailOf(response));
      this.#player.src = URL.createObjectURL(await response.blob());
      await this.#player.play();
      button.dataset.played = "true";
    } catch (error) {
      this.report(`The preview of ${name} cannot be played: ${(error as Error).message}`);
    } finally {
      button.classList.remove("busy");
    }
  }

  async #add(file: File): Promise<void> {
    const name = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 32);
    const query = new URLSearchParams({ name, file: file.name });
    this.#list.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(`api/voices?${query}`, { method: "POST", body: file });
      if (!response.ok) throw new Problem(await detailOf(response));
      const { voices } = (await response.json()) as { voices: string[] };
      this.set(voices, name);
      this.chosen(name);
    } catch (error) {
      this.report(`${file.name} did not become a voice: ${(error as Error).message}`);
    } finally {
      this.#list.removeAttribute("aria-busy");
    }
  }

  has(name: string): boolean {
    return this.#names.includes(name);
  }
}

// What the names of NVIDIA's voices mean.
function hint(name: string): HTMLElement {
  const [, range, voice] = /^(NAT|VAR)([FM])\d$/.exec(name) ?? [];
  const text = range && `${range === "NAT" ? "natural" : "varied"}, ${voice === "F" ? "female" : "male"}`;
  return element("small", { textContent: text || "added" });
}
