// Replaces Daily's device library, which the prebuilt page downloads from Daily's servers when a
// call starts, for every transport. Implements only what the SmallWebRTC transport uses: the
// browser's microphone.
class Devices {
  handlers = {};
  track = null;

  on(name, handler) {
    (this.handlers[name] ??= []).push(handler);
  }

  async startCamera() {
    // No audio processing: the measured tones must arrive unchanged.
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
