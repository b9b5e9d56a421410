// Sliders of the sampling, which act in a running call.
import { byId, debounce, on } from "./dom";
import type { Sampling } from "./events";

const NAMES = ["temperature_audio", "temperature_text", "top_k_audio", "top_k_text"] as const;

export class SamplingPanel {
  #send = debounce(80, () => this.changed(this.values));

  constructor(
    private defaults: Sampling,
    start: Sampling,
    private changed: (values: Sampling) => void,
  ) {
    this.#write(start);
    for (const name of [...NAMES, "seed"]) on(name, "input", () => this.#update());
    on("sampling-reset", "click", () => {
      this.#write(this.defaults);
      this.#send();
    });
  }

  get values(): Sampling {
    const values = { ...this.defaults };
    for (const name of NAMES) values[name] = byId<HTMLInputElement>(name).valueAsNumber;
    const seed = Math.floor(byId<HTMLInputElement>("seed").valueAsNumber);
    values.seed = Number.isSafeInteger(seed) && seed >= 0 ? seed : this.defaults.seed;
    return values;
  }

  #write(values: Sampling): void {
    for (const name of [...NAMES, "seed"] as const) {
      byId<HTMLInputElement>(name).value = String(values[name]);
    }
    this.#label();
  }

  #update(): void {
    this.#label();
    this.#send();
  }

  #label(): void {
    for (const name of NAMES) {
      const { value } = byId<HTMLInputElement>(name);
      const greedy = name.startsWith("temperature") && Number(value) === 0;
      byId(`${name}-value`).textContent = greedy ? "0 (greedy)" : value;
    }
  }
}
