// Downloads of a call. Nothing is sent anywhere.

export function save(content: Blob, started: Date, suffix: string): void {
  const stamp = started.toISOString().slice(0, 19).replace(/[T:]/g, "-");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = `personaplex-${stamp}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
