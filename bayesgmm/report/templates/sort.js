"use strict";
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  const heads = table.tHead.rows[0].cells;
  const rows = Array.from(body.rows);
  if (rows.length < 2) continue;
  Array.from(heads).forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : null;
      };
      const numeric = head.classList.contains("number");
      const compare = (a, b) => {
        if (!numeric) return a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
        const x = key(a), y = key(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return x < y ? -1 : x > y ? 1 : 0;
      };
      const sign = down ? -1 : 1;
      const empty = (row) => numeric && key(row) === null;
      body.append(...rows.slice().sort((a, b) => (empty(a) || empty(b) ? 1 : sign) * compare(a, b)));
    });
  });
}
