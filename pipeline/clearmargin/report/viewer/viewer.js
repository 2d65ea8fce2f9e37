"use strict";
(async () => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const root = document.documentElement;
  const byId = (name) => document.getElementById(name);
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const unpack = async (id) => {
    const packed = new Blob([bytes(byId(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    byId(id).textContent = "";
    return new Response(packed).arrayBuffer();
  };

  // Light or dark: what the system asks for, until the reader says otherwise.
  const setTheme = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    byId("theme").textContent = dark ? "light page" : "dark page";
  };
  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  byId("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

  const fail = (why) => {
    byId("wait").hidden = false;
    byId("wait").textContent = why;
    root.dataset.failed = why;
  };
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) return fail("This browser has no WebGL 2, which draws the image. The table beside it is complete.");

  const code = make("script");
  code.textContent = new TextDecoder().decode(await unpack("niivue"));
  document.head.append(code);
  if (!window.niivue) return fail("The drawing code was not let in by this page's policy.");
  const { Niivue, NVImage, SLICE_TYPE } = window.niivue;

  const nv = new Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 0.85, 0.2, 0.6], crosshairWidth: 0.15, crosshairWidthUnit: "percent", crosshairGap: 6,
    fontColor: [0.92, 0.92, 0.92, 1], show3Dcrosshair: true,
    isRadiologicalConvention: page.patient, isOrientationTextVisible: page.patient, isNearestInterpolation: true,
    dragAndDropEnabled: false, loadingText: "", logLevel: "error", isColorbar: false, multiplanarShowRender: 0,
    viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
  });
  const views = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL,
    "all planes": SLICE_TYPE.MULTIPLANAR, "3D": SLICE_TYPE.RENDER };
  nv.opts.sliceType = views[page.view];
  await nv.attachToCanvas(byId("canvas"));

  const file = await unpack("image");
  const greys = new Uint8Array(file, 352);
  const image = await NVImage.loadFromUrl({ url: file.slice(0), name: "image.nii" });
  image.cal_min = page.window[0];
  image.cal_max = page.window[1];
  nv.addVolume(image);

  // All layers are laid over each other here, and niivue draws the sum: one volume with a colour for each element. So what a
  // colour is depends on no colour table of niivue's, and a label's number can be anything.
  const header = new Uint8Array(file.slice(0, 352));
  const fields = new DataView(header.buffer);
  fields.setInt16(70, 2304, true);  // RGBA, 32 bits
  fields.setInt16(72, 32, true);
  fields.setFloat32(112, 1, true);
  fields.setFloat32(116, 0, true);
  const elements = page.drawn[0] * page.drawn[1] * page.drawn[2];
  const colourFile = new Uint8Array(352 + 4 * elements);
  colourFile.set(header);
  const sum = await NVImage.loadFromUrl({ url: colourFile.buffer, name: "layers.nii" });
  const ready = new Map();
  const load = async (layer) => {
    if (!ready.has(layer.key)) {
      const values = new Uint8Array(await unpack(`layer-${layer.key}`), 352);
      const used = new Uint32Array(values.reduce((n, v) => n + (v > 0), 0));
      for (let i = 0, k = 0; i < elements; i += 1) if (values[i]) used[k++] = i;
      ready.set(layer.key, { values, used, colours: bytes(layer.colours) });
    }
    return ready.get(layer.key);
  };
  const compose = async () => {
    const drawn = sum.img;
    drawn.fill(0);
    for (const layer of page.layers) {
      if (!byId(`on-${layer.key}`).checked) continue;
      const strength = byId(`opacity-${layer.key}`).valueAsNumber / 255;
      const { values, used, colours } = await load(layer);
      for (let k = 0; k < used.length; k += 1) {
        const from = 4 * values[used[k]];
        const to = 4 * used[k];
        const over = colours[from + 3] * strength;
        const under = (drawn[to + 3] / 255) * (1 - over);
        const alpha = over + under;
        if (alpha > 0) {
          for (let c = 0; c < 3; c += 1) drawn[to + c] = (colours[from + c] * over + drawn[to + c] * under) / alpha + 0.5;
          drawn[to + 3] = 255 * alpha + 0.5;
        }
      }
    }
  };
  let waiting = 0;
  let stale = false;
  const redraw = (layers) => {  // sliders fire faster than a processor without a graphics card draws
    stale = stale || layers;
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      if (stale) await compose();
      stale = false;
      nv.updateGLVolume();
      root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
    }, 60);
  };
  for (const layer of page.layers) {
    const line = make("div", undefined, "row");
    const box = make("input");
    Object.assign(box, { type: "checkbox", id: `on-${layer.key}`, checked: layer.shown });
    const name = make("label", layer.title);
    name.htmlFor = box.id;
    const slider = make("input");
    Object.assign(slider, { type: "range", id: `opacity-${layer.key}`, min: 0, max: 1, step: 0.05, value: layer.opacity,
      title: `opacity of ${layer.title}` });
    line.append(box, name, slider);
    if (layer.scale) {
      const [low, high, unit] = layer.scale;
      const bar = make("div", undefined, "bar");
      const strip = make("canvas");
      strip.width = 254;
      strip.height = 1;
      const colours = bytes(layer.colours);
      const pen = strip.getContext("2d");
      for (let i = 1; i < 255; i += 1) {
        pen.fillStyle = `rgb(${colours[4 * i]} ${colours[4 * i + 1]} ${colours[4 * i + 2]})`;
        pen.fillRect(i - 1, 0, 1, 1);
      }
      bar.append(make("span", String(low)), strip, make("span", `${Number(high.toPrecision(3))} ${unit}`));
      line.append(bar);
    }
    byId("layers").append(line);
    box.addEventListener("change", () => redraw(true));
    slider.addEventListener("input", () => redraw(true));
  }
  await compose();
  nv.addVolume(sum);

  // Where the crosshair is, in elements of what is drawn: niivue counts along the patient, the page as the image was read.
  const through = (matrix, [x, y, z]) => [0, 1, 2].map((k) => {
    const row = matrix[k];
    return row[0] * x + row[1] * y + row[2] * z + row[3];
  });
  const [depth, height, width] = page.drawn;
  const inside = (v, n) => Math.min(Math.max(Math.round(v), 0), n - 1);
  const here = () => {
    const [x, y, z] = through(page.toIndex, nv.frac2mm(nv.scene.crosshairPos));
    return [inside(x, width), inside(y, height), inside(z, depth)];
  };
  const note = () => {
    const [x, y, z] = here();
    const [low, high] = page.window;
    const grey = low + ((high - low) / 255) * greys[(z * height + y) * width + x];
    const value = page.grey ? `, value about ${Number(grey.toPrecision(3))}` : "";
    const slice = depth > 1 ? `${page.sliceName} ${z * page.step[0]} of 0-${page.shape[0] - 1}, ` : "";
    byId("where").textContent = `${slice}row ${y * page.step[1]}, column ${x * page.step[2]}${value}`;
    byId("slice").value = z;
    byId("sliceNow").textContent = String(z * page.step[0]);
  };
  const centreOn = () => {
    const zoom = byId("zoom").valueAsNumber;
    const at = nv.frac2mm(nv.scene.crosshairPos);
    const middle = nv.frac2mm([0.5, 0.5, 0.5]);
    const pan = zoom > 1 ? [0, 1, 2].map((k) => middle[k] - zoom * at[k]) : [0, 0, 0];
    nv.setPan2Dxyzmm([...pan, zoom]);
  };
  const go = (x, y, z) => {
    nv.scene.crosshairPos = nv.mm2frac(through(page.toWorld, [x, y, z]));
    centreOn();
    nv.drawScene();
    note();
  };
  nv.onLocationChange = note;
  const toSlice = (z) => {
    const [x, y] = here();
    go(x, y, Math.min(Math.max(z, 0), depth - 1));
  };
  Object.assign(byId("slice"), { min: 0, max: depth - 1, step: 1 });
  byId("slice").addEventListener("input", (event) => toSlice(event.target.valueAsNumber));
  byId("sliceRow").hidden = depth === 1;
  byId("zoom").addEventListener("input", () => {
    byId("zoomNow").textContent = `${byId("zoom").value} x`;
    centreOn();
  });

  // Grey values: the window within the one that the bytes hold.
  const [low, high] = page.window;
  byId("greys").hidden = !page.grey;
  const setWindow = () => {
    const middle = low + (high - low) * byId("level").valueAsNumber;
    const half = ((high - low) * byId("width").valueAsNumber) / 2;
    image.cal_min = middle - half;
    image.cal_max = middle + half;
    byId("levelNow").textContent = Number(middle.toPrecision(3));
    byId("widthNow").textContent = Number((2 * half).toPrecision(3));
    redraw(false);
  };
  for (const name of ["level", "width"]) byId(name).addEventListener("input", setWindow);
  byId("levelNow").textContent = Number(((low + high) / 2).toPrecision(3));
  byId("widthNow").textContent = Number((high - low).toPrecision(3));
  byId("smooth").addEventListener("change", (event) => nv.setInterpolation(!event.target.checked));

  for (const [name, kind] of Object.entries(views)) {
    if (!page.patient && name !== page.view) continue;
    const button = make("button", name);
    button.setAttribute("aria-pressed", String(name === page.view));
    button.addEventListener("click", () => {
      for (const other of byId("views").children) other.setAttribute("aria-pressed", String(other === button));
      nv.setSliceType(kind);
      note();
    });
    byId("views").append(button);
  }
  byId("views").hidden = !page.patient;

  // The table: a row an instance; a click or an arrow key goes to it.
  const head = byId("head");
  for (const column of page.columns) head.append(make("th", column));
  let picked = -1;
  const pick = (number) => {
    if (!page.rows.length) return;
    picked = (number + page.rows.length) % page.rows.length;
    const row = page.rows[picked];
    [...byId("rows").children].forEach((line, k) => line.setAttribute("aria-selected", String(k === picked)));
    byId("rows").children[picked].scrollIntoView({ block: "nearest" });
    const facts = byId("facts");
    facts.replaceChildren();
    for (const [name, value] of row.facts) facts.append(make("dt", name), make("dd", value));
    if (row.at) go(...row.at);
    root.dataset.picked = String(picked);
  };
  page.rows.forEach((row, k) => {
    const line = make("tr");
    row.cells.forEach((text, c) => {
      const cell = make("td", undefined, c === 1 ? row.kind : "");
      if (c === 0 && row.colour) {
        const dot = make("span", undefined, "dot");
        dot.style.background = row.colour;
        cell.append(dot);
      }
      cell.append(text);
      line.append(cell);
    });
    line.addEventListener("click", () => pick(k));
    byId("rows").append(line);
  });
  window.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) toSlice(here()[2] + step);
    else if (turn) pick(picked < 0 && turn < 0 ? -1 : picked + turn);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  byId("wait").hidden = true;
  go(...page.start);
  window.viewer = { nv, page, go, pick, here };
  requestAnimationFrame(() => {
    root.dataset.readyMs = String(Math.round(performance.now()));
  });
})().catch((error) => {
  document.documentElement.dataset.failed = String(error);
  document.getElementById("wait").hidden = false;
  document.getElementById("wait").textContent = `The image could not be drawn (${error}). The table is complete.`;
});
