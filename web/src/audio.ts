// An AudioContext for one of the page's worklets.
import { Problem } from "./events";
import { whenGone, whyBroken } from "./problems";

// Opened in a click, so that the browser lets the sound start.
export async function openContext(worklet: string): Promise<AudioContext> {
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    const loaded = context.audioWorklet.addModule(`static/${worklet}.js`).catch(async (error) => {
      throw new Problem(await whyBroken(`The call failed: ${error}`));
    });
    await Promise.race([loaded, whenGone(loaded)]);
    await context.resume();
    return context;
  } catch (error) {
    closeContext(context);
    throw error;
  }
}

export function closeContext(context: AudioContext): void {
  if (context.state !== "closed") void context.close();
}
