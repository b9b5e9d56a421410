// The conversation as text, one bubble for each turn.
import { element } from "./dom";

export type Side = "caller" | "agent" | "note";

export interface Line {
  side: Side;
  seconds: number;
  text: string;
}

export class Transcript {
  readonly lines: Line[] = [];
  private bubble: HTMLElement | undefined;
  private side: Side | undefined;

  constructor(private list: HTMLElement) {}

  clear(): void {
    this.lines.length = 0;
    this.bubble = this.side = undefined;
    this.list.replaceChildren();
  }

  // Adds words of the agent to its turn, or begins one.
  word(text: string, seconds: number): void {
    const line = this.lines.at(-1);
    if (this.side === "agent" && line && this.bubble) {
      // A word may come with its space; punctuation comes with its word.
      line.text += ` ${text.trim()}`;
      this.bubble.textContent = line.text;
    } else {
      this.add("agent", text.trim(), seconds);
    }
    this.scroll();
  }

  // The next word of the agent begins another turn.
  endTurn(): void {
    if (this.side === "agent") this.side = undefined;
  }

  // Sets what the caller is saying; final once it does not change any more.
  caller(text: string, final: boolean, seconds: number): void {
    const line = this.lines.at(-1);
    if (this.side === "caller" && line && this.bubble) {
      line.text = text;
      this.bubble.textContent = text;
    } else {
      this.add("caller", text, seconds);
    }
    if (final) this.side = undefined;
    this.scroll();
  }

  note(text: string, seconds: number): void {
    this.add("note", text, seconds);
    this.scroll();
  }

  private add(side: Side, text: string, seconds: number): void {
    this.lines.push({ side, seconds, text });
    this.bubble = element("span", { textContent: text });
    const who = side === "caller" ? "You" : side === "agent" ? "Agent" : "";
    const item = element("li", { className: side });
    if (who) item.append(element("b", { textContent: who }));
    item.append(this.bubble);
    this.list.append(item);
    this.side = side;
  }

  private scroll(): void {
    this.list.scrollTop = this.list.scrollHeight;
  }
}
