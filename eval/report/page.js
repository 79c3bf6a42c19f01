"use strict";
// Searchable samples: filter, page, show. Only one page of cards is ever in the document.
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const PAGE = 20;
  const byId = (id) => document.getElementById(id);
  const [query, task, model, outcome, list] = ["query", "task", "model", "outcome", "list"].map(byId);
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const base = data.models.indexOf(data.base);
  let found = [];
  let page = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const option = (select, value, text) => {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  };
  for (const name of new Set(data.items.map((item) => item.t))) option(task, name, data.titles[name]);
  data.models.forEach((name, number) => option(model, String(number), name));

  const haystack = (item) =>
    (item.h ??= fold([item.t, data.titles[item.t], item.s, item.q, item.g, ...item.a.map((own) => (own ? own[1] : ""))].join("\n")));

  const scored = (own) => own !== null && own !== undefined;
  const right = (own) => scored(own) && own[0] >= 0.5;
  const outcomes = {
    all: () => true,
    right: (item, chosen) => chosen.some((number) => right(item.a[number])),
    wrong: (item, chosen) => chosen.some((number) => scored(item.a[number]) && !right(item.a[number])),
    gained: (item, chosen) => scored(item.a[base]) && !right(item.a[base]) && chosen.some((number) => right(item.a[number])),
    lost: (item, chosen) => right(item.a[base]) && chosen.some((number) => scored(item.a[number]) && !right(item.a[number])),
    differ: (item) => new Set(item.a.filter(scored).map((own) => own[0] >= 0.5)).size > 1,
  };
  if (base < 0) for (const name of ["gained", "lost"]) outcome.querySelector(`[value=${name}]`).remove();

  const words = () => fold(query.value).split(/\s+/).filter(Boolean);

  function search() {
    const wanted = words();
    const every = data.models.map((_, number) => number);
    const chosen = model.value === "" ? every : [Number(model.value)];
    const fits = outcomes[outcome.value];
    found = data.items.filter(
      (item) => (task.value === "" || item.t === task.value) && fits(item, chosen) && wanted.every((word) => haystack(item).includes(word)),
    );
    page = 0;
    show();
  }

  // Text with the searched words marked; case folding may change lengths, so marks are set only where it does not.
  function marked(text) {
    const made = element("div", "text");
    const folded = fold(text);
    const wanted = folded.length === text.length ? words() : [];
    let at = 0;
    while (wanted.length && at < text.length) {
      let next = -1;
      let size = 0;
      for (const word of wanted) {
        const place = folded.indexOf(word, at);
        if (place >= 0 && (next < 0 || place < next)) [next, size] = [place, word.length];
      }
      if (next < 0) break;
      made.append(text.slice(at, next), element("mark", "", text.slice(next, next + size)));
      at = next + size;
    }
    made.append(text.slice(at));
    return made;
  }

  function card(item) {
    const made = element("article", "sample");
    made.append(element("div", "head", [data.titles[item.t], item.s].filter(Boolean).join(" · ")), marked(item.q));
    const gold = element("div", "gold");
    gold.append(element("b", "", "Answer: "), marked(item.g));
    gold.lastChild.style.display = "inline";
    made.append(gold);
    item.a.forEach((own, number) => {
      if (!scored(own) || (model.value !== "" && number !== Number(model.value) && number !== base)) return;
      const row = element("div", "answer");
      const mark = right(own) ? "✓" : "✗";
      row.append(element("span", `mark ${right(own) ? "better" : "worse"}`, mark));
      row.append(element("span", "who", data.models[number] + (number === base ? " (base)" : "")), marked(own[1]));
      made.append(row);
    });
    return made;
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
    if (!found.length) list.append(element("p", "", "No sample fits."));
    for (const pager of document.querySelectorAll(".pager")) {
      pager.querySelector(".place").textContent = `${found.length} found · page ${page + 1} of ${pages}`;
      pager.querySelector(".back").disabled = page === 0;
      pager.querySelector(".next").disabled = page + 1 >= pages;
    }
  }

  let timer = 0;
  query.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 150);
  });
  for (const select of [task, model, outcome]) select.addEventListener("change", search);
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".back").addEventListener("click", () => { page -= 1; show(); byId("browse").scrollIntoView(); });
    pager.querySelector(".next").addEventListener("click", () => { page += 1; show(); byId("browse").scrollIntoView(); });
  }
  search();
})();
