// An order, as the order window of the bots sends it.
import { element } from "./dom";

export interface Order {
  number: number;
  state: string; // open or placed
  lines: { item: string; size: string; note: string; quantity: number; price: string }[];
  total: string;
}

const ONE_SIZE = "regular"; // of what comes in one size

export function orderLines({ lines }: Order): string[] {
  return lines.map(({ item, size, note, quantity }) => {
    const sized = size && size !== ONE_SIZE ? `${size} ${item}` : item;
    return `${quantity} × ${sized}${note ? ` (${note})` : ""}`;
  });
}

// Name and price of each line, and the total.
export function orderTable(order: Order): HTMLElement {
  const row = (name: string, price: string) =>
    element("tr", {}, element("td", {}, name), element("td", {}, price));
  const names = orderLines(order);
  const rows = order.lines.map((line, i) => row(names[i], line.price));
  return element("table", {}, ...rows, row("Total", order.total));
}
