// A page opened from disk may not start a worker, and the search runs in one. Here it runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      const page = this.inside.document
      page.open()
      page.close()
      this.inside.IFrameWorker = true // how the script knows where it is
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside.importScripts = (...urls) => Promise.all(urls.map(url => this.run(url)))
      this.ready = this.run(url)
    }
    run(url) {
      const script = this.inside.document.createElement("script")
      script.src = url
      return new Promise((resolve, reject) => {
        Object.assign(script, { onload: resolve, onerror: reject })
        this.inside.document.documentElement.append(script)
      })
    }
    async postMessage(data) {
      await this.ready
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
    }
    terminate() {}
  }
}
