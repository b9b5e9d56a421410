// Who speaks when, by level; and from it the response times: caller's stop to agent's onset.
import { type Levels, PIECE_SECONDS } from "./recorder";

const AGENT_LEVEL = 0.008; // above the codec's silence, below quiet speech (-42 dBFS)
const CALLER_LEVEL = 0.004;
const CALLER_RATIO = 3; // above the quietest of the last two seconds
const FLOOR_PIECES = 100;
const GAP_SECONDS = 0.3; // a shorter pause does not end a turn
const LEAST_SPEECH_SECONDS = 0.16; // a click is not a turn
const LONGEST_SECONDS = 5; // after that, the agent speaks on its own account
const ECHO_PIECES = 250;

export interface Response {
  stop: number; // seconds of the call
  onset: number;
}

// As a report has it.
export function rounded({ stop, onset }: Response): Record<string, number> {
  const round = (seconds: number) => Number(seconds.toFixed(2));
  return { stop: round(stop), onset: round(onset), seconds: round(onset - stop) };
}

export class Meter {
  readonly responses: Response[] = [];
  #pieces = 0;
  #floor: number[] = [];
  callerStart = -1; // of the last speech
  #callerEnd = -1; // of the last piece with speech
  #answered = true;
  #agentEnd = -Infinity;
  #history: Levels[] = [];

  // Adds 20 ms; returns a response time once the agent begins to answer.
  push(levels: Levels): Response | undefined {
    const now = this.#pieces++ * PIECE_SECONDS;
    this.#history.push(levels);
    if (this.#history.length > ECHO_PIECES) this.#history.shift();
    this.#hearCaller(levels.caller, now);
    return this.#hearAgent(levels.agent, now);
  }

  get median(): number | undefined {
    const sorted = this.responses.map(({ stop, onset }) => onset - stop).sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : undefined;
  }

  // Whether the microphone seems to pick up the agent: levels that rise and fall together.
  get echo(): boolean {
    if (this.#history.length < ECHO_PIECES) return false;
    const loud = this.#history.filter(({ agent }) => agent > AGENT_LEVEL).length;
    if (loud < ECHO_PIECES / 4) return false;
    for (let lag = 0; lag <= 15; lag++) {
      const agent = this.#history.slice(0, ECHO_PIECES - lag).map((item) => item.agent);
      const caller = this.#history.slice(lag).map((item) => item.caller);
      if (Math.max(...caller) > CALLER_LEVEL && correlation(agent, caller) > 0.75) return true;
    }
    return false;
  }

  #hearCaller(level: number, now: number): void {
    this.#floor.push(level);
    if (this.#floor.length > FLOOR_PIECES) this.#floor.shift();
    const speech = level > Math.max(CALLER_LEVEL, CALLER_RATIO * Math.min(...this.#floor));
    if (speech) {
      if (now - this.#callerEnd > GAP_SECONDS || this.callerStart < 0) this.callerStart = now;
      this.#callerEnd = now + PIECE_SECONDS;
      if (this.#callerEnd - this.callerStart >= LEAST_SPEECH_SECONDS) this.#answered = false;
    }
  }

  #hearAgent(level: number, now: number): Response | undefined {
    const speech = level > AGENT_LEVEL;
    const onset = speech && now - this.#agentEnd > GAP_SECONDS;
    if (speech) this.#agentEnd = now + PIECE_SECONDS;
    if (!onset || this.#answered) return undefined;
    const waited = now - this.#callerEnd;
    // The agent may begin while the caller speaks: that is no answer.
    if (waited <= 0 || waited > LONGEST_SECONDS) return undefined;
    this.#answered = true;
    const response = { stop: this.#callerEnd, onset: now };
    this.responses.push(response);
    return response;
  }
}

function correlation(a: number[], b: number[]): number {
  const mean = (values: number[]) => values.reduce((sum, x) => sum + x, 0) / values.length;
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((x, i) => {
    ab += (x - ma) * (b[i] - mb);
    aa += (x - ma) ** 2;
    bb += (b[i] - mb) ** 2;
  });
  return aa && bb ? ab / Math.sqrt(aa * bb) : 0;
}
