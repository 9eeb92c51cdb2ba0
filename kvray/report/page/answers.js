// The section "Answer by answer": filters, the list of what matches, and each answer with its prompt. The page's own
// texts and those of models go through textContent alone, so that none can act.
"use strict";
(() => {
  const { all, make, remember } = window.kvray;
  const section = document.getElementById("answers");
  const [form, chips, count, list] = ["form", ".chips", ".count", ".matches"].map((each) => section.querySelector(each));
  const LISTED = 25;
  const FOLDED = 1600;
  const ENDS = 500;
  let data = null;
  let rows = [];
  let beside = [];
  let loading = null;
  let chosen = {};

  const read = async () => {
    const bytes = Uint8Array.from(atob(JSON.parse(document.getElementById("answers-data").textContent)), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    data = await new Response(stream).json();
    const { example, model, seed, answer, score, outcome } = data.answers;
    rows = example.map((at, row) => ({ at, model: data.models[model[row]], seed: seed[row], answer: answer[row], score: score[row], outcome: outcome[row] }));
    beside = data.examples.id.map(() => []);
    for (const row of rows) beside[row.at].push(row);
    for (const each of [form, chips, count]) each.hidden = false;
    section.dataset.ready = "";
  };
  const ready = () => (loading ??= read());

  const evaluationOf = (row) => data.evaluations[data.examples.evaluation[row.at]];
  const base = (row) => beside[row.at].find((other) => other.model === "base");
  const said = (row) => (row.seed === null || row.model === "base" ? row.model : `${row.model}, seed ${row.seed}`);
  const verdict = (row) => (row.outcome && !["right", "wrong"].includes(row.outcome) ? row.outcome : row.score === 1 ? "right" : row.score === 0 ? "wrong" : `score ${row.score}`);
  const badge = (row) => make("span", { class: `badge ${row.score === 1 ? "up" : "down"}` }, verdict(row));
  const places = (row) => evaluationOf(row).axes.map((axis) => [axis, data.examples[axis.name][row.at]]).filter(([, value]) => value !== null);
  const where = (row) => places(row).map(([axis, value]) => (axis.name === "condition" ? value : `${axis.name} ${value}`)).join(", ");

  // Filters. Each is a test of a row; "wrong" is whatever does not score 1.
  const KINDS = { right: (row) => row.score === 1, wrong: (row) => row.score < 1 };
  const BESIDE = {
    lost: (row) => base(row) && row.score < base(row).score,
    won: (row) => base(row) && row.score > base(row).score,
  };
  const evaluation = () => data.evaluations.find((each) => each.name === chosen.evaluation) ?? data.evaluations[0];
  const matches = (row) => {
    if (evaluationOf(row) !== evaluation() || (chosen.model && row.model !== chosen.model)) return false;
    if (chosen.seed && row.model !== "base" && String(row.seed) !== chosen.seed) return false;
    for (const { name } of evaluation().axes) {
      const value = data.examples[name][row.at];
      if (chosen[name] && !(value ?? "").split(name === "condition" ? " " : "\n").includes(chosen[name])) return false;
    }
    if (!chosen.text) return true;
    if (data.examples.id.includes(chosen.text)) return data.examples.id[row.at] === chosen.text;
    return row.answer.toLowerCase().includes(chosen.text.toLowerCase());
  };
  const kind = (row, outcome, flipped) => {
    if (outcome && !(KINDS[outcome] ?? ((each) => each.outcome === outcome))(row)) return false;
    return !flipped || Boolean(BESIDE[flipped]?.(row));
  };

  const choose = (changed) => {
    chosen = Object.fromEntries(Object.entries({ ...chosen, ...changed }).filter(([, value]) => value));
    show();
    remember(`#answers?${new URLSearchParams(chosen)}`.replaceAll("+", "%20"), false);
  };
  const select = (name, title, options, any) => {
    const box = make("select", { name, onchange: () => choose(name === "evaluation" ? { [name]: box.value, outcome: "", beside: "" } : { [name]: box.value }) });
    for (const [value, text] of [...(any ? [["", any]] : []), ...options]) box.append(make("option", { value, selected: value === (chosen[name] ?? "") }, text));
    return make("label", {}, title, box);
  };
  const fields = () => {
    const { axes } = evaluation();
    const seeds = [...new Set(rows.filter((row) => row.seed !== null).map((row) => String(row.seed)))].sort((a, b) => a - b);
    const text = make("input", { type: "search", name: "text", value: chosen.text ?? "", onchange: () => choose({ text: text.value }) });
    form.replaceChildren(
      select("evaluation", "evaluation", data.evaluations.map((each) => [each.name, each.title])),
      select("model", "model", data.models.map((name) => [name, name]), "every model"),
      ...(seeds.length > 1 ? [select("seed", "seed", seeds.map((seed) => [seed, seed]), "every seed")] : []),
      ...axes.map((axis) => select(axis.name, axis.title, axis.values.map((value) => [value, value]), "all")),
      make("label", {}, "text in the answer, or an example's name", text),
    );
  };
  const buttons = (found) => {
    const graded = evaluation().graded;
    const kinds = [["", "", "all"], ["right", "", "right"], ["wrong", "", graded ? "not fully right" : "wrong"]];
    kinds.push(...evaluation().kinds.map((each) => [each, "", each]));
    if (chosen.model !== "base" && data.models.includes("base")) {
      const words = graded ? ["below the base", "above the base"] : ["base right, this wrong", "base wrong, this right"];
      kinds.push(["", "lost", words[0]], ["", "won", words[1]]);
    }
    chips.replaceChildren(...kinds.map(([outcome, flipped, words]) => {
      const many = found.filter((row) => kind(row, outcome, flipped)).length;
      const pressed = outcome === (chosen.outcome ?? "") && flipped === (chosen.beside ?? "");
      const numbered = make("span", { class: "many" }, many.toLocaleString("en"));
      return make("button", { type: "button", "aria-pressed": String(pressed), onclick: () => choose({ outcome, beside: flipped }) }, `${words} `, numbered);
    }));
  };
  const show = () => {
    fields();
    const found = rows.filter(matches);
    buttons(found);
    const shown = found.filter((row) => kind(row, chosen.outcome, chosen.beside));
    const here = rows.filter((row) => evaluationOf(row) === evaluation()).length;
    const some = here < evaluation().all ? `; of ${evaluation().title} this page holds ${here.toLocaleString("en")} of ${evaluation().all.toLocaleString("en")}` : "";
    count.textContent = `${shown.length.toLocaleString("en")} ${shown.length === 1 ? "answer matches" : "answers match"}${some}.`;
    list.replaceChildren();
    more(shown);
  };
  const more = (shown) => {
    const from = list.children.length;
    list.append(...shown.slice(from, from + LISTED).map(item));
    section.querySelector(".more")?.remove();
    const left = shown.length - list.children.length;
    if (left > 0) list.after(make("button", { type: "button", class: "more", onclick: () => more(shown) }, `${Math.min(LISTED, left)} more of ${left.toLocaleString("en")}`));
  };

  // One answer, made when it is opened.
  const item = (row) => {
    const told = [said(row), where(row), data.examples.id[row.at]].filter(Boolean).join(" \u00b7 ");
    const excerpt = row.answer.trim().replace(/\s+/g, " ").slice(0, 120) || "(empty)";
    const fold = make("details", {}, make("summary", {}, badge(row), make("span", { class: "told" }, told), make("span", { class: "excerpt" }, excerpt)));
    fold.addEventListener("toggle", () => fold.open && fold.children.length === 1 && fold.append(...opened(row)));
    return make("li", {}, fold);
  };
  const side = (row, title) => make("div", {}, make("h4", {}, `${title} `, badge(row)), make("pre", {}, row.answer || "(empty)"));
  const opened = (row) => {
    const references = data.examples.references[row.at];
    const prompt = data.examples.prompt[row.at];
    const other = row.model === "base" ? null : base(row);
    const everyone = beside[row.at];
    const link = `#answers?${new URLSearchParams({ evaluation: evaluationOf(row).name, model: row.model, text: data.examples.id[row.at] })}`.replaceAll("+", "%20");
    return [
      make("div", { class: "sides" }, side(row, said(row)), other ? side(other, "base") : null),
      make("p", {}, make("strong", {}, references.length > 1 ? "Accepted: " : "Expected: "), references.join(" \u00b7 ")),
      evaluationOf(row).rule ? make("p", { class: "sub" }, `Scored ${row.score}. The rule: ${evaluationOf(row).rule}`) : null,
      prompt === null ? make("p", { class: "sub" }, "The prompt is not in the store.") : asked(data.prompts[prompt]),
      everyone.length > 2 ? make("details", {}, make("summary", {}, `All ${everyone.length} answers to it in this page`), make("ul", { class: "everyone" }, ...everyone.map((each) => make("li", {}, badge(each), ` ${said(each)}: `, make("q", {}, each.answer))))) : null,
      make("p", { class: "sub" }, make("a", { href: link }, "Link to this answer")),
    ].filter((each) => each !== null);
  };
  const characters = (number) => `${number.toLocaleString("en")} characters`;
  const folded = (text) => {
    // Folds begin and end at a line, or at a word of a long one.
    const from = text.lastIndexOf("\n", ENDS) + 1 || text.lastIndexOf(" ", ENDS) + 1 || ENDS;
    const line = text.indexOf("\n", text.length - ENDS) + 1;
    const to = line || text.indexOf(" ", text.length - ENDS) + 1 || text.length - ENDS;
    const inside = make("details", { class: "fold" }, make("summary", {}, `\u2026 ${characters(to - from)} more \u2026`), text.slice(from, to));
    return [text.slice(0, from), inside, text.slice(to)];
  };
  const asked = (pieces) => {
    const size = pieces.reduce((sum, each) => sum + (typeof each === "number" ? each : each.length === 1 && Array.isArray(each) ? each[0].length : each.length), 0);
    const text = make("div", { class: "prompt", tabindex: "0", role: "region", "aria-label": "prompt" });
    for (const each of pieces) {
      if (typeof each === "number") text.append(make("em", { class: "left-out" }, `\u2026 ${characters(each)} are not in this page \u2026`));
      else if (Array.isArray(each)) text.append(make("mark", {}, each[0]));
      else if (each.length <= FOLDED) text.append(each);
      else text.append(...folded(each));
    }
    const marked = pieces.some(Array.isArray) ? ", the passage that holds the answer marked" : "";
    return make("details", { class: "asked" }, make("summary", {}, `The prompt, ${characters(size)}${marked}`), text);
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  window.kvray.answers = async (hash) => {
    await ready();
    chosen = Object.fromEntries(new URLSearchParams(hash.split("?")[1] ?? ""));
    chosen.evaluation ??= data.evaluations[0].name;
    show();
  };
  // Read when they come into sight, since it takes a moment where there are many.
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    if (!loading) window.kvray.answers("");
  }, { rootMargin: "600px" });
  near.observe(section);
})();
