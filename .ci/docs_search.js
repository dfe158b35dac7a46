// Browsers start no workers on pages that are read from a disk, which the search needs; a hidden frame does the same work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const base = new URL(address, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.inside.importScripts = (...scripts) => {
        const loaded = scripts.map(script => new Promise((done, failed) => {
          const element = this.inside.document.createElement("script");
          element.src = new URL(script, base).href;
          element.onload = done;
          element.onerror = failed;
          this.inside.document.body.appendChild(element);
        }));
        return Promise.all(loaded);
      };
      this.inside.postMessage = data => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.ready = this.inside.importScripts(base.href);
    }

    postMessage(data) { this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data }))); }

    terminate() { this.inside.frameElement.remove(); }
  };
}
