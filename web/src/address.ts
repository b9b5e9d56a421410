// The page's settings in its address, so that a link or a reload brings them back.
import type { Info, Sampling } from "./events";

export interface Settings {
  voice: string;
  prompt: string;
  greeting: string;
  sampling: Sampling;
}

export function readAddress(info: Info): Settings {
  const given = new URLSearchParams(location.hash.slice(1));
  const sampling = { ...info.sampling };
  for (const name of Object.keys(sampling) as (keyof Sampling)[]) {
    const value = Number(given.get(name));
    if (given.has(name) && Number.isFinite(value)) sampling[name] = value;
  }
  const voice = given.get("voice") ?? info.voice;
  const known = info.voices.length === 0 || info.voices.includes(voice);
  return {
    voice: known ? voice : info.voice, // a server with keys names no voice without one
    prompt: given.get("prompt") ?? info.prompt,
    greeting: given.get("greeting") ?? info.greeting,
    sampling,
  };
}

// Writes what differs from the defaults.
export function writeAddress(info: Info, settings: Settings): void {
  const parameters = new URLSearchParams();
  for (const name of ["voice", "prompt", "greeting"] as const) {
    if (settings[name] !== info[name]) parameters.set(name, settings[name]);
  }
  for (const name of Object.keys(settings.sampling) as (keyof Sampling)[]) {
    const value = settings.sampling[name];
    if (value !== info.sampling[name]) parameters.set(name, String(value));
  }
  const hash = parameters.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}
