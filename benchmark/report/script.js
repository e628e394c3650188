"use strict";

const filter = document.getElementById("panel");
filter.addEventListener("change", () => {
  for (const section of document.querySelectorAll("section[data-panel]")) {
    section.hidden = filter.value !== "" && section.dataset.panel !== filter.value;
  }
});

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

function sort(header) {
  const body = header.closest("table").tBodies[0];
  const sign = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
  const order = (row) => row.cells[header.cellIndex].dataset.order;
  const rows = Array.from(body.rows).sort((a, b) => {
    const [x, y] = [order(a), order(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * compare(x, y);
  });
  body.append(...rows);
}

for (const header of document.querySelectorAll("th")) {
  header.firstElementChild.addEventListener("click", () => sort(header));
}
