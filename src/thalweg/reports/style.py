"""How the page looks and what its one script does; colours are variables, once for light and once for dark."""

from __future__ import annotations

#: The shades of a heat map from low to high, after ColorBrewer's YlGnBu: lightness and hue both run one way, so every
#: kind of colour blindness and a grey print keep their order. On a dark page they run from dark to light.
_SHADES = (
    *("#f8f8cd", "#e6f3b2", "#c3e6b4", "#7fcdbb", "#41b6c4"),
    *("#1d91c0", "#225ea8", "#253494", "#081d58"),
)


def shades(count: int) -> list[str]:
    """So many colours from low to high, for a light ground.

    >>> shades(3)
    ['#f8f8cd', '#41b6c4', '#081d58']
    """
    parts = [[int(shade[place : place + 2], 16) for place in (1, 3, 5)] for shade in _SHADES]
    found = []
    for number in range(count):
        place = number * (len(parts) - 1) / (count - 1)
        low = min(int(place), len(parts) - 2)
        mixed = [a + (b - a) * (place - low) for a, b in zip(parts[low], parts[low + 1], strict=True)]
        found.append("#" + "".join(f"{round(part):02x}" for part in mixed))
    return found


def _rules(colours: list[str]) -> str:
    return " ".join(f".h{number}{{color:{colour}}}" for number, colour in enumerate(colours))


#: Shades of the page's heat maps.
NUM_SHADES = 20

#: Blue and vermilion for the curves, after Okabe and Ito: told apart by every kind of colour blindness. Every text
#: stands out from its ground by at least 4.5 to 1 (WCAG 2.2, 1.4.3).
PAGE = """
:root {
  color-scheme: light dark;
  --paper: #f6f6f3; --card: #fff; --ink: #1c2024; --soft: #5f666e; --line: #ebebe8; --axis: #b4b9be;
  --c0: #0b62a8; --c1: #c94f00; --c2: #00795a; --c3: #a34a80;
  --good: #00694e; --calm: #0b62a8; --warn: #855600; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131517; --card: #1b1e21; --ink: #e9eaeb; --soft: #9aa2aa; --line: #2a2e32; --axis: #59616a;
    --c0: #62b0f4; --c1: #f5964f; --c2: #4cc9a0; --c3: #e09ac4;
    --good: #57cfa6; --calm: #74b9f6; --warn: #e5b458; --bad: #ff8a80;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 4rem }
header { margin-bottom: 1.75rem }
h1 {
  margin: .7rem 0 0; max-width: 44rem; text-wrap: balance;
  font-size: clamp(1.3rem, 1.05rem + 1.2vw, 1.75rem); line-height: 1.3; font-weight: 600; letter-spacing: -.012em;
}
h2 { margin: 2.5rem 0 .85rem; font-size: 1.0625rem; font-weight: 600 }
.name { margin: 0 0 .85rem; color: var(--soft); font-size: .875rem }
.name b { color: var(--ink); font-weight: 600 }
.soft { color: var(--soft) }
.badge {
  display: inline-block; padding: .1rem .65rem; border: 1px solid; border-radius: 99px;
  font-size: .8125rem; font-weight: 600; white-space: nowrap;
}
.converged { color: var(--good) }
.improving, .training, .kept, .note { color: var(--calm) }
.overfitting, .warning { color: var(--warn) }
.stuck, .undone, .unjudged { color: var(--soft) }
.diverged, .critical { color: var(--bad) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem }
.numbers { display: flex; flex-wrap: wrap; gap: 1px; margin: 0; padding: 0; overflow: hidden; background: var(--line) }
.numbers div { flex: 1 0 9.5rem; background: var(--card); padding: .85rem 1.1rem }
.numbers dt, .numbers small { display: block; color: var(--soft); font-size: .8125rem }
.numbers dd { margin: 0; font-size: 1.25rem; line-height: 1.45; font-weight: 600; font-variant-numeric: tabular-nums }
.numbers small { font-weight: 400 }
.stopped { margin: .75rem 0 0; color: var(--soft) }
.charts { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem }
.told { display: grid; gap: .75rem; margin: 0; padding: 0; list-style: none }
.told p { margin: .4rem 0 0; max-width: 44rem }
.told .soft, .where { font-size: .875rem }
.told pre { margin: .5rem 0 0; overflow-x: auto; font: .8125rem/1.5 ui-monospace, Menlo, Consolas, monospace }
.where { color: var(--soft); margin-left: .5rem }
.notes { margin: 0; padding-left: 1.2rem; max-width: 44rem }
.notes li { margin: .25rem 0 }
summary { cursor: pointer; font-weight: 600 }
details h3 { margin: 1.4rem 0 .35rem; font-size: .875rem; font-weight: 600 }
table { width: 100%; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top }
td { white-space: pre-wrap }
th { width: 38%; color: var(--soft); font-weight: 400 }
footer { margin-top: 3rem; color: var(--soft); font-size: .8125rem }
@media (min-width: 800px) {
  main { padding-top: 3rem }
  .charts { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .charts > :last-child:nth-child(odd) { grid-column: 1 / -1 }
}
@media print { :root { --paper: #fff } .card { break-inside: avoid } }
"""

#: The words of a chart keep their size at every width; `svg.py` says how.
CHART = """
.chart { margin: 0; min-width: 0 }
.chart figcaption {
  display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem 1rem;
  font-size: .8125rem; color: var(--soft); font-variant-numeric: tabular-nums;
}
.chart h3 { flex: 1; margin: 0; font-size: .9375rem; font-weight: 600; color: var(--ink); white-space: nowrap }
.chart .key { white-space: nowrap }
.chart i { display: inline-block; width: .9rem; margin-right: .4rem; border-top: 2.5px solid; vertical-align: .25em }
.chart output { display: inline-block; min-width: 3.4em; text-align: right; color: var(--ink); font-weight: 500 }
@media (max-width: 520px) { .chart h3:not(:nth-last-child(2)) { flex-basis: 100% } }
.plot {
  display: block; overflow: visible; width: calc(100% - 54px); margin: 1.4rem 6px 42px 48px;
  touch-action: pan-y; cursor: crosshair;
}
.plot:not(.field) { height: 200px }
.plot text { font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums }
.plot .grid, .plot .axis { stroke: var(--line); shape-rendering: crispEdges }
.plot .axis { stroke: var(--axis) }
.plot path {
  fill: none; stroke: currentColor; stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke;
}
.plot .faint { stroke-width: 1; opacity: .3 }
.plot .dots { stroke-width: 4.5 }
.plot .mark line { stroke: var(--soft); stroke-dasharray: 2 3 }
.plot .problem line { stroke: var(--bad); stroke-dasharray: none; opacity: .6 }
.plot .problem text { fill: var(--bad) }
.plot .guide { stroke: var(--soft); visibility: hidden }
.plot .spot { fill: currentColor; stroke: var(--card); stroke-width: 2; visibility: hidden }
.plot .on { visibility: visible }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
"""

#: Layers by steps; `heat_svg.py` draws them. A cell that was never measured shows the ground of the field.
HEAT = f"""
.flow {{ margin: 0 0 1rem; max-width: 44rem }}
.heat figcaption {{ row-gap: .2rem }}
.heat figcaption .key {{ flex: 1 0 100%; overflow: hidden; text-overflow: ellipsis }}
.heat p {{ margin: .5rem 0 0; font-size: .8125rem; color: var(--soft) }}
.plot.field {{ width: calc(100% - 118px); margin: .6rem 6px 42px 112px }}
.plot.brief {{ width: calc(100% - 54px); margin-left: 48px }}
.plot.marked {{ margin-top: 1.4rem }}
.field .ground {{ fill: var(--line) }}
.field path {{
  stroke: currentColor; stroke-width: 1; stroke-linecap: square; vector-effect: none; shape-rendering: crispEdges;
}}
.field.apart path {{ stroke-width: .94 }}
.broken {{ color: var(--bad) }}
.field .broken-at {{ fill: var(--bad) }}
.plot.field .spot {{ fill: none; stroke: #fff; filter: drop-shadow(0 0 1.5px #000) }}
.heat .scale {{ display: flex; flex-wrap: wrap; align-items: start; gap: .2rem 1.25rem; margin: 0 }}
.ramp {{ flex: 0 1 250px; min-width: 0; height: 38px; margin: 0 16px 0 14px; overflow: visible }}
.ramp rect {{ fill: currentColor; shape-rendering: crispEdges }}
.ramp text {{ font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums }}
.ramp .band {{ stroke: var(--good); stroke-width: 3 }}
.heat .scale i.band {{ border-top-width: 3px; color: var(--good) }}
.heat .scale i.cell {{ width: .8rem; height: .8rem; border: 0; background: currentColor; vertical-align: -.1em }}
.heat i.gap {{ color: var(--line) }}
{_rules(shades(NUM_SHADES))}
@media (prefers-color-scheme: dark) {{ {_rules(shades(NUM_SHADES)[::-1])} }}
@media (min-width: 800px) {{ .charts > .wide {{ grid-column: 1 / -1 }} }}
"""

#: The loss over a plane; `plane_svg.py` draws it. What lies on the shades stands out by a rim in the card's colour.
PLANE = """
.plot.plane { height: 320px; margin-top: 1.8rem; cursor: auto }
.plane .ground { fill: var(--line) }
.plane .level { fill: currentColor; stroke: #000; stroke-width: 1; stroke-opacity: .1 }
.plane .rim { stroke: var(--card); stroke-width: 5; opacity: .85 }
.plane .way { stroke: var(--c1); stroke-width: 2 }
.plane circle { fill: var(--c1); stroke: var(--card); stroke-width: 2 }
.plane .start { fill: var(--card); stroke: var(--c1) }
.plane .name { fill: var(--ink); font-weight: 600; stroke: var(--card); stroke-width: 3.5; paint-order: stroke }
.ground-told { margin: 0 0 .75rem }
.ground-numbers th { width: 45% }
"""

#: What an application shows of its model; `sections.py` writes it. A matrix is a table whose cells have shades.
SECTIONS = """
.shown { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem }
@media (min-width: 800px) {
  .shown { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .shown > :not(.half) { grid-column: 1 / -1 }
}
.shown p { margin: .6rem 0 0; max-width: 44rem; font-size: .875rem }
.shown .prose { margin: 0; white-space: pre-wrap }
.shown .letters { font: .8125rem/1.5 ui-monospace, Menlo, Consolas, monospace; max-width: none }
.told-table th { width: auto; border-top: 0; overflow-wrap: normal; white-space: nowrap }
.plot .many { stroke-width: 3.5; opacity: .55 }
.image { margin: 0 }
.image img { display: block; max-width: 100%; height: auto; margin-bottom: .5rem }
.image .enlarged { image-rendering: pixelated }
.image figcaption { font-size: .875rem }
.matrix { overflow-x: auto }
.matrix h3 { margin: 0 0 .5rem; font-size: .9375rem; font-weight: 600 }
.matrix table { width: auto; border-collapse: separate; border-spacing: 1px; font-size: .75rem }
.matrix th { width: auto; border: 0; padding: .1rem .4rem; white-space: nowrap; text-align: right }
.matrix thead th { vertical-align: bottom; padding: .3rem 0; text-align: left }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg) }
.matrix td { border: 0; padding: 0; min-width: 1.1rem; height: 1.1rem; background: currentColor; text-align: center }
.matrix thead td { background: none }
.matrix b { display: block; padding: .15rem .35rem; font-weight: 500 }
.matrix .early { color: #10151a } .matrix .late { color: #fff }
@media (prefers-color-scheme: dark) { .matrix .early { color: #fff } .matrix .late { color: #10151a } }
"""

#: Under the pointer or finger the legend says the values there; away from it, the last ones.
SCRIPT = """
for (const chart of document.querySelectorAll("[data-chart]")) {
  const plot = chart.querySelector(".plot"), guide = chart.querySelector(".guide"), at = chart.querySelector(".at");
  const spots = chart.querySelectorAll(".spot"), shown = [...chart.querySelectorAll("output")];
  const last = shown.map(value => value.textContent), data = JSON.parse(chart.dataset.chart);
  const scale = data.log ? Math.log10 : value => value, [low, high] = data.y.map(scale), [from, to] = data.x;
  const across = value => 100 * (value - from) / (to - from) + "%";
  const up = value => 100 * (high - scale(value)) / (high - low) + "%";
  const text = value => value === null ? "\\u2013"
    : data.percent ? (100 * value).toFixed(1) + " %" : String(+value.toPrecision(4));
  const show = event => {
    const box = plot.getBoundingClientRect();
    const wanted = from + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (to - from);
    let where = Infinity;
    data.lines.forEach(([x, y], line) => {
      let near = 0;
      x.forEach((value, row) => { if (Math.abs(value - wanted) < Math.abs(x[near] - wanted)) near = row; });
      if (Math.abs(x[near] - wanted) < Math.abs(where - wanted)) where = x[near];
      shown[line].textContent = text(y[near]);
      spots[line].setAttribute("cx", across(x[near]));
      if (y[near] !== null) spots[line].setAttribute("cy", up(y[near]));
      spots[line].classList.toggle("on", y[near] !== null);
    });
    guide.setAttribute("x1", across(where));
    guide.setAttribute("x2", across(where));
    guide.classList.add("on");
    at.textContent = data.label + " " + +where.toPrecision(4);
  };
  const hide = () => {
    for (const drawn of [guide, ...spots]) drawn.classList.remove("on");
    shown.forEach((value, line) => { value.textContent = last[line]; });
    at.textContent = data.label;
  };
  for (const name of ["pointerdown", "pointermove"]) plot.addEventListener(name, show);
  for (const name of ["pointerleave", "pointercancel"]) plot.addEventListener(name, hide);
}
for (const chart of document.querySelectorAll("[data-heat]")) {
  const plot = chart.querySelector(".plot"), spot = chart.querySelector(".spot"), at = chart.querySelector(".at");
  const shown = chart.querySelector("output"), rest = shown.textContent, data = JSON.parse(chart.dataset.heat);
  const { columns, rows } = data, from = columns[0], last = columns.length - 1, length = columns[last] - from;
  const short = value => +value.toPrecision(4);
  const text = code => {
    if (code >= data.levels) return data.words[code - data.levels];
    const value = data.low + (code + .5) / data.levels * (data.high - data.low);
    return "\\u2248 " + (data.log ? String(+(10 ** value).toPrecision(2)) : Math.round(100 * value) + " %");
  };
  const show = event => {
    const box = plot.getBoundingClientRect();
    const share = (value, start, size) => Math.min(.9999, Math.max(0, (value - start) / size));
    const wanted = from + share(event.clientX, box.left, box.width) * length;
    const row = Math.floor(share(event.clientY, box.top, box.height) * rows.length);
    const column = columns.findIndex((edge, place) => place === last || edge > wanted) - 1;
    const place = {
      x: 100 * (columns[column] - from) / length + "%",
      width: 100 * (columns[column + 1] - columns[column]) / length + "%",
      y: 100 * row / rows.length + "%", height: 100 / rows.length + "%",
    };
    for (const name in place) spot.setAttribute(name, place[name]);
    spot.classList.add("on");
    shown.textContent = text(data.codes.indexOf(data.cells[row][column])) + " \\u00b7 layer " + rows[row];
    const start = data.pooled ? short(columns[column]) + "\\u2013" : "";
    at.textContent = data.label + " " + start + short(columns[column + 1]);
  };
  const hide = () => {
    spot.classList.remove("on");
    shown.textContent = rest;
    at.textContent = data.label;
  };
  for (const name of ["pointerdown", "pointermove"]) plot.addEventListener(name, show);
  for (const name of ["pointerleave", "pointercancel"]) plot.addEventListener(name, hide);
}
"""
