// What a call reports to the page, whichever way it is connected.
import type { Order } from "./order";

export interface Sampling {
  seed: number;
  temperature_audio: number;
  temperature_text: number;
  top_k_audio: number;
  top_k_text: number;
}

export interface CallRequest {
  voice: string;
  prompt: string;
  greeting: string;
  sampling: Sampling;
}

export interface Role {
  kind: Kind;
  prompt: string;
  questions: string[];
}

export type Kind = "assistant" | "service" | "casual";

// Answer of /api/info.
export interface Info {
  server: "talk" | "serve";
  version: string;
  state: "loading" | "ready" | "failed";
  failure: string;
  note: string;
  model: string;
  description: string;
  roles: Role[];
  voices: string[];
  voice: string;
  prompt: string;
  greeting: string;
  sampling: Sampling;
  slots: number;
  calls: number;
  transcribes: boolean;
  ice_servers: RTCIceServer[];
  key_required: boolean;
  refusal?: string; // why a server lets no page of this origin in, and what to do; empty if it does
}

export type CallEvent =
  | { kind: "opening"; asking: boolean } // asking: the browser asks the person for the microphone
  | { kind: "connected"; voice: MediaStream; over: "webrtc" | "websocket" }
  | { kind: "ended"; reason: string; problem: boolean } // problem: the call failed; false after a hang-up
  | { kind: "problem"; text: string } // the call goes on
  | { kind: "word"; text: string }
  | { kind: "turn"; speaking: boolean }
  | { kind: "caller"; text: string; final: boolean }
  | { kind: "persona"; state: "started" | "changed"; voice: string; prompt: string }
  | { kind: "speech"; state: "speaking" | "said" | "cut"; text: string; spoken?: number }
  | { kind: "late"; ms: number; frames: number }
  | { kind: "step"; ms: number }
  | { kind: "tool"; phase: "started" | "stopped"; id: string; name: string; detail: string }
  | { kind: "order"; order: Order }
  | { kind: "blocked" } // WebRTC does not get through; the call goes on in another way
  | { kind: "other"; data: unknown };

// A call, over WebRTC or over a WebSocket.
export interface Call {
  start(request: CallRequest): Promise<void>; // throws a Problem if the bot refuses the call
  say(text: string): Promise<void>;
  hush(): Promise<void>;
  hold(seconds: number): Promise<void>;
  release(): Promise<void>;
  prompt(change: { text?: string; voice?: string }): Promise<void>;
  sample(sampling: Sampling): Promise<void>;
  useMicrophone(microphone: MediaStream): Promise<void>;
  hangUp(): void; // closes everything that the call has opened, whatever its state; no event follows
}

export type Listener = (event: CallEvent) => void;

// An error whose message is meant for the person in front of the page.
export class Problem extends Error {}
