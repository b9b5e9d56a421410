// Runs in the page before the page's scripts and measures what a user would hear. Microphone
// (input 0) and agent (input 1) enter one AudioWorklet, which records the peak of every 128 samples
// of both, so that both are measured by one clock.
const WORKLET = `
  class Peaks extends AudioWorkletProcessor {
    rows = [];

    process(inputs) {
      const peak = (input) => (input[0] ?? []).reduce((a, x) => Math.max(a, Math.abs(x)), 0);
      this.rows.push([currentTime, peak(inputs[0]), peak(inputs[1])]);
      if (this.rows.length === 75) this.port.postMessage(this.rows.splice(0));
      return true;
    }
  }
  registerProcessor("peaks", Peaks);
`;

class Probe {
  rows = [];

  // Created on first use: an AudioContext may not start before the page has loaded.
  node = null;

  async start() {
    const context = new AudioContext({ sampleRate: 48000 });
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));
    const node = new AudioWorkletNode(context, "peaks", { numberOfInputs: 2 });
    node.port.onmessage = (event) => this.rows.push(...event.data);
    node.connect(context.destination); // outputs silence; a node without a connection may not be processed
    return { context, node };
  }

  async listen(input, stream) {
    this.node ??= this.start();
    const { context, node } = await this.node;
    context.createMediaStreamSource(stream).connect(node, 0, input);
  }
}

window.probe = new Probe();
window.RTCPeerConnection = class extends window.RTCPeerConnection {
  constructor(...args) {
    super(...args);
    this.addEventListener("track", ({ track }) => {
      if (track.kind === "audio") window.probe.listen(1, new MediaStream([track]));
    });
  }
};
