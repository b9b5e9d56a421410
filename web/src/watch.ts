// Notices that nothing comes over a WebSocket any more, and finds out why.
import { now } from "./dom";
import { BLOCKED, GONE, whyBroken } from "./problems";

const CHECK_MS = 300;
export const SILENT_MS = 1500; // the other side sends at least once a second

export class Watch {
  #heardAt = now();
  #asked = false; // since something was heard
  #timer = setInterval(() => {
    if (now() - this.#heardAt > this.patience) void this.#ask();
  }, CHECK_MS);

  constructor(
    private ended: (reason: string) => void,
    public patience = SILENT_MS,
    private paused = () => false, // whether the other side waits for this page
  ) {}

  heard(): void {
    this.#heardAt = now();
    this.#asked = false;
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#asked = false;
  }

  // If the server answers, it has as much time again: a page that was paused reads only now what
  // has come.
  async #ask(): Promise<void> {
    const again = this.#asked;
    this.#asked = true;
    this.#heardAt = now(); // one question at a time
    const why = await whyBroken(BLOCKED);
    if (!this.#asked) return;
    if (this.paused()) this.#asked = false;
    if (why === GONE || (again && this.#asked)) this.ended(why);
  }
}
