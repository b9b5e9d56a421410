// Theme, keys and messages: what has nothing to do with a call.
import { byId, element, keep, on, recall, show } from "./dom";

const THEMES = ["auto", "light", "dark"];

export function followTheme(): void {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = recall("localStorage", "theme") ?? "auto";
  const apply = () => {
    const chosen = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
    document.documentElement.dataset.theme = chosen;
    button.textContent = `Theme: ${theme}`;
  };
  on(dark, "change", apply);
  on(button, "click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    keep("localStorage", "theme", theme);
    apply();
  });
  apply();
}

export function followKeys(actions: Record<string, () => void>): void {
  const dialog = byId<HTMLDialogElement>("keys-dialog");
  on("keys", "click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    const typing = (event.target as HTMLElement).closest("input:not([type=radio]), textarea, select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const action = event.key === "?" ? () => dialog.showModal() : actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

// A message above the page, for what the person has to know or do.
export class Banner {
  #retry: (() => void) | undefined;

  constructor() {
    on("banner-close", "click", () => this.clear());
    on("banner-retry", "click", () => {
      const retry = this.#retry;
      this.clear();
      retry?.();
    });
  }

  show(text: string, retry?: () => void): void {
    this.#retry = retry;
    // What is between backticks is for a terminal.
    const parts = text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
    byId("banner-text").replaceChildren(...parts);
    show(byId("banner-retry"), retry !== undefined);
    show(byId("banner"), true);
  }

  clear(): void {
    show(byId("banner"), false);
  }
}
