// How the search of the site ranks: what has that name before what speaks of it, the top of the package first.
var Scorer = {
  score: ([docname, title, anchor, description, score]) => score + (docname === "_site/api" && anchor ? 20 : 0),
  objNameMatch: 40, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
}
