// Panels of one picture each, at one height. All show the same part: the wheel zooms, dragging moves.
// `root.state` outlives a rerun of the page; the opacity outlives the picture.
const OPACITY = "onenip.opacity";
const SVG = "http://www.w3.org/2000/svg";
const make = (name, className, parent) => {
  const found = document.createElement(name);
  found.className = className;
  parent.append(found);
  return found;
};

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".viewer");
  const opacity = Number(sessionStorage.getItem(OPACITY) ?? 1);
  const state = (root.state ??= { zoom: 1, x: 0, y: 0, opacity, isMarking: false, marks: [] });
  root.replaceChildren();
  const panels = make("div", "panels", root);
  const contents = data.panels.map((panel) => drawPanel(panels, panel));

  const apply = () => {
    state.x = Math.min(0, Math.max(1 - state.zoom, state.x));
    state.y = Math.min(0, Math.max(1 - state.zoom, state.y));
    for (const one of contents) {
      one.style.transform = `translate(${100 * state.x}%, ${100 * state.y}%) scale(${state.zoom})`;
    }
    root.style.setProperty("--opacity", state.opacity);
  };
  const zoom = (factor, x, y) => {
    const next = Math.min(16, Math.max(1, state.zoom * factor));
    state.x = x - ((x - state.x) * next) / state.zoom;
    state.y = y - ((y - state.y) * next) / state.zoom;
    state.zoom = next;
    apply();
  };
  const locate = (frame, event) => {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  function drawPanel(parent, panel) {
    const figure = make("figure", "", parent);
    const frame = make("div", "frame", figure);
    frame.style.aspectRatio = `${data.width} / ${data.height}`;
    const content = make("div", "content", frame);
    make("img", "", content).src = panel.image;
    if (panel.heat) make("img", "heat", content).src = panel.heat;
    content.querySelectorAll("img").forEach((one) => (one.alt = panel.title));
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${data.width} ${data.height}`);
    content.append(svg);
    panel.boxes.forEach((box, at) => drawBox(svg, box, String(at + 1), "region"));
    if (panel.canMark) state.marks.forEach((box) => drawBox(svg, box, "", "mark"));
    make("figcaption", "", figure).textContent = panel.title;

    let start = null;
    frame.onwheel = (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, ...locate(frame, event));
    };
    frame.ondblclick = () => zoom(0.01, 0, 0);
    frame.onpointerdown = (event) => {
      if (event.button !== 0) return;
      frame.setPointerCapture(event.pointerId);
      const [x, y] = locate(frame, event);
      start = { x, y, left: state.x, top: state.y, isMark: panel.canMark && state.isMarking };
      if (start.isMark) start.rect = drawBox(svg, [0, 0, 0, 0], "", "mark");
    };
    frame.onpointermove = (event) => {
      if (!start) return;
      const [x, y] = locate(frame, event);
      if (start.isMark) {
        place(start.rect, toBox(start, x, y));
      } else {
        state.x = start.left + x - start.x;
        state.y = start.top + y - start.y;
        apply();
      }
    };
    frame.onpointerup = (event) => {
      if (start && start.isMark) {
        const box = toBox(start, ...locate(frame, event));
        if (box[2] > 1 && box[3] > 1) state.marks = [...state.marks, box];
        else start.rect.remove();
        setStateValue("boxes", state.marks);
      }
      start = null;
    };
    return content;
  }

  function toBox(from, x, y) {
    const inside = (value, shift, size) =>
      Math.round(Math.min(1, Math.max(0, (value - shift) / state.zoom)) * size);
    const xs = [from.x, x].map((one) => inside(one, state.x, data.width)).sort((a, b) => a - b);
    const ys = [from.y, y].map((one) => inside(one, state.y, data.height)).sort((a, b) => a - b);
    return [xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]];
  }

  function place(rect, [x, y, width, height]) {
    Object.entries({ x, y, width, height }).forEach(([key, value]) => rect.setAttribute(key, value));
  }

  function drawBox(svg, box, label, className) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", className);
    place(rect, box);
    svg.append(rect);
    if (label) {
      const text = document.createElementNS(SVG, "text");
      const size = Math.max(data.width, data.height) / 26;
      text.setAttribute("x", Math.min(box[0], data.width - size * label.length));
      text.setAttribute("y", box[1] > size ? box[1] - size / 5 : box[1] + box[3] + size);
      text.setAttribute("font-size", size);
      text.setAttribute("stroke-width", size / 6);
      text.textContent = label;
      svg.append(text);
    }
    return rect;
  }

  const bar = make("div", "bar", root);
  const addButton = (text, title, action) => {
    const button = make("button", "", bar);
    button.textContent = text;
    button.title = title;
    button.onclick = action;
    return button;
  };
  addButton("+", "zoom in", () => zoom(1.5, 0.5, 0.5));
  addButton("\u2212", "zoom out", () => zoom(1 / 1.5, 0.5, 0.5));
  addButton("whole", "show the whole image", () => zoom(0.01, 0, 0));
  if (data.panels.some((panel) => panel.heat)) {
    const label = make("label", "", bar);
    label.append("heat map ");
    const slider = make("input", "", label);
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity });
    slider.setAttribute("aria-label", "opacity of the heat map");
    slider.oninput = () => {
      state.opacity = Number(slider.value);
      sessionStorage.setItem(OPACITY, slider.value);
      apply();
    };
  }
  if (data.panels.some((panel) => panel.canMark)) {
    const toggle = addButton("mark a defect", "then draw boxes on the image", () => {
      state.isMarking = !state.isMarking;
      show();
    });
    const show = () => {
      toggle.classList.toggle("on", state.isMarking);
      root.classList.toggle("marking", state.isMarking);
    };
    show();
    addButton("clear marks", "remove all boxes", () => {
      state.marks = [];
      root.querySelectorAll("rect.mark").forEach((one) => one.remove());
      setStateValue("boxes", []);
    });
  }
  apply();
}
