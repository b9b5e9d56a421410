// Stands in for Daily's device library, which the prebuilt page downloads from Daily's servers when
// a call starts, whatever the transport. Only what its SmallWebRTC transport asks for is here: the
// browser's own microphone.
class Devices {
  handlers = {};
  track = null;

  on(name, handler) {
    (this.handlers[name] ??= []).push(handler);
  }

  async startCamera() {
    // Unprocessed: what is measured must arrive as it was played.
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    this.track = stream.getAudioTracks()[0];
    window.probe.listen(0, stream);
    const participant = { local: true, user_id: "caller", user_name: "Caller" };
    for (const handler of this.handlers["track-started"] ?? [])
      handler({ participant, track: this.track });
    return { camera: {}, mic: { deviceId: "default", label: "Microphone" }, speaker: {} };
  }

  async enumerateDevices() {
    return { devices: await navigator.mediaDevices.enumerateDevices() };
  }

  participants() {
    return { local: { tracks: { audio: { persistentTrack: this.track } } } };
  }

  isLocalAudioLevelObserverRunning() {
    return true;
  }

  localScreenAudio() {
    return false;
  }

  localScreenVideo() {
    return false;
  }

  leave() {
    this.track?.stop();
  }
}

const instance = new Devices();
export const t = { getCallInstance: () => instance, createCallObject: () => instance };
