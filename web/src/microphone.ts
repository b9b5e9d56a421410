// Opens the microphone, and explains each reason for which it cannot be opened.
import { type Info, Problem } from "./events";

const WORDS: Record<string, string> = {
  NotAllowedError:
    "The browser does not let this page use the microphone. Click the symbol beside the address, " +
    "allow the microphone, and try again.",
  NotFoundError: "No microphone was found. Connect one, and try again.",
  NotReadableError: "The microphone is in use by another program. Close it there, and try again.",
  OverconstrainedError: "The chosen microphone is not connected. Choose another one.",
};

const HTTPS: Record<Info["server"], string> = {
  talk: "start `personaplex talk --share-on-lan`, which serves https",
  serve: "give `personaplex serve` a certificate with `--ssl-certfile`, so that it serves https",
};

export async function openMicrophone(
  device: string,
  server: Info["server"],
): Promise<MediaStream> {
  if (!navigator.mediaDevices) {
    throw new Problem(
      "Browsers give the microphone to https pages and to localhost alone. Open the page as " +
        `http://localhost, or ${HTTPS[server]}.`,
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: {
        deviceId: device ? { exact: device } : undefined,
        echoCancellation: true,
        noiseSuppression: true,
        autoGainControl: true,
        channelCount: 1,
      },
    });
  } catch (error) {
    const { name, message } = error as DOMException;
    throw new Problem(WORDS[name] ?? `The microphone cannot be opened: ${message || name}.`);
  }
}
