/* Search from a folder: a browser starts no worker from a file:// page. There, a hidden frame of the page's own origin runs the
   worker's script instead. Material's search knows it by the name IFrameWorker. From a server this file does nothing. */
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.window = frame.contentWindow;
      this.waiting = [];
      const inner = this.window.document;
      inner.open();
      inner.write("<html><body></body></html>");
      inner.close();
      // The script in the frame calls postMessage and importScripts as a worker would.
      this.window.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.window.importScripts = (...urls) =>
        urls.reduce((before, one) => before.then(() => this.load(one)), Promise.resolve());
      this.load(url).then(() => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.deliver(data));
      });
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.window.document.createElement("script");
        script.src = new URL(url, document.baseURI).href;
        script.onload = resolve;
        script.onerror = reject;
        this.window.document.body.append(script);
      });
    }

    deliver(data) {
      this.window.dispatchEvent(new this.window.MessageEvent("message", { data }));
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.deliver(data);
    }

    terminate() {
      this.window.frameElement.remove();
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker;
}
