// The connection: server-sent events from beside the page, connected again by itself for as long as the page is open.

const BACKOFF_S = [1, 2, 4, 8, 15, 30];
const SILENCE_MAX_S = 120;

class Stream {
  // `hello` and `second` are called with what came; `changed` whenever `state`, `retryS` or `faults` is another.
  constructor({ hello, second, changed }) {
    Object.assign(this, {
      hello,
      second,
      changed,
      state: "connecting",
      retryS: 0,
      faults: 0,
      heardMs: performance.now(),
    });
    this._tries = 0;
    this._source = null;
    this._timer = 0;
    addEventListener("online", () => this.now());
    addEventListener("pagehide", () => this._close());
    addEventListener("pageshow", (event) => event.persisted && this.now());
    setInterval(() => this._lookForSilence(), 5000);
  }

  open() {
    this._close();
    const source = new EventSource("events"); // relative: the page may live behind a proxy's prefix
    this._source = source;
    const told = (name, see) => source.addEventListener(name, (event) => this._told(source, event, see));
    told("hello", (data) => {
      this._tries = 0;
      this.hello(data);
      this._is("live", 0);
    });
    told("second", (data) => this.state === "live" && this.second(data));
    source.onerror = () => source === this._source && this._lost();
  }

  // At once, instead of when the back-off is over.
  now() {
    if (this.state === "reconnecting") this.open();
  }

  _told(source, event, see) {
    if (source !== this._source) return;
    this.heardMs = performance.now();
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      this.faults += 1; // one that cannot be read is left out; the next hello has it all
      return this.changed();
    }
    if (data && typeof data === "object") see(data);
  }

  // The browser would try again by itself after some errors and give up after others: here it is one way for all of them.
  _lost() {
    this._close();
    const wait = BACKOFF_S[Math.min(this._tries, BACKOFF_S.length - 1)];
    this._tries += 1;
    // Up to a fifth later, so that fifty pages do not come back in the same instant.
    this._count(Math.round(wait * (wait > 4 ? 1 + Math.random() / 5 : 1)));
  }

  _count(left) {
    this._is("reconnecting", left);
    if (left <= 0) return this.open();
    this._timer = setTimeout(() => this._count(left - 1), 1000);
  }

  // A connection that was cut without a word (a sleeping machine, a tunnel) never errs.
  _lookForSilence() {
    if (this.state === "live" && performance.now() - this.heardMs > SILENCE_MAX_S * 1000) this._lost();
    if (this.state === "live") this.changed();
  }

  _close() {
    clearTimeout(this._timer);
    this._source?.close();
    this._source = null;
    if (this.state === "live") this._is("reconnecting", 0);
  }

  _is(state, retryS) {
    this.state = state;
    this.retryS = retryS;
    this.changed();
  }
}
