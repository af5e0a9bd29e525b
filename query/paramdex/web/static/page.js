// Small helps. Every page works without them.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- light and dark
for (const button of all("[data-theme-switch]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* kept for this page only */ }
  });
}

// ---- what takes longer than 300 ms says so
const loading = document.getElementById("loading");
let waiting;
const wait = () => { clearTimeout(waiting); waiting = setTimeout(() => { loading.hidden = false; }, 300); };
const done = () => { clearTimeout(waiting); loading.hidden = true; };
addEventListener("pageshow", done); // back from another page
document.addEventListener("submit", wait);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || link.hasAttribute("download") || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  if (link.getAttribute("href").startsWith("#")) return;
  wait();
});

// ---- parts that are slow to compute are fetched when they come into view
const load = async (place) => {
  const link = place.querySelector("a");
  const label = link.textContent;
  const slow = setTimeout(() => { place.classList.add("slow"); place.setAttribute("aria-busy", "true"); link.textContent = "Looking…"; }, 300);
  try {
    const answer = await fetch(place.dataset.load, { headers: { accept: "text/html" } });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const part = page.querySelector(answer.ok ? "[data-part]" : ".error");
    place.replaceChildren(...(part ? [part] : [link]));
  } catch {
    link.textContent = label;
  } finally {
    clearTimeout(slow);
    place.classList.remove("slow");
    place.removeAttribute("aria-busy");
  }
};
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { seen.unobserve(entry.target); load(entry.target); }
  }
}, { rootMargin: "400px" });
for (const place of all("[data-load]")) seen.observe(place);

// ---- copy
for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      prompt("Copy this:", button.dataset.copy);
    }
    setTimeout(() => { button.textContent = label; }, 1200);
  });
}

// ---- maps: one stop of the tab key, arrows between cells, and a line that says what a cell is
const explore = (map) => {
  const cells = all("a[aria-label]", map);
  const places = new Map();
  const readout = map.closest("section")?.querySelector(".readout");
  cells.forEach((cell, i) => { if (i) cell.tabIndex = -1; });
  const show = (event) => {
    const cell = event.target.closest("a[aria-label]");
    if (readout && cell) readout.textContent = cell.getAttribute("aria-label");
  };
  map.addEventListener("focusin", show);
  map.addEventListener("mouseover", show);
  const centre = (cell) => {
    if (!places.has(cell)) {
      const box = (cell.querySelector("rect") ?? cell).getBBox?.() ?? cell.getBoundingClientRect();
      places.set(cell, [box.x + box.width / 2, box.y + box.height / 2, box.height]);
    }
    return places.get(cell);
  };
  map.addEventListener("keydown", (event) => {
    const now = cells.indexOf(document.activeElement);
    if (now < 0 || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    places.clear();
    let next = cells[now + { ArrowLeft: -1, ArrowRight: 1 }[event.key]];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const [x, y, height] = centre(cells[now]);
      const sign = event.key === "ArrowDown" ? 1 : -1;
      const lines = cells.filter((cell) => sign * (centre(cell)[1] - y) > height / 2);
      next = lines.sort((a, b) => Math.abs(centre(a)[1] - y) - Math.abs(centre(b)[1] - y) || Math.abs(centre(a)[0] - x) - Math.abs(centre(b)[0] - x))[0];
    }
    if (next) { cells[now].tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
};
// once the page has been painted: hundreds of cells take a while
requestAnimationFrame(() => setTimeout(() => all("[data-cells]").forEach(explore)));

// ---- what was left empty is left out of the address
for (const form of all("[data-tidy]")) {
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
}

// ---- choices that show at once
for (const form of all("[data-submit]")) form.addEventListener("change", () => form.requestSubmit());

// ---- the SQL editor
for (const editor of all("[data-editor]")) {
  for (const hint of all("[data-keys]")) hint.hidden = false;
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); editor.form.requestSubmit(); }
  });
  for (const button of all("[data-insert]")) {
    button.addEventListener("click", () => { editor.setRangeText(button.dataset.insert, editor.selectionStart, editor.selectionEnd, "end"); editor.focus(); });
  }
}

// ---- the search box says what it understands
for (const box of all("[data-understand]")) {
  const says = document.getElementById(box.dataset.understand);
  const first = says.textContent;
  let timer;
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const q = box.value;
      if (!q.trim()) { says.textContent = first; return; }
      const answer = await fetch(`/ask.json?q=${encodeURIComponent(q)}`);
      if (answer.ok && q === box.value) says.textContent = `Understood as ${(await answer.json()).says}.`;
    }, 150);
  });
}
