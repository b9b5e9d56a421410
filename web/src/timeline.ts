// The last seconds of a call on a canvas: two lanes of sound, with words and events.
import { type Levels, PIECE_SECONDS } from "./recorder";

const SECONDS = 16;
const NARROW = 520; // px; a telephone shows half as much, so that words fit
const PIECES = SECONDS / PIECE_SECONDS;

// Rows from top to bottom, in px: words, sound, response times, tools, sound, words, late frames.
const CALLER = { words: 14, middle: 50, half: 30 };
const BETWEEN = 92;
const TOOLS = { top: 97, tall: 16 };
const AGENT = { top: 115, middle: 147, half: 28, words: 192, bottom: 197 };
const LATE = { top: 199, tall: 6 };

export type MarkKind = "word" | "caller" | "late" | "event";

interface Mark {
  at: number;
  kind: MarkKind;
  text: string;
}

interface Span {
  from: number;
  to: number; // Infinity while it lasts
  kind: "held" | "forced" | "response" | "tool";
  text: string;
  id: string; // of a tool call
}

export class Timeline {
  #levels: Levels[] = [];
  #marks: Mark[] = [];
  #spans: Span[] = [];
  #now = 0;
  #frame = 0;

  constructor(private canvas: HTMLCanvasElement) {
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear(): void {
    [this.#levels, this.#marks, this.#spans, this.#now] = [[], [], [], 0];
    this.draw();
  }

  push(levels: Levels, now: number): void {
    this.#levels.push(levels);
    if (this.#levels.length > PIECES) this.#levels.shift();
    this.#now = now;
  }

  // Draws with the next picture of the screen.
  show(): void {
    this.#frame ||= requestAnimationFrame(() => this.draw());
  }

  mark(kind: MarkKind, text = "", at = this.#now): void {
    this.#marks.push({ at, kind, text });
    this.#marks = this.#marks.filter((mark) => mark.at > this.#now - SECONDS);
  }

  span(kind: Span["kind"], text = "", id = "", from = this.#now, to = Infinity): void {
    this.#spans.push({ from, to, kind, text, id });
    this.#spans = this.#spans.filter((span) => span.to > this.#now - SECONDS);
  }

  // Ends the open spans of a kind now, or the one with this id.
  close(kind: Span["kind"], id = ""): void {
    for (const span of this.#spans) {
      if (span.kind === kind && span.id === id && span.to > this.#now) span.to = this.#now;
    }
  }

  draw(): void {
    this.#frame = 0;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = devicePixelRatio;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    if (!pen) return;
    pen.scale(scale, scale);
    const style = getComputedStyle(this.canvas);
    const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
    pen.font = `12px ${style.fontFamily}`;
    new Drawing(pen, colour, width, this.#now).draw(this.#levels, this.#spans, this.#marks);
  }
}

// One picture of the timeline.
class Drawing {
  #pen: CanvasRenderingContext2D;
  #colour: (name: string) => string;
  #width: number;
  #now: number;
  #seconds: number;

  constructor(
    pen: CanvasRenderingContext2D,
    colour: (name: string) => string,
    width: number,
    now: number,
  ) {
    [this.#pen, this.#colour, this.#width, this.#now] = [pen, colour, width, now];
    this.#seconds = width < NARROW ? SECONDS / 2 : SECONDS;
  }

  draw(levels: Levels[], spans: Span[], marks: Mark[]): void {
    this.#grid();
    for (const span of spans) this.#span(span);
    const shown = levels.slice(-this.#seconds / PIECE_SECONDS);
    this.#lane(shown.map(({ caller }) => caller), CALLER, this.#colour("caller"));
    this.#lane(shown.map(({ agent }) => agent), AGENT, this.#colour("agent"));
    this.#words(marks.filter(({ kind }) => kind === "caller"), CALLER.words);
    this.#words(marks.filter(({ kind }) => kind === "word"), AGENT.words);
    for (const mark of marks) this.#mark(mark);
    this.#label("you", CALLER.middle);
    this.#label("agent", AGENT.middle);
  }

  #x(at: number): number {
    return this.#width - ((this.#now - at) / this.#seconds) * this.#width;
  }

  #grid(): void {
    this.#pen.fillStyle = this.#colour("line");
    for (let at = Math.max(0, Math.ceil(this.#now - this.#seconds)); at <= this.#now; at++) {
      if (at % 2 === 0) this.#pen.fillRect(this.#x(at), 0, 1, LATE.top + LATE.tall);
    }
    this.#pen.fillRect(0, BETWEEN, this.#width, 1);
  }

  #label(text: string, middle: number): void {
    const wide = this.#pen.measureText(text).width;
    this.#pen.fillStyle = this.#colour("card");
    this.#pen.fillRect(0, middle - 9, wide + 6, 18);
    this.#pen.fillStyle = this.#colour("quiet");
    this.#pen.fillText(text, 0, middle + 4);
  }

  #lane(levels: number[], row: { middle: number; half: number }, colour: string): void {
    this.#pen.fillStyle = colour;
    const step = (this.#width * PIECE_SECONDS) / this.#seconds;
    const start = this.#width - levels.length * step;
    levels.forEach((level, i) => {
      // Decibels, from -54 to -10 dBFS.
      const decibels = 20 * Math.log10(level + 1e-6);
      const part = Math.max(0, Math.min(1, (decibels + 54) / 44));
      const tall = Math.max(0.75, part * row.half);
      this.#pen.fillRect(start + i * step, row.middle - tall, Math.max(0.75, step - 0.25), 2 * tall);
    });
  }

  #span({ from, to, kind, text }: Span): void {
    const pen = this.#pen;
    const [left, right] = [this.#x(from), this.#x(Math.min(to, this.#now))];
    const wide = Math.max(2, right - left);
    pen.fillStyle = this.#colour(kind === "held" ? "warn" : "accent");
    if (kind === "response") {
      pen.fillRect(left, BETWEEN - 1, wide, 3);
      pen.fillText(text, right + 4, BETWEEN - 4);
      return;
    }
    const [top, tall] = kind === "tool" ? [TOOLS.top, TOOLS.tall] : [AGENT.top, AGENT.bottom - AGENT.top];
    pen.globalAlpha = 0.18;
    pen.fillRect(left, top, wide, tall);
    pen.globalAlpha = 1;
    if (kind === "tool") pen.fillRect(left, top, 2, tall);
    // A name stays readable while its span leaves on the left.
    pen.fillStyle = this.#colour(kind === "tool" ? "text" : "quiet");
    if (right > 0) pen.fillText(text, Math.max(left, 0) + 6, top + 12);
  }

  // Words at their time, or after the one before, so that they do not overlap.
  #words(marks: Mark[], baseline: number): void {
    this.#pen.fillStyle = this.#colour("text");
    let free = -Infinity;
    for (const { at, text } of marks) {
      const from = Math.max(this.#x(at), free);
      this.#pen.fillText(text, from, baseline);
      free = from + this.#pen.measureText(`${text} `).width;
    }
  }

  #mark({ at, kind, text }: Mark): void {
    const pen = this.#pen;
    const left = this.#x(at);
    if (kind === "late") {
      pen.fillStyle = this.#colour("bad");
      pen.fillRect(left - 1, LATE.top, 3, LATE.tall);
    } else if (kind === "event") {
      pen.fillStyle = this.#colour("accent");
      pen.beginPath();
      pen.arc(left, BETWEEN, 3.5, 0, 7);
      pen.fill();
      pen.fillText(text, left + 7, BETWEEN - 4);
    }
  }
}
