// Tables of numbers: click a head to sort by its column.
const units = {k: 1e3, M: 1e6, B: 1e9, TB: 1e12, min: 60, h: 3600, GB: 1024,
               GFLOP: 1e9, TFLOP: 1e12, PFLOP: 1e15, EFLOP: 1e18, ZFLOP: 1e21};

// The number that a cell begins with, in its base unit; null if there is none.
function number(text) {
  const m = text.trim().replace(/,/g, "").match(/^([+\-−]?[\d.]+)(?:\s*(?:±|\().*)?\s*([A-Za-z]*)/);
  return m ? parseFloat(m[1].replace("−", "-")) * (units[m[2]] || 1) : null;
}

function compare(a, b) {
  const x = number(a), y = number(b);
  if (x === null || y === null) return (x === null) - (y === null) || a.localeCompare(b);
  return x - y;
}

for (const table of document.querySelectorAll("table.summary")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  heads.forEach((th, i) => {
    if (!th.textContent.trim()) return;
    th.tabIndex = 0;
    th.setAttribute("role", "button");
    th.title = "sort";
    const sort = () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = row => row.cells[i].textContent;
      const rows = [...body.rows].sort((a, b) => compare(text(a), text(b)) * (down ? -1 : 1));
      rows.forEach(row => body.appendChild(row));
    };
    th.onclick = sort;
    th.onkeydown = e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } };
  });
}

// Of long tables, show the best patterns until asked for all.
for (const table of document.querySelectorAll("table.summary")) {
  const rows = table.tBodies[0].rows.length;
  if (rows <= 24) continue;
  const button = document.createElement("button");
  const set = folded => {
    table.classList.toggle("folded", folded);
    button.textContent = folded ? `Show all ${rows} rows` : "Show the first 20 rows";
  };
  button.onclick = () => set(!table.classList.contains("folded"));
  table.after(button);
  set(true);
}

// Figures: name the point that is nearest to the pointer, within 20 pixels.
for (const box of document.querySelectorAll(".hover")) {
  const points = JSON.parse(box.dataset.points), tip = box.appendChild(document.createElement("span"));
  tip.className = "tip";
  tip.hidden = true;
  box.onpointerleave = () => { tip.hidden = true; };
  box.onpointermove = e => {
    const r = box.getBoundingClientRect(), x = e.clientX - r.left, y = e.clientY - r.top;
    let best = null, near = 20;
    for (const p of points) {
      const d = Math.hypot(p[0] * r.width - x, p[1] * r.height - y);
      if (d < near) { near = d; best = p; }
    }
    tip.hidden = !best;
    if (!best) return;
    tip.textContent = best[2];
    tip.style.left = `${best[0] * 100}%`;
    tip.style.top = `${best[1] * 100}%`;
    tip.classList.toggle("left", best[0] > .6);
  };
}
