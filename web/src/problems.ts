// Words for what may be in the way of a call.

export const GONE = "The bot is gone: its program was stopped, or the network is down.";
export const ENDED = "The bot ended the call.";
export const OVER = "The call is over.";
export const UNKNOWN_KEY = "The server does not know the key, or a firewall is in the way.";
export const NOT_CONNECTED =
  "The server refused the connection: it has too many, or a firewall or a proxy is in the way.";
export const UNPLUGGED = "The microphone was disconnected. Choose another one.";
export const BLOCKED_HINT = "WebRTC does not get through. Trying a WebSocket …";
export const BLOCKED =
  "The page reached the bot, but no sound gets through: a firewall, a VPN or a proxy blocks WebRTC " +
  "and WebSockets. Allow one of them, or open the page on the machine that runs the bot.";

// Why a connection broke without a word: the given reason, or the bot is gone if it does not answer.
export async function whyBroken(reason: string): Promise<string> {
  try {
    await fetch("api/info", { signal: AbortSignal.timeout(1000), cache: "no-store" });
    return reason;
  } catch {
    return GONE;
  }
}

// What the bot says when it refuses a call.
export function refusal(detail: string): string {
  return /sessions are taken/.test(detail)
    ? "Every slot is taken by other calls. Try again in a moment."
    : detail;
}
