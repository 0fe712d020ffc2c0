// What stands at the top, what is said aloud, and the controls' parts: whom this is about, how well, and whether it still comes.

const HEALTH = { ok: "✓ healthy", degraded: "! degraded", down: "✗ down" };
const SAY_EVERY_MS = 5000;
const STALE_S = 10;
const $ = (id) => document.getElementById(id);
const listOf = (value) => (Array.isArray(value) ? value.filter((item) => item && typeof item === "object") : []);
const isOver = (status) => ["complete", "interrupted", "broken"].includes(status);

// Title, run and reasons; gives what is to be said of the health while it is known.
function showHeading({ watched, health, now }) {
  const title = plain(watched?.title || watched?.store, 160);
  setText($("title"), title || "Nothing is running");
  const row = watched?.row ?? {};
  const run = watched?.run_id ? `run ${plain(watched.run_id, 60)}` : "";
  const total = finite(watched?.duration_s) + (finite(watched?.warmup_s) || 0);
  const isLoading = watched?.status === "loading" && now >= watched.began;
  const elapsed = isLoading ? span(Math.floor(now - watched.began)) + (total > 0 ? ` of ${span(total)}` : "") : "";
  const status = plain([watched?.status, elapsed].filter(Boolean).join(" "), 60);
  const parts = [
    run,
    watched?.store,
    [row.workload, row.pacer]
      .filter(Boolean)
      .map((t) => plain(t, 80))
      .join(" · "),
    status,
    watched?.is_closed_loop ? "closed loop: service time" : "",
  ];
  setText(
    $("subtitle"),
    parts
      .map((p) => plain(p, 170))
      .filter((p) => p && !title.includes(p))
      .join("  ·  "),
  );
  const reasons = listOf([health])
    .flatMap((h) => (Array.isArray(h.reasons) ? h.reasons : []))
    .slice(0, 8)
    .map((r) => plain(r, 160));
  const known = own(HEALTH, health?.status);
  const isFine = health?.status === "ok";
  const healthSaid = known ? [known, isFine ? reasons.join("; ") : ""].filter(Boolean).join(": ") : "";
  $("reasons").hidden = !known || isFine || !reasons.length;
  setText($("reasons"), reasons.join("; "));
  const healthKind = known ? health.status : "";
  return { healthSaid, healthKind };
}

// The words for the connection, and their kind; `pausedAt` is null where it is not paused.
function connectionSaid({ state, retryS, heardMs }, isNothing, pausedAt) {
  const silentS = Math.floor((performance.now() - heardMs) / 1000);
  const parts = {
    connecting: ["◌ connecting …", "waiting"],
    reconnecting: [retryS > 0 ? `↻ reconnecting in ${retryS} s` : "↻ reconnecting …", "down"],
    live:
      silentS >= STALE_S && !isNothing
        ? [`◌ connected, no news for ${silentS} s`, "waiting"]
        : isNothing
          ? ["○ nothing is running", "idle"]
          : ["● live", "live"],
  }[state];
  return pausedAt !== null
    ? [`‖ paused at ${clockTime(pausedAt)}${state === "live" ? "" : ` · ${parts[0]}`}`, "paused"]
    : parts;
}

// For screen readers: gathered, not one by one.
class Voice {
  constructor(place) {
    Object.assign(this, { place, sayings: [], saidMs: -Infinity, timer: 0 });
  }

  say(text) {
    this.sayings = [...this.sayings, text].slice(-5);
    const wait = this.saidMs + SAY_EVERY_MS - performance.now();
    clearTimeout(this.timer);
    this.timer = setTimeout(
      () => {
        this.saidMs = performance.now();
        setText(this.place, this.sayings.join(" "));
        this.sayings = [];
      },
      Math.max(50, wait),
    );
  }
}

// Buttons of which one is pressed.
function choices(place, options, chosen, choose) {
  const buttons = options.map(([value, text]) => {
    const button = element("button", { type: "button", text, "aria-pressed": String(value === chosen) });
    button.addEventListener("click", () => {
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      choose(value);
    });
    return button;
  });
  place.append(...buttons);
}

// A browser may forbid storage; then it is chosen anew each time.
function remembered() {
  try {
    return localStorage.getItem("eventcore_lab.theme");
  } catch {
    return null;
  }
}
function remember(theme) {
  try {
    localStorage.setItem("eventcore_lab.theme", theme);
  } catch {
    /* not kept */
  }
}
