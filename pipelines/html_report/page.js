"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // Figures. Their colours are names of CSS variables, which plotly does not read.
  const colour = (value) => {
    const styles = getComputedStyle(root);
    const resolved = (v) => {
      if (typeof v === "string" && v.startsWith("var(--")) return styles.getPropertyValue(v.slice(4, -1)).trim();
      if (Array.isArray(v)) return v.map(resolved);
      if (v && typeof v === "object") return Object.fromEntries(Object.entries(v).map(([k, x]) => [k, resolved(x)]));
      return v;
    };
    return resolved(value);
  };

  // On a phone an axis title has two lines.
  const titled = (title, narrow) => (narrow && title && title.text ? { ...title, text: title.text.replace(" (", "<br>(") } : title);
  const axis = (own, narrow) => ({
    gridcolor: "var(--grid)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)", zeroline: false,
    tickcolor: "var(--rule)", fixedrange: matchMedia("(pointer: coarse)").matches, ...own,
    title: { standoff: 8, font: { size: 13 }, ...titled(own && own.title, narrow) },
  });

  const draw = (plot) => {
    const { data, layout } = figures[plot.dataset.figure][plot.dataset.panel];
    const style = getComputedStyle(document.body);
    const narrow = plot.clientWidth < 480;
    plot.dataset.height ??= parseFloat(plot.style.height);
    const rows = layout.showlegend === false ? 0 : data.filter((trace) => trace.name && trace.showlegend !== false).length - 1;
    plot.style.height = `${Number(plot.dataset.height) + (narrow ? 19 * Math.max(0, rows) : 0)}px`;
    const whole = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--rule)", font: { color: "var(--ink)" } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--faint)", activecolor: "var(--ink)" },
      ...layout,
      font: { family: style.fontFamily, size: 13, color: "var(--ink)" },
      margin: { l: 10, r: 14, t: 8, b: narrow ? 58 : 42, ...layout.margin },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", ...layout.legend },
      xaxis: axis(layout.xaxis, narrow), yaxis: axis(layout.yaxis, narrow),
    };
    const options = { responsive: true, displayModeBar: false };
    return Plotly.react(plot, colour(data), colour(whole), options);
  };

  const drawAll = () => Promise.all(all(".plot").map(draw));

  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  if (all(".plot").length) {
    unpack().then(drawAll).then(() => {
      root.classList.add("drawn");
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    }).catch(() => {
      root.classList.add("undrawn");
      document.getElementById("undrawn").hidden = false;
    });
  }

  // Print: light colours, everything unfolded, figures as wide as the paper.
  const PAPER_WIDTH = 680;
  let folded = [];
  addEventListener("beforeprint", () => {
    root.classList.add("print");
    folded = all("details:not([open])");
    folded.forEach((details) => { details.open = true; });
    if (root.classList.contains("drawn")) {
      all(".plots").forEach((plots) => { plots.style.width = `${PAPER_WIDTH}px`; });
      drawAll();
    }
  });
  addEventListener("afterprint", () => {
    root.classList.remove("print");
    folded.forEach((details) => { details.open = false; });
    if (root.classList.contains("drawn")) {
      all(".plots").forEach((plots) => { plots.style.width = ""; });
      drawAll();
    }
  });

  // Tables.
  const number = (cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : null);
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1; // what has no number comes last
    return a.textContent.trim().localeCompare(b.textContent.trim(), undefined, { numeric: true });
  };
  all("thead button").forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = button.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    all("th", head.parentElement).forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compare(a.cells[head.cellIndex], b.cells[head.cellIndex]));
    body.append(...(up ? rows : rows.reverse()));
  }));

  const written = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // where the clipboard is not allowed, such as in a frame
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  const copied = (button, text) => button.addEventListener("click", async () => {
    const label = button.textContent;
    await written(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
  all(".copy-table").forEach((button) => copied(button, () => {
    const table = button.closest(".table").querySelector("table");
    return [...table.rows].map((row) => [...row.cells].map(value).join("\t")).join("\n");
  }));
  all("[data-copy]").forEach((button) => copied(button, () => button.dataset.copy));

  // MLflow shows artifacts in a frame without links, at an address that names its server.
  if (self !== top) document.getElementById("preview").hidden = false;
  const local = document.body.dataset.local;
  if (local && location.href.startsWith("blob:http")) {
    const server = new URL(location.href.slice("blob:".length)).origin;
    all(`a[href^="${local}"]`).forEach((a) => { a.href = a.href.replace(local, server); });
  }
})();
