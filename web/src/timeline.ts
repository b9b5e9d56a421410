// The last seconds of a call on a canvas: two lanes of sound, with words and events.
import { type Levels, PIECE_SECONDS } from "./recorder";

const SECONDS = 16;
const PIECES = SECONDS / PIECE_SECONDS;

export type MarkKind = "word" | "caller" | "late" | "tool" | "say" | "event";

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
}

export class Timeline {
  private levels: Levels[] = [];
  private marks: Mark[] = [];
  private spans: Span[] = [];
  private now = 0;
  private frame = 0;

  constructor(private canvas: HTMLCanvasElement) {
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear(): void {
    [this.levels, this.marks, this.spans, this.now] = [[], [], [], 0];
    this.draw();
  }

  push(levels: Levels, now: number): void {
    this.levels.push(levels);
    if (this.levels.length > PIECES) this.levels.shift();
    this.now = now;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  mark(kind: MarkKind, text = ""): void {
    this.marks.push({ at: this.now, kind, text });
    this.marks = this.marks.filter((mark) => mark.at > this.now - SECONDS);
  }

  span(kind: Span["kind"], text = "", from = this.now, to = Infinity): void {
    this.spans.push({ from, to, kind, text });
    this.spans = this.spans.filter((span) => span.to > this.now - SECONDS);
  }

  // Ends the open spans of a kind now.
  close(kind: Span["kind"]): void {
    for (const span of this.spans) {
      if (span.kind === kind && span.to > this.now) span.to = this.now;
    }
  }

  draw(): void {
    this.frame = 0;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = devicePixelRatio;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    if (!pen) return;
    pen.scale(scale, scale);
    const style = getComputedStyle(this.canvas);
    const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
    const x = (at: number) => width - ((this.now - at) / SECONDS) * width;
    pen.font = `12px ${style.fontFamily}`;
    this.grid(pen, width, height, x, colour("line"), colour("quiet"));
    this.drawSpans(pen, height, x, colour);
    this.drawLane(pen, "caller", width, height * 0.27, height * 0.19, colour("caller"));
    this.drawLane(pen, "agent", width, height * 0.71, height * 0.17, colour("agent"));
    this.drawMarks(pen, height, x, colour);
  }

  private grid(
    pen: CanvasRenderingContext2D,
    width: number,
    height: number,
    x: (at: number) => number,
    line: string,
    quiet: string,
  ): void {
    pen.fillStyle = line;
    for (let at = Math.ceil(this.now - SECONDS); at <= this.now; at++) {
      if (at % 2 === 0 && at >= 0) pen.fillRect(x(at), 0, 1, height);
    }
    pen.fillRect(0, height / 2, width, 1);
    pen.fillStyle = quiet;
    pen.fillText("you", 8, 16);
    pen.fillText("agent", 8, height / 2 + 16);
  }

  private drawLane(
    pen: CanvasRenderingContext2D,
    voice: keyof Levels,
    width: number,
    middle: number,
    half: number,
    colour: string,
  ): void {
    pen.fillStyle = colour;
    const step = width / PIECES;
    const start = width - this.levels.length * step;
    this.levels.forEach((levels, i) => {
      // Decibels, from -54 to -10 dBFS.
      const decibels = 20 * Math.log10(levels[voice] + 1e-6);
      const part = Math.max(0, Math.min(1, (decibels + 54) / 44));
      const tall = Math.max(0.75, part * half);
      pen.fillRect(start + i * step, middle - tall, Math.max(0.75, step - 0.25), 2 * tall);
    });
  }

  private drawSpans(
    pen: CanvasRenderingContext2D,
    height: number,
    x: (at: number) => number,
    colour: (name: string) => string,
  ): void {
    for (const { from, to, kind, text } of this.spans) {
      const [left, right] = [x(from), x(Math.min(to, this.now))];
      if (kind === "response") {
        pen.fillStyle = colour("accent");
        pen.fillRect(left, height / 2 - 1, Math.max(2, right - left), 3);
        pen.fillText(text, right + 4, height / 2 - 5);
        continue;
      }
      pen.globalAlpha = 0.16;
      pen.fillStyle = colour(kind === "held" ? "warn" : "accent");
      pen.fillRect(left, height / 2 + 1, Math.max(2, right - left), height / 2);
      pen.globalAlpha = 1;
      pen.fillStyle = colour("quiet");
      pen.fillText(text, Math.max(left + 4, 48), height / 2 + 16);
    }
  }

  private drawMarks(
    pen: CanvasRenderingContext2D,
    height: number,
    x: (at: number) => number,
    colour: (name: string) => string,
  ): void {
    let free = -Infinity; // where the last word has ended, so that words do not overlap
    for (const { at, kind, text } of this.marks) {
      const left = x(at);
      if (kind === "word") {
        pen.fillStyle = colour("text");
        const from = Math.max(left, free);
        pen.fillText(text, from, height - 10);
        free = from + pen.measureText(`${text} `).width;
      } else if (kind === "caller") {
        pen.fillStyle = colour("text");
        pen.textAlign = "right";
        pen.fillText(text, left, 32);
        pen.textAlign = "left";
      } else if (kind === "late") {
        pen.fillStyle = colour("bad");
        pen.fillRect(left - 1, height - 6, 3, 6);
      } else {
        pen.fillStyle = colour("accent");
        pen.beginPath();
        pen.arc(left, height / 2, 3.5, 0, 7);
        pen.fill();
        pen.fillText(text, left + 7, height / 2 + 14);
      }
    }
  }
}
