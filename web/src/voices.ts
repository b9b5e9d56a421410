// The voice gallery: choose, listen to a preview, drop a recording to make a voice.
import { byId, element, on } from "./dom";
import { requireOk } from "./problems";

export class VoiceGallery {
  #list = byId("voices");
  #player = new Audio();
  #wanted = "";

  constructor(
    private chosen: (voice: string) => void,
    private report: (text: string) => void,
  ) {
    const file = byId<HTMLInputElement>("voice-file");
    on(file, "change", () => {
      for (const item of file.files ?? []) void this.#add(item);
      file.value = "";
    });
    const zone = byId("voice-drop");
    for (const name of ["dragover", "dragleave", "drop"]) {
      on(zone, name, (event) => {
        event.preventDefault();
        zone.classList.toggle("over", name === "dragover");
      });
    }
    on(zone, "drop", (event) => {
      for (const item of (event as DragEvent).dataTransfer?.files ?? []) void this.#add(item);
    });
  }

  // The checked voice. While the list is empty, the voice that set() will check.
  get voice(): string {
    return this.#list.querySelector<HTMLInputElement>("input:checked")?.value ?? this.#wanted;
  }

  set voice(name: string) {
    for (const input of this.#list.querySelectorAll("input")) input.checked = input.value === name;
  }

  set(names: string[], voice: string): void {
    this.#wanted = voice;
    this.#list.replaceChildren(...names.map((name) => this.#item(name, name === voice)));
  }

  #item(name: string, checked: boolean): HTMLElement {
    const input = element("input", { type: "radio", name: "voice", value: name, checked });
    on(input, "change", () => this.chosen(name));
    const play = element("button", { type: "button", className: "small", textContent: "▶" });
    play.setAttribute("aria-label", `Play a preview of ${name}`);
    on(play, "click", () => void this.#preview(name, play));
    const label = element("label", {}, input, element("span", {}, name, hint(name)));
    return element("div", { className: "voice" }, label, play);
  }

  async #preview(name: string, button: HTMLElement): Promise<void> {
    button.classList.add("busy");
    try {
      const response = await fetch(`api/voices/${encodeURIComponent(name)}.wav`);
      await requireOk(response);
      const sound = await response.blob();
      URL.revokeObjectURL(this.#player.src); // of the preview before
      this.#player.src = URL.createObjectURL(sound);
      await this.#player.play();
      button.dataset.played = "true";
    } catch (error) {
      this.report(`The preview of ${name} cannot be played: ${(error as Error).message}`);
    } finally {
      button.classList.remove("busy");
    }
  }

  async #add(file: File): Promise<void> {
    const name = nameOf(file);
    const query = new URLSearchParams({ name, file: file.name });
    this.#list.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(`api/voices?${query}`, { method: "POST", body: file });
      await requireOk(response);
      const { voices } = (await response.json()) as { voices: string[] };
      this.set(voices, name);
      this.chosen(name);
    } catch (error) {
      this.report(`${file.name} did not become a voice: ${(error as Error).message}`);
    } finally {
      this.#list.removeAttribute("aria-busy");
    }
  }
}

// A name that the bot accepts: it begins with a letter or a digit.
function nameOf(file: File): string {
  const stem = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-");
  return stem.replace(/^[-_]+/, "").slice(0, 32).replace(/-+$/, "") || "voice";
}

// What the names of NVIDIA's voices mean.
function hint(name: string): HTMLElement {
  const [, range, voice] = /^(NAT|VAR)([FM])\d$/.exec(name) ?? [];
  const text = range && `${range === "NAT" ? "natural" : "varied"}, ${voice === "F" ? "female" : "male"}`;
  return element("small", { textContent: text || "added" });
}
