// The conversation as text, one bubble for each turn.
import { element } from "./dom";
import { type Order, orderLines, orderTable } from "./order";

export type Side = "caller" | "agent" | "note" | "tool" | "order";

const TITLES: Partial<Record<Side, string>> = { caller: "You", agent: "Agent" };
const NEAR_PX = 40; // of the end

export interface Line {
  side: Side;
  seconds: number;
  text: string;
}

interface Entry {
  line: Line;
  item: HTMLElement;
  words: HTMLElement;
}

export class Transcript {
  readonly lines: Line[] = [];
  #items: HTMLElement[] = []; // of the lines
  #turn: Entry | undefined; // of the agent, while it lasts
  #heard: Entry | undefined; // of the caller, until it is final
  #tools = new Map<string, Entry>(); // running, by id
  #order: Entry | undefined;

  constructor(private list: HTMLElement) {}

  clear(): void {
    this.lines.length = this.#items.length = 0;
    this.#turn = this.#heard = this.#order = undefined;
    this.#tools.clear();
    this.list.replaceChildren();
  }

  // Adds words of the agent to its turn, or begins one.
  word(text: string, seconds: number): void {
    // A word may come with its space; punctuation comes with its word.
    if (this.#turn) this.#write(this.#turn, `${this.#turn.line.text} ${text.trim()}`);
    else this.#turn = this.#add("agent", text.trim(), seconds);
  }

  // The next word of the agent begins another turn.
  endTurn(): void {
    this.#turn = undefined;
  }

  // What the caller is saying; final once it does not change any more. It may be known only after
  // the answer has begun, and stands where it was spoken.
  caller(text: string, final: boolean, seconds: number): void {
    if (this.#heard) this.#write(this.#heard, text.trim());
    else this.#heard = this.#add("caller", text.trim(), seconds);
    if (final) this.#heard = undefined;
  }

  note(text: string, seconds: number): void {
    this.#add("note", text, seconds);
  }

  // A tool is called: its name and arguments, later its result.
  toolStarted(id: string, name: string, given: string, seconds: number): void {
    const entry = this.#add("tool", given, seconds, name);
    entry.line.text = `${name}(${given})`;
    this.#tools.set(id, entry);
  }

  toolStopped(id: string, result: string): void {
    const entry = this.#tools.get(id);
    if (!entry) return;
    this.#tools.delete(id);
    entry.line.text += ` → ${result || "done"}`;
    const shown = element("span", { className: "result", textContent: result || "done" });
    this.#change(() => entry.item.append(shown));
  }

  // The order as it is now, in place of the one before.
  ordered(order: Order, seconds: number): void {
    this.#change(() => {
      if (this.#order) this.#remove(this.#order);
      this.#order = this.#add("order", "", seconds, `Order ${order.number}, ${order.state}`);
      const { line, item } = this.#order;
      line.text = `${orderLines(order).join(", ") || "nothing"}; total ${order.total}`;
      item.append(orderTable(order));
    });
  }

  #add(side: Side, text: string, seconds: number, title = TITLES[side]): Entry {
    const line = { side, seconds, text };
    const words = element("span", { textContent: text });
    const item = element("li", { className: side });
    if (title) item.append(element("b", { textContent: title }));
    item.append(words);
    let at = this.lines.length;
    while (at > 0 && this.lines[at - 1].seconds > seconds) at -= 1;
    this.#change(() => this.list.insertBefore(item, this.#items[at] ?? null));
    this.lines.splice(at, 0, line);
    this.#items.splice(at, 0, item);
    return { line, item, words };
  }

  #remove({ line, item }: Entry): void {
    const at = this.lines.indexOf(line);
    this.lines.splice(at, 1);
    this.#items.splice(at, 1);
    item.remove();
  }

  #write({ line, words }: Entry, text: string): void {
    this.#change(() => {
      line.text = words.textContent = text;
    });
  }

  // Keeps the end in sight, unless somebody reads further up.
  #change(make: () => void): void {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    make();
    if (scrollHeight - scrollTop - clientHeight < NEAR_PX) this.list.scrollTop = this.list.scrollHeight;
  }
}
