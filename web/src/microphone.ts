// Opens the microphone, and explains each reason for which it cannot be opened.
import { Problem } from "./events";

const WORDS: Record<string, string> = {
  NotAllowedError:
    "The browser does not let this page use the microphone. Click the symbol beside the address, " +
    "allow the microphone, and try again.",
  NotFoundError: "No microphone was found. Connect one, and try again.",
  NotReadableError: "The microphone is in use by another program. Close it there, and try again.",
  OverconstrainedError: "The chosen microphone is not connected. Choose another one.",
};

export async function openMicrophone(device: string): Promise<MediaStream> {
  if (!navigator.mediaDevices) {
    throw new Problem(
      "Browsers give the microphone to https pages and to localhost alone. Open the page as " +
        "http://localhost, or start `personaplex talk --share-on-lan`, which serves https.",
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
