"""``hanse lineage``: what was made from what, as a tree in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.files import write_text
from common.terminal import count, many, say
from consortium.ancestry import UNKNOWN, Graph, Thing, gather
from consortium.config import LineageConfig
from consortium.index import Registry
from consortium.keys import load_public

WIDE, HIGH, GAP_X, GAP_Y = 204, 62, 48, 18  # pixels of a box, and between boxes
SWEEPS = 4
PLURALS = {"corpus": "corpora", "shards": "shards", UNKNOWN: UNKNOWN}  # of kinds of things


def run(config: LineageConfig) -> None:
    """Gather, draw, and write the page if one was asked for."""
    root = load_public(Path(config.root)) if config.root else None
    registry = Registry(Path(config.registry), root) if config.registry else None
    graph = gather([Path(folder) for folder in config.folders], registry)
    if config.of:
        graph = graph.around(config.of)
    for line in tree(graph):
        say(line)
    kinds = [thing.kind for thing in graph.things.values()]
    said = ", ".join(many(kinds.count(kind), kind, PLURALS.get(kind)) for kind in dict.fromkeys(kinds))
    doubts = sum(thing.doubt is not None for thing in graph.things.values())
    say(f"\n{said}; {doubts or 'none'} in doubt")
    if config.output:
        output = Path(config.output)
        write_text(output, page(graph))
        say(f"wrote {output} ({count(output.stat().st_size, 'B')}): open it in a browser")


def tree(graph: Graph) -> Iterator[str]:
    """A line a thing, under the parent from which it is reached first; where it has more, the others refer to it."""
    drawn: set[str] = set()

    def below(thing: Thing, prefix: str) -> Iterator[str]:
        """Lines of what was made from a thing; ``prefix``: the branches that pass by to its left."""
        children = graph.children(thing.sha256)
        for number, child in enumerate(children):
            last = number == len(children) - 1
            branch, role = prefix + ("└─ " if last else "├─ "), child.parents[thing.sha256]
            if child.sha256 in drawn:
                yield f"{branch}{role}: {child.label}  {child.sha256[:12]}  (above)"
            elif not all(one in drawn for one in child.parents):
                yield f"{branch}{role}: {child.label}  {child.sha256[:12]}  (below)"
            else:
                drawn.add(child.sha256)
                yield f"{branch}{line(child, role)}"
                yield from below(child, prefix + ("   " if last else "│  "))

    for thing in graph.roots():
        drawn.add(thing.sha256)
        yield line(thing)
        yield from below(thing, "")


def line(thing: Thing, role: str = "") -> str:
    """A thing on one line."""
    own = role in ("", "step", "corpus", "data")
    parts = ["" if own else f"{role}: ", thing.label, f"  {thing.sha256[:12]}"]
    parts += [f"  {thing.told[key]}" for key in ("where",) if key in thing.told]
    parts += [f"  by {thing.told['by']}" if "by" in thing.told else ""]
    return _plain("".join(parts)) + (f"  !! {_plain(thing.doubt)}" if thing.doubt else "")


def _plain(text: str) -> str:
    """Text without what would move the cursor: names in manifests may hold any character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True)
class Box:
    """A thing on the page; ``x``, ``y``: its upper left corner in pixels."""

    thing: Thing
    x: int
    y: int
    look: str


@dataclass(frozen=True)
class Edge:
    """A line from a parent's right side to a child's left; ``path``: in SVG's words."""

    path: str
    role: str
    doubtful: bool


def page(graph: Graph) -> str:
    """The page: one file, no script, nothing loaded."""
    boxes = {box.thing.sha256: box for box in placed(graph)}
    edges = [Edge(_curve(boxes[one], box), role, boxes[one].thing.doubt is not None)
             for box in boxes.values() for one, role in box.thing.parents.items()]  # fmt: skip
    environment = Environment(loader=PackageLoader("consortium"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("lineage.html.j2").render(
        boxes=list(boxes.values()), edges=edges, wide=WIDE, high=HIGH,
        width=max(box.x for box in boxes.values()) + WIDE + 2, height=max(box.y for box in boxes.values()) + HIGH + 2,
        doubtful=[box.thing for box in boxes.values() if box.thing.doubt],
    )  # fmt: skip


def placed(graph: Graph) -> list[Box]:
    """Columns from left to right: a thing stands right of all it comes from; rows near those of its neighbours."""
    column: dict[str, int] = {}
    for thing in graph.things.values():  # parents first
        column[thing.sha256] = 1 + max((column[one] for one in thing.parents), default=-1)
    columns = [[one for one in column if column[one] == number] for number in range(max(column.values()) + 1)]
    row = {one: float(place) for ones in columns for place, one in enumerate(ones)}
    neighbours = {one: [*thing.parents, *(child.sha256 for child in graph.children(one))]
                  for one, thing in graph.things.items()}  # fmt: skip
    for _ in range(SWEEPS):
        for ones in columns:
            wanted = {one: sum(row[near] for near in neighbours[one]) / max(len(neighbours[one]), 1) for one in ones}
            ones.sort(key=lambda one: (wanted[one], row[one]))
            free = 0.0
            for one in ones:
                row[one] = max(free, wanted[one])
                free = row[one] + 1
    return [Box(thing, 1 + column[one] * (WIDE + GAP_X), 1 + round(row[one] * (HIGH + GAP_Y)), _look(thing))
            for one, thing in graph.things.items()]  # fmt: skip


def _look(thing: Thing) -> str:
    if thing.doubt:
        return "dependent" if thing.doubt.startswith("comes from") else "revoked"
    return "unknown" if thing.kind == UNKNOWN else thing.kind


def _curve(parent: Box, child: Box) -> str:
    x, y, to_x, to_y = parent.x + WIDE, parent.y + HIGH // 2, child.x, child.y + HIGH // 2
    return f"M{x} {y}C{x + GAP_X // 2} {y} {to_x - GAP_X // 2} {to_y} {to_x} {to_y}"
