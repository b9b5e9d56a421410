// Small helpers for the document.

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

export function element<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function show(node: HTMLElement, shown: boolean): void {
  node.hidden = !shown;
}

// Listens to an element of the page, or to something else that has events.
export function on(target: EventTarget | string, type: string, run: (event: Event) => void): void {
  (typeof target === "string" ? byId(target) : target).addEventListener(type, run);
}

// What a browser keeps for the page, unless it forbids that.

type Store = "localStorage" | "sessionStorage";

export function recall(store: Store, name: string): string | null {
  try {
    return window[store].getItem(name);
  } catch {
    return null;
  }
}

export function keep(store: Store, name: string, value: string): void {
  try {
    window[store].setItem(name, value);
  } catch {
    // It holds until the page is left.
  }
}

export async function post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  return fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

// A WebSocket for messages and sound.
export function openSocket(path: string, protocols: string[] = []): WebSocket {
  const address = new URL(path, document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}

// Milliseconds of a monotonic clock: changes of the wall clock do not affect it.
export const now = (): number => performance.now();

export function debounce(milliseconds: number, run: () => void): () => void {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
}

export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
