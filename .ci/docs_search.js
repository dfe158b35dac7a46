// Browsers start no workers on pages that are read from a disk, which the search needs; a hidden frame does the same work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      const pending = [];
      this.inside.importScripts = (...scripts) => {
        for (const script of scripts) {
          pending.push(new Promise((done, failed) => {
            const element = this.inside.document.createElement("script");
            element.src = new URL(script, address).href;
            element.onload = done;
            element.onerror = failed;
            this.inside.document.body.appendChild(element);
          }));
        }
        return Promise.all(pending);
      };
      this.inside.postMessage = data => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.ready = this.inside.importScripts(address);
    }

    postMessage(data) { this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data }))); }

    terminate() { this.inside.frameElement.remove(); }
  };
}
