// RTVI, Pipecat's messages over a data channel: the part of it that this page needs.
import { type CallEvent, type Listener, Problem, type Sampling } from "./events";
import type { Order } from "./order";
import { OVER } from "./problems";

const LABEL = "rtvi-ai";
const VERSION = "2.2.0";
const ANSWER_MS = 8000;

interface Message {
  label: string;
  type: string;
  id?: string;
  data?: Record<string, unknown>;
}

interface Waiting {
  resolve: () => void;
  reject: (problem: Problem) => void;
  timer: number;
}

export class Rtvi {
  #waiting = new Map<string, Waiting>();
  #count = 0;

  constructor(
    private channel: RTCDataChannel | WebSocket,
    private listener: Listener,
  ) {}

  ready(): void {
    const about = { library: "personaplex-page", library_version: "1", platform: "web" };
    this.#send("client-ready", { version: VERSION, about });
  }

  // Sends a client message; resolves once the bot has carried it out.
  request(type: string, data: unknown): Promise<void> {
    return new Promise((resolve, reject) => {
      const { readyState } = this.channel;
      if (readyState !== "open" && readyState !== WebSocket.OPEN) {
        return reject(new Problem(OVER));
      }
      const id = this.#send("client-message", { t: type, d: data });
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new Problem("The bot did not answer."));
      }, ANSWER_MS);
      this.#waiting.set(id, { resolve, reject, timer });
    });
  }

  #send(type: string, data: unknown): string {
    const id = String(++this.#count);
    this.channel.send(JSON.stringify({ label: LABEL, type, id, data }));
    return id;
  }

  receive(text: string): void {
    const message = JSON.parse(text) as Message;
    if (message.label !== LABEL) return;
    const data = message.data ?? {};
    if (message.type === "server-response") return this.#settle(message.id);
    if (message.type === "error-response") return this.#settle(message.id, String(data.error));
    for (const event of eventsOf(message.type, data)) this.listener(event);
  }

  // Rejects the requests that still wait: no answer will come.
  close(): void {
    for (const id of [...this.#waiting.keys()]) this.#settle(id, OVER);
  }

  #settle(id: string | undefined, error?: string): void {
    const waiting = this.#waiting.get(id ?? "");
    if (!waiting) return;
    this.#waiting.delete(id ?? "");
    clearTimeout(waiting.timer);
    if (error === undefined) waiting.resolve();
    else waiting.reject(new Problem(error));
  }
}

// Steering by RTVI messages.
export abstract class RtviCall {
  protected abstract rtvi: Rtvi;

  say = (text: string) => this.rtvi.request("say", { text });
  hush = () => this.rtvi.request("hush", {});
  hold = (seconds: number) => this.rtvi.request("hold", { seconds });
  release = () => this.rtvi.request("release", {});
  prompt = (change: { text?: string; voice?: string }) => this.rtvi.request("prompt", change);
  sample = (sampling: Sampling) => this.rtvi.request("sampling", sampling);
}

function eventsOf(type: string, data: Record<string, unknown>): CallEvent[] {
  switch (type) {
    case "bot-output":
      // Each word is a segment of its own, sent when its sound is about to be played.
      if (data.will_be_spoken && data.spoken_status !== "completed") return [];
      return [{ kind: "word", text: String(data.text) }];
    case "bot-tts-stopped": // no word for 0.8 s
      return [{ kind: "turn", speaking: false }];
    case "user-input":
      return [{ kind: "caller", text: String(data.text), final: data.final !== false }];
    case "metrics":
      return stepsOf(data);
    case "error":
      return [{ kind: "problem", text: String(data.error ?? data.message) }];
    case "llm-function-call-in-progress":
      return [toolOf("started", data, data.arguments)];
    case "llm-function-call-stopped":
      return [toolOf("stopped", data, data.cancelled ? "cancelled" : data.result)];
    case "server-message":
      return data.kind === "tick" ? [] : [serverEvent(data)]; // a tick says that the bot is alive
  }
  return [];
}

function serverEvent(data: Record<string, unknown>): CallEvent {
  if (data.type === "order") return { kind: "order", order: data.order as Order };
  const known = ["persona", "speech", "late"];
  return known.includes(String(data.kind)) ? (data as CallEvent) : { kind: "other", data };
}

function stepsOf(data: Record<string, unknown>): CallEvent[] {
  const processing = (data.processing ?? []) as { value: number; frames?: number }[];
  const steps = processing.filter((item) => item.frames !== undefined);
  return steps.map((item) => ({ kind: "step", ms: item.value * 1000 }));
}

function toolOf(
  phase: "started" | "stopped",
  data: Record<string, unknown>,
  detail: unknown,
): CallEvent {
  const name = String(data.function_name ?? "a tool");
  return { kind: "tool", phase, id: String(data.tool_call_id), name, detail: plain(detail) };
}

// Arguments or a result, without the signs of JSON where that is possible.
function plain(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (typeof value !== "object") return String(value);
  return Object.entries(value)
    .map(([name, part]) => `${name}: ${plain(part)}`)
    .join(", ");
}
