// The menus of microphones and loudspeakers.
import { byId, on, show } from "./dom";
import { SPEAKER_LOST } from "./problems";

const MENUS = { microphone: "audioinput", speaker: "audiooutput" } as const;
type Player = HTMLAudioElement & { setSinkId(id: string): Promise<void> };

export class DeviceMenus {
  constructor(private report: (text: string) => void) {
    on("speaker", "change", () => void this.#changeSpeaker());
    navigator.mediaDevices?.addEventListener("devicechange", () => void this.list());
  }

  // Id of the chosen microphone; empty for the system's.
  get microphone(): string {
    return byId<HTMLSelectElement>("microphone").value;
  }

  // Browsers name the devices only once the microphone was allowed.
  async list(): Promise<void> {
    const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    for (const [id, kind] of Object.entries(MENUS)) {
      const select = byId<HTMLSelectElement>(id);
      const { value } = select;
      const found = all.filter((device) => device.kind === kind && device.deviceId);
      const options = found.map(({ deviceId, label }) => new Option(label || "Device", deviceId));
      select.replaceChildren(new Option("System default", ""), ...options);
      select.value = found.some((device) => device.deviceId === value) ? value : "";
      if (id === "speaker" && select.value !== value) {
        this.report(SPEAKER_LOST);
        void this.#changeSpeaker(); // the menu reports no change, and the player keeps the lost one
      }
    }
    show(byId("speaker-label"), "setSinkId" in HTMLMediaElement.prototype);
  }

  async #changeSpeaker(): Promise<void> {
    const id = byId<HTMLSelectElement>("speaker").value;
    await byId<Player>("agent").setSinkId(id).catch(() => {
      this.report("This speaker cannot be used. Choose another one.");
    });
  }
}
