// What the whole page does: contents, links inside the page, tables that sort and filter, what figures tell.
"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  // Links: a target in a fold opens it. A page inside a notebook may not have its address changed.
  const remember = (hash, added) => {
    try {
      history[added ? "pushState" : "replaceState"](null, "", hash);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
  };
  const go = async (hash) => {
    const target = document.getElementById(decodeURIComponent(hash.slice(1).split("?")[0]));
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at instanceof HTMLDetailsElement) at.open = true;
    if (target.id === "answers" && kvray.answers) await kvray.answers(hash);
    target.scrollIntoView();
  };
  const kvray = { all, make, remember, answers: null };
  window.kvray = kvray;
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    hide();
    remember(link.getAttribute("href"), true);
    go(link.getAttribute("href"));
  });
  window.addEventListener("popstate", () => location.hash && go(location.hash));
  window.addEventListener("load", () => location.hash && go(location.hash));

  const contents = document.getElementById("contents");
  if (contents) {
    const beside = matchMedia("(min-width: 75rem)");
    const fold = () => (contents.open = beside.matches);
    beside.addEventListener("change", fold);
    fold();
    const links = new Map(all("a", contents).map((link) => [link.hash.slice(1), link]));
    const seen = new IntersectionObserver((entries) => {
      const top = entries.filter((entry) => entry.isIntersecting)[0];
      if (!top) return;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(top.target.id)?.setAttribute("aria-current", "true");
    }, { rootMargin: "0px 0px -70% 0px" });
    for (const id of links.keys()) seen.observe(document.getElementById(id));
  }
  window.addEventListener("beforeprint", () => all("main details").forEach((fold) => (fold.open = true)));

  // Tables. Numbers sort by value, times by seconds, a dash last.
  const SECONDS = { h: 3600, min: 60, s: 1 };
  const number = (text) => {
    const plain = text.replaceAll("\u2212", "-").replaceAll(",", "");
    const times = [...plain.matchAll(/([\d.]+) (h|min|s)\b/g)];
    if (times.length) return times.reduce((sum, [, many, unit]) => sum + many * SECONDS[unit], 0);
    const found = plain.match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) * (plain.includes("<") ? 0.999 : 1) : NaN;
  };
  const order = (table, place, numeric, down) => {
    const body = table.tBodies[0];
    const lines = [...body.rows].map((row) => [row, row.cells[place].textContent.trim()]);
    const empty = ([, text]) => text === "" || text === "\u2013" || (numeric && Number.isNaN(number(text)));
    lines.sort((a, b) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      const more = numeric ? number(a[1]) - number(b[1]) : a[1].localeCompare(b[1], "en", { numeric: true });
      return down ? -more : more;
    });
    body.append(...lines.map(([row]) => row));
  };
  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => {
      const numeric = head.classList.contains("r");
      const button = make("button", { type: "button", title: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const down = was ? was === "ascending" : numeric;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        order(table, place, numeric, down);
      });
    });
  };
  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const box = make("input", { type: "search", placeholder: `filter ${rows.length} rows`, "aria-label": "filter the table's rows" });
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
    table.parentElement.before(make("p", { class: "filter" }, box));
  };
  for (const table of all(".wide > table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length > 1 && rows.every((row) => row.cells[0].textContent.trim())) sortable(table);
    if (rows.length >= 12) filterable(table);
  }

  // Figures: a spot tells what it shows when it is pointed at, has the focus or is touched; a click keeps it open.
  const tip = document.getElementById("tip");
  let kept = null;
  const hide = () => {
    tip.hidden = true;
    kept = null;
  };
  const tell = (spot, keep) => {
    kept = keep ? spot : null;
    tip.replaceChildren(spot.getAttribute("aria-label"));
    if (keep && spot.dataset.to && kvray.answers) tip.append(make("a", { href: spot.dataset.to }, "See these answers"));
    tip.classList.toggle("kept", keep);
    tip.hidden = false;
    const box = spot.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
  };
  for (const svg of all("figure svg")) {
    const spots = all(".spots > *", svg);
    spots.forEach((spot, place) => {
      const title = spot.querySelector("title");
      spot.setAttribute("aria-label", title.textContent);
      title.remove();
      spot.setAttribute("role", "img");
      spot.setAttribute("tabindex", place ? "-1" : "0");
      spot.addEventListener("pointerenter", () => kept || tell(spot, false));
      spot.addEventListener("pointerleave", () => kept || hide());
      spot.addEventListener("focus", () => kept === spot || tell(spot, false));
      spot.addEventListener("blur", () => kept || hide());
      spot.addEventListener("click", () => tell(spot, true));
      spot.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Enter") tell(spot, true);
        else if (step) spots[(place + step + spots.length) % spots.length].focus();
        else return;
        event.preventDefault();
      });
    });
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("click", (event) => kept && !event.target.closest(".spots, #tip") && hide());
  window.addEventListener("scroll", hide, { passive: true });
})();
