// Runs before the page's scripts: records the peaks of microphone and agent by a clock of its own.
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
  node = null; // created on first use: an AudioContext may not start before the page has loaded

  async start() {
    const context = new AudioContext({ sampleRate: 48000 });
    const url = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    await context.audioWorklet.addModule(url);
    const node = new AudioWorkletNode(context, "peaks", { numberOfInputs: 2 });
    node.port.onmessage = (event) => this.rows.push(...event.data);
    node.connect(context.destination); // silent; a node without a connection is not processed
    return { context, node };
  }

  async listen(input, stream) {
    this.node ??= this.start();
    const { context, node } = await this.node;
    context.createMediaStreamSource(stream).connect(node, 0, input);
  }
}

window.probe = new Probe();
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (constraints) => {
  const stream = await open(constraints);
  window.probe.listen(0, stream);
  return stream;
};
window.RTCPeerConnection = class extends window.RTCPeerConnection {
  constructor(...args) {
    super(...args);
    this.addEventListener("track", ({ track }) => {
      if (track.kind === "audio") window.probe.listen(1, new MediaStream([track]));
    });
  }
};
