// What the user does becomes an event for the server, one at a time: of the moves of a slider that
// arrive meanwhile only the last is sent, so that no queue builds up. What comes back is shown.
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const PATIENCE = 15000; // milliseconds until an event is sent again
  const TIMES = 2; // that an event is sent before it counts as lost
  let waiting = [];
  let flying = null; // the event in flight
  let timer;
  let last = { turn: -1 }; // the newest state

  // an event is sent again from the state that it was first sent from, so it is done only once
  function send(again = false) {
    if (flying && !again) return;
    if (!flying || flying.times === TIMES) {
      const event = waiting.shift();
      flying = event ? { ...event, times: 0 } : null;
    }
    clearTimeout(timer);
    if (!flying) return;
    flying = { ...flying, times: flying.times + 1 };
    timer = setTimeout(send, PATIENCE, true);
    dash.set_props("event", { data: { ...flying, sent: Date.now() } });
  }

  function post(event) {
    const same = (other) => other.kind === event.kind && other.name === event.name;
    waiting = event.kind === "slider" || event.kind === "tick" ? waiting.filter((e) => !same(e)) : waiting;
    waiting.push(event);
    send();
  }

  function equal(one, other) {
    const numbers = one !== "" && other !== "" && !isNaN(one) && !isNaN(other);
    return numbers ? Number(one) === Number(other) : String(one ?? "") === String(other ?? "");
  }

  // whether the user is changing a control, so that an older answer may not change it back
  function busy(id) {
    const drag = document.querySelector("input[type=range]:active");
    return waiting.some((event) => event.kind === id.kind && event.name === id.name) ||
      (drag && drag.id === JSON.stringify(id));
  }

  // at the end of a drag the slider is shown where the rules put it
  document.addEventListener("pointerup", (event) =>
    event.target.type === "range" && setTimeout(() => post({ kind: "tick", name: "" }), 50));

  // a control that is drawn again keeps the focus, unless the user has left it
  let focused = "";
  document.addEventListener("focusin", (event) => (focused = event.target.id));
  document.addEventListener("pointerdown", (event) =>
    event.target !== document.activeElement && (focused = ""), true);
  new MutationObserver(() => document.activeElement === document.body && focused &&
    document.getElementById(focused)?.focus({ preventScroll: true })
  ).observe(document.body, { childList: true, subtree: true });

  dash.page = {
    act(...args) {
      const state = args[args.length - 1];
      for (const { prop_id, value } of dash.callback_context.triggered) {
        if (prop_id === "poll.n_intervals") {
          if (value) post({ kind: "tick", name: "" });
          continue;
        }
        const end = prop_id.lastIndexOf(".");
        const { kind, name } = JSON.parse(prop_id.slice(0, end));
        if (prop_id.endsWith(".n_clicks")) {
          if (value) post({ kind, name });
        } else if (!equal(value, state.controls[kind]?.[name])) {
          post({ kind, name, value });
        }
      }
    },

    // no output of a callback, for which Dash would hold back what the user does meanwhile
    show(state, ...ids) {
      if (state.turn < last.turn) dash.set_props("state", { data: last }); // an answer too late
      if (state.turn <= last.turn) return;
      last = state;
      flying = null;
      for (const id of ids.flat()) {
        const value = state.controls[id.kind][id.name];
        if (value !== undefined && !busy(id)) dash.set_props(id, { value });
      }
      send();
    },

    async copy() {
      const text = document.getElementById("copy-text");
      try {
        await navigator.clipboard.writeText(text.innerText);
        return "copied";
      } catch {
        window.getSelection().selectAllChildren(text); // where the browser allows no more
        return "selected: press Ctrl+C";
      }
    },
  };
})();
