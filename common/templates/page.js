// A pointer on a chart, or the arrow keys, show the values of a step. The page says everything without this as well.
for (const figure of document.querySelectorAll("figure.chart")) {
  const area = figure.querySelector(".area");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const steps = [...new Set(data.lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  if (!steps.length) continue;
  const span = data.high;
  let cursor, tip, at = -1;

  const nearest = (sorted, wanted) => {
    let low = 0, high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - sorted[low - 1] <= sorted[low] - wanted ? low - 1 : low;
  };
  const show = (index) => {
    at = Math.min(Math.max(index, 0), steps.length - 1);
    if (!tip) {
      cursor = area.appendChild(document.createElement("div"));
      cursor.className = "cursor";
      tip = area.appendChild(document.createElement("div"));
      tip.className = "tip";
      tip.setAttribute("role", "status");
    }
    const left = (100 * steps[at]) / span;
    cursor.style.left = `${left}%`;
    tip.style.left = left < 50 ? `calc(${left}% + 10px)` : "auto";
    tip.style.right = left < 50 ? "auto" : `calc(${100 - left}% + 10px)`;
    const head = document.createElement("b");
    head.textContent = `${data.axis} ${steps[at].toLocaleString("en")}`;
    tip.replaceChildren(head, ...data.lines.map((line) => {
      const row = document.createElement("div");
      const value = line.values[nearest(line.steps, steps[at])];
      row.className = `c${line.colour}`;
      row.textContent = `${line.name}  ${value === null ? "not a number" : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 })}`;
      return row;
    }));
  };
  const hide = () => {
    cursor?.remove();
    tip?.remove();
    cursor = tip = undefined;
  };
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    show(nearest(steps, (span * (event.clientX - box.left)) / box.width));
  });
  area.addEventListener("pointerleave", hide);
  area.addEventListener("blur", hide);
  area.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(at < 0 && Math.abs(move) === 1 ? 0 : Math.max(at, 0) + move);
  });
}
