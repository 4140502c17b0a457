// What the user does becomes an event for the server, one at a time: of the moves of a slider that
// arrive meanwhile only the last is sent, so that no queue builds up. What comes back is shown.
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const PATIENCE = 5000; // milliseconds until an event counts as lost
  let waiting = [];
  let sent = 0; // when the event in flight was sent; 0: none is

  function send() {
    if (waiting.length && Date.now() - sent > PATIENCE) {
      sent = Date.now();
      dash.set_props("event", { data: waiting.shift() });
    }
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

  function dragged(id) {
    return id.kind === "slider" && document.activeElement?.matches?.("input[type=range]:active") &&
      JSON.parse(document.activeElement.id).name === id.name;
  }

  // at the end of a drag the slider is shown where the rules put it
  document.addEventListener("change", (e) => e.target.type === "range" && post({ kind: "tick", name: "" }));

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

    show(state, ...ids) {
      sent = 0;
      setTimeout(send);
      return ids.map((list) =>
        list.map((id) => (dragged(id) ? dash.no_update : state.controls[id.kind][id.name] ?? dash.no_update)),
      );
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
