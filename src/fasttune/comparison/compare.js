"use strict";
{
  const section = document.getElementById("answers");
  const rows = [...section.querySelectorAll("details.row")];
  const [search, seed, base, differ, loops, count] =
    ["search", "seed", "base", "differ", "loops", "count"].map(id => document.getElementById(id));
  const armsOf = element => element.dataset.arms.split(" ");

  // Which arms' answers are shown: cards, and their badges in the summaries.
  const choose = () => {
    const hidden = new Set(base && !base.checked ? base.value.split(" ") : []);
    const chosen = seed && new Set(seed.value.split(" "));
    for (const element of section.querySelectorAll("[data-arms]"))
      element.hidden = !armsOf(element).some(arm => !hidden.has(arm) && (!chosen || chosen.has(arm)));
    filter();
  };

  const shown = (row, what) => [...row.querySelectorAll(what)].filter(element => !element.hidden);

  const contains = (row, words) => {
    const texts = [...row.querySelectorAll(".asked .text"), ...shown(row, ".card")];
    return texts.some(text => text.textContent.toLowerCase().includes(words));
  };

  const differs = row => {
    const states = shown(row, ".marks:not([data-base])").map(marks =>
      shown(marks, ".outcome").map(outcome => outcome.textContent).join());
    return new Set(states).size > 1;
  };

  const filter = () => {
    const words = search.value.trim().toLowerCase();
    let visible = 0;
    for (const row of rows) {
      row.hidden = (words && !contains(row, words))
        || (differ.checked && !differs(row))
        || (loops.checked && !shown(row, ".outcome").some(outcome => outcome.querySelector(".loop")));
      visible += !row.hidden;
    }
    count.textContent = visible === rows.length ? `${visible} rows` : `${visible} of ${rows.length} rows`;
  };

  const open = () => {
    const row = rows.find(each => `#${each.id}` === location.hash);
    if (!row) return;
    row.hidden = false;
    row.open = true;
    row.scrollIntoView();
  };

  section.querySelector(".controls").hidden = false;
  for (const control of [seed, base]) control?.addEventListener("change", choose);
  for (const control of [differ, loops]) control.addEventListener("change", filter);
  search.addEventListener("input", filter);
  addEventListener("hashchange", open);
  // Print every details element open, also in browsers without ::details-content.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
  // A reloaded page keeps what was chosen.
  choose();
  open();
}
