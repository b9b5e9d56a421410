// Words for what may be in the way of a call.
import { type Info, Problem } from "./events";

const DOUBT_MS = 1300; // with the second of whyBroken less than three

export const GONE = "The bot is gone: its program was stopped, or the network is down.";
export const ENDED = "The bot ended the call.";
export const OVER = "The call is over.";
export const NO_KEY = "Enter the key of this server first.";
export const WRONG_KEY = "The server does not know this key.";
export const UNKNOWN_KEY = "The server does not know the key, or a firewall is in the way.";
export const NOT_CONNECTED =
  "The server refused the connection: it has too many, or a firewall or a proxy is in the way.";
export const UNPLUGGED = "The microphone was disconnected. Choose another one.";
export const SPEAKER_LOST = "The speaker was disconnected. The system's is in use.";
export const NO_SOUND = "The browser has stopped the sound: click into the page.";
export const BLOCKED_HINT = "WebRTC does not get through. Trying a WebSocket …";
export const BLOCKED =
  "The page reached the bot, but no sound gets through: a firewall, a VPN or a proxy blocks WebRTC " +
  "and WebSockets. Allow one of them, or open the page on the machine that runs the bot.";

// What the bot tells about itself, and about this page: browsers send no Origin with this request.
export function askInfo(patience: number): Promise<Response> {
  return fetch("api/info", {
    signal: AbortSignal.timeout(patience),
    cache: "no-store",
    headers: { "X-Page-Origin": location.origin },
  });
}

// A proxy answers with 502, 503, 504 or a number above for a bot that is gone. The bot itself answers
// api/info with none of these, and other requests with JSON that gives a reason.
const isOfProxy = ({ status }: Response) => status > 501;

// Why a connection broke without a word: the bot is gone if it does not answer, or lets no page of
// this origin in; else the given reason.
export async function whyBroken(reason: string): Promise<string> {
  try {
    const response = await askInfo(1000);
    if (isOfProxy(response)) return GONE;
    const { refusal } = (await response.json().catch(() => ({}))) as Partial<Info>;
    return refusal || reason;
  } catch {
    return GONE;
  }
}

// Throws a Problem with the bot's words if it refuses a request.
export async function requireOk(response: Response): Promise<void> {
  if (response.ok) return;
  const content = (await response.json().catch(() => ({}))) as { detail?: string; message?: string };
  const otherwise = isOfProxy(response) ? GONE : `the bot answered ${response.status}`;
  throw new Problem(refusal(content.detail ?? content.message ?? otherwise));
}

// Rejects if the bot owes this answer for long, and is gone.
export function whenGone(answer: Promise<unknown>): Promise<never> {
  return new Promise((_, reject) => {
    const doubt = async () => {
      const why = await whyBroken("");
      if (why && waiting) reject(new Problem(why));
    };
    let waiting = setTimeout(() => void doubt(), DOUBT_MS);
    const settled = () => {
      clearTimeout(waiting);
      waiting = 0;
    };
    answer.then(settled, settled);
  });
}

// What the bot says when it refuses a call.
export function refusal(detail: string): string {
  return /sessions are taken/.test(detail)
    ? "Every slot is taken by other calls. Try again in a moment."
    : detail;
}
