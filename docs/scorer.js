// How the search of the site orders its results: guides before the reference, long lists last.
const PLACES = [
  [/^(howto|tutorials)\//, 10],
  [/^(explanation\/|comparison\/|cli$|settings$|exit-codes$|glossary$)/, 5],
  [/^(benchmarks|changelog|code|verified)$/, -10],
];

window.Scorer = {
  score: ([page, , , , score]) => score + (PLACES.find(([place]) => place.test(page))?.[1] ?? 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
