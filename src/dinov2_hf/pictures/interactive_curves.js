// Draws the panels of interactive_curves.py into an element, as SVG. Plain JavaScript, so that a page needs nothing else.
"use strict";

function drawCurves(place, panels) {
  const all = panels.flatMap(panel => panel.curves.flatMap(curve => curve.steps));
  const [first] = ends(all, Math.min), [last] = ends(all, Math.max);
  const whole = first === last ? [first - 1, last + 1] : [first, last];  // a single step stands in the middle
  const view = { range: whole, pointer: null };
  const drawings = panels.map(panel => panelOf(place, panel, view, redraw));
  let waiting = false;
  function redraw(range) {
    if (range !== undefined) view.range = range || whole;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawings.forEach(draw => draw()); });
  }
  redraw();
}

// Spread arguments have a limit, so a long list is reduced first.
function ends(numbers, best) {
  return numbers.length ? [numbers.reduce((a, b) => best(a, b))] : [0];
}

function make(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function say(value, panel) {
  if (value === null || value === undefined) return "not finite";
  if (panel.percent) return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

// About `count` round numbers between two others.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= rough) || rough;
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high + step * 1e-9; number++) found.push(number * step);
  return found;
}

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
}

function panelOf(place, panel, view, redraw) {
  const width = panel.wide ? 1040 : 512, height = panel.wide ? 250 : 200;
  const left = 58, right = 12, top = 8, bottom = 26;
  const box = document.createElement("figure");
  box.className = panel.wide ? "panel wide" : "panel";
  const title = document.createElement("figcaption");
  title.textContent = panel.title;
  const legend = document.createElement("div");
  legend.className = "legend";
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title });
  box.append(title, legend, svg);
  place.appendChild(box);
  const hidden = new Set();
  const several = panel.curves.length > 1;
  panel.curves.forEach((curve, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.style.setProperty("--color", curve.color);
    button.innerHTML = "<i></i><span></span> <b></b>";
    button.querySelector("span").textContent = curve.label;
    button.disabled = !several;
    button.title = several ? "show or hide" : "";
    button.onclick = () => {
      if (hidden.has(number)) hidden.delete(number); else hidden.add(number);
      button.classList.toggle("off");
      redraw();
    };
    legend.appendChild(button);
  });
  const step = document.createElement("em");
  legend.appendChild(step);

  const toX = at => left + (at - view.range[0]) / (view.range[1] - view.range[0]) * (width - left - right);
  const toStep = x => view.range[0] + (x - left) / (width - left - right) * (view.range[1] - view.range[0]);
  const scaled = value => panel.logarithmic ? Math.log10(Math.max(value, 1e-12)) : value;
  let start = null;

  const at = event => {
    const bounds = svg.getBoundingClientRect();
    return Math.min(width - right, Math.max(left, (event.clientX - bounds.left) / bounds.width * width));
  };
  svg.onpointermove = event => { view.pointer = toStep(at(event)); redraw(); };
  svg.onpointerleave = () => { view.pointer = null; start = null; redraw(); };
  svg.onpointerdown = event => { start = toStep(at(event)); event.preventDefault(); };
  svg.onpointerup = event => {
    const end = toStep(at(event)), from = start;
    start = null;
    if (from === null || Math.abs(toX(end) - toX(from)) < 6) return redraw();
    redraw([Math.min(from, end), Math.max(from, end)]);
  };
  svg.ondblclick = () => redraw(null);

  return function draw() {
    svg.replaceChildren();
    const shown = panel.curves.filter((_, number) => !hidden.has(number));
    // With the points just outside, which lines lead to.
    const inside = index => curve => curve[index].filter((value, i) => value !== null &&
      (curve.steps[i + 1] ?? Infinity) >= view.range[0] && (curve.steps[i - 1] ?? -Infinity) <= view.range[1]);
    // A pale curve of single values may leave the frame; its running mean may not.
    let values = shown.flatMap(curve => inside(curve.mean ? "mean" : "values")(curve));
    if (panel.line && view.range) values.push(panel.line[0]);
    values = values.map(scaled);
    let low = ends(values, Math.min)[0], high = ends(values, Math.max)[0];
    const margin = 0.06 * (high - low) || Math.abs(high) * 0.05 || 1;
    low -= margin; high += margin;
    const toY = value => height - bottom - (scaled(value) - low) / (high - low) * (height - top - bottom);

    for (const number of ticks(low, high, panel.wide ? 5 : 4)) {
      if (panel.logarithmic && !Number.isInteger(Number(number.toFixed(6))) && high - low > 1) continue;
      const y = height - bottom - (number - low) / (high - low) * (height - top - bottom);
      make("line", { x1: left, x2: width - right, y1: y, y2: y, class: "grid" }, svg);
      const value = panel.logarithmic ? 10 ** number : number;
      make("text", { x: left - 6, y: y + 4, class: "tick end" }, svg,
        panel.percent ? `${Number((100 * value).toPrecision(3))} %` : say(Math.abs(value) < 1e-12 ? 0 : value, panel));
    }
    for (const number of ticks(view.range[0], view.range[1], panel.wide ? 10 : 5)) {
      if (!Number.isInteger(Number(number.toFixed(6)))) continue;  // there is no half of a step
      const x = toX(number);
      make("line", { x1: x, x2: x, y1: height - bottom, y2: height - bottom + 4, class: "axis" }, svg);
      make("text", { x, y: height - bottom + 17, class: "tick middle" }, svg, number.toLocaleString("en"));
    }
    make("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }, svg);

    const clip = make("svg", { x: left, y: top, width: width - left - right, height: height - top - bottom,
      viewBox: `${left} ${top} ${width - left - right} ${height - top - bottom}` }, svg);
    if (panel.line) {
      const y = toY(panel.line[0]);
      make("line", { x1: left, x2: width - right, y1: y, y2: y, class: "compare" }, clip);
      make("text", { x: width - right - 4, y: y < top + 16 ? y + 13 : y - 5, class: "tick end" }, clip, panel.line[1]);
    }
    const path = (steps, numbers) => {
      let words = "", pen = "M";
      numbers.forEach((value, i) => {
        if (value === null) { pen = "M"; return; }
        words += `${pen}${toX(steps[i]).toFixed(1)} ${toY(value).toFixed(1)}`;
        pen = "L";
      });
      return words;
    };
    for (const curve of shown) {
      if (curve.errors) {
        curve.steps.forEach((step, i) => {
          if (curve.values[i] === null || curve.errors[i] === null) return;
          make("line", { x1: toX(step), x2: toX(step), y1: toY(curve.values[i] - curve.errors[i]),
            y2: toY(curve.values[i] + curve.errors[i]), stroke: curve.color, class: "error" }, clip);
        });
      }
      const look = { fill: "none", stroke: curve.color };
      if (curve.mean) {
        make("path", { ...look, d: path(curve.steps, curve.values), class: "pale" }, clip);
        make("path", { ...look, d: path(curve.steps, curve.mean), class: "curve" }, clip);
      } else {
        make("path", { ...look, d: path(curve.steps, curve.values), class: "curve" }, clip);
        if (curve.steps.length <= 60) {
          curve.steps.forEach((step, i) => curve.values[i] !== null &&
            make("circle", { cx: toX(step), cy: toY(curve.values[i]), r: 2.6, fill: curve.color }, clip));
        }
      }
    }
    if (start !== null && view.pointer !== null) {
      const a = toX(start), b = toX(view.pointer);
      make("rect", { x: Math.min(a, b), width: Math.abs(a - b), y: top, height: height - top - bottom, class: "chosen" }, clip);
    }
    const words = legend.querySelectorAll("b");
    step.textContent = "";
    panel.curves.forEach((curve, number) => {
      words[number].textContent = "";
      if (view.pointer === null || hidden.has(number) || !curve.steps.length) return;
      const i = nearest(curve.steps, view.pointer);
      words[number].textContent = say(curve.values[i], panel);
      step.textContent = `step ${curve.steps[i].toLocaleString("en")}`;
      if (curve.values[i] !== null) {
        make("circle", { cx: toX(curve.steps[i]), cy: toY(curve.values[i]), r: 4, fill: curve.color, class: "point" }, clip);
      }
    });
    if (view.pointer !== null) {
      const x = toX(view.pointer);
      make("line", { x1: x, x2: x, y1: top, y2: height - bottom, class: "pointer" }, clip);
    }
  };
}
