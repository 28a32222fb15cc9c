"use strict";
// The state of the page is its address; everything shown is drawn from it. Text enters the page as text only.
(() => {
  const $ = (id) => document.getElementById(id);
  const LISTED = 24, BROWSED = 60, MOST = 500, MOST_BYTES = 50e6;
  let gallery = null, found = null, listed = null, waiting = null;

  // ---- the state and its address
  const ONE = ["image", "picture", "text", "crop", "rerank", "head", "folder", "label", "k", "cut", "compare", "heat"];
  const read = () => {
    const values = new URLSearchParams(location.search), state = {};
    for (const key of ONE) state[key] = values.get(key) || "";
    state.relevant = values.getAll("relevant");
    state.not_relevant = values.getAll("not_relevant");
    return state;
  };
  const address = (state, keys) => {
    const values = new URLSearchParams();
    for (const key of keys || [...ONE, "relevant", "not_relevant"])
      for (const value of [].concat(state[key] || [])) values.append(key, value);
    const text = values.toString();
    return text ? "?" + text : "";
  };
  const go = (changes, replace) => {
    const url = "/" + address({ ...read(), ...changes });
    history[replace ? "replaceState" : "pushState"](null, "", url);
    return draw();
  };
  const kept = () => {  // where and how to search, which a new query keeps
    const { folder, label, rerank, head } = read();
    return { folder, label, rerank, head };
  };
  const from = (image, box) => {
    return "/" + address({ ...kept(), image, crop: box ? box.join(",") : "" });
  };

  // ---- requests
  const request = async (url, options) => {
    let response;
    try { response = await fetch(url, options); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not respond: is it still running?");
    }
    const content = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(content.error || `The server refused this (${response.status}).`);
    return content;
  };
  const api = (name, state, keys, options) => request(`/api/${name}${address(state, keys)}`, options);
  const thumbnail = (image) => "/api/thumbnail" + address({ image });
  const large = (state) => "/api/picture" + address(state, ["image", "picture"]);
  const complain = (error) => {
    if (error && error.name === "AbortError") return;
    $("error").hidden = !error;
    if (error) $("error").firstChild.textContent = error.message;
  };

  const upload = async (file) => {
    complain(null);
    if (!file) return;
    if (file.size > MOST_BYTES) return complain(new Error(`${file.name}: more than 50 MB; choose a smaller picture`));
    document.body.classList.add("busy");
    $("headline").textContent = "Reading the picture …";
    try {
      const name = file.name || "pasted picture";
      const { picture } = await request("/api/pictures" + address({ name }, ["name"]), { method: "POST", body: file });
      history.pushState(null, "", "/" + address({ ...kept(), picture }));
      await draw();
      scrollTo(0, 0);
    } catch (error) {
      headline();
      complain(error);
    } finally {
      document.body.classList.remove("busy");
    }
  };

  // ---- drawing
  const draw = async () => {
    const state = read(), searching = Boolean(state.image || state.picture || state.text);
    if (waiting) waiting.abort();
    const mine = (waiting = new AbortController());
    const options = { signal: mine.signal };
    document.body.classList.toggle("searching", searching);
    document.body.classList.add("busy");
    $("query").hidden = !searching;
    const began = performance.now();
    try {
      if (!gallery) await drawGallery();
      choose(state);
      if (searching) {
        drawQuery(state);
        const keys = ["image", "picture", "text", "crop", "rerank", "head", "folder", "label", "k", "relevant", "not_relevant"];
        const key = address(state, keys);
        if (!found || found.key !== key) {
          found = { key, ...(await api("search", { k: String(LISTED), ...withoutEmpty(state) }, keys, options)) };
          found.total = performance.now() - began;
        }
        listed = found.results;
      } else {
        found = null;
        const { folder, label } = state, count = String(Math.min(Number(state.k) || BROWSED, 200));
        const page = await api("images", { folder, label, count, spread: "1" }, ["folder", "label", "count", "spread"], options);
        listed = page.results;
        listed.all = page.images;
      }
      complain(null);
      drawFound(state);
    } catch (error) {
      if (error.name === "AbortError") return;
      found = listed = null;
      $("grid").replaceChildren();
      $("verdict").hidden = true;
      $("timing").textContent = $("headline").textContent = "";
      complain(error);
    } finally {
      if (waiting === mine) document.body.classList.remove("busy");
    }
  };
  const withoutEmpty = (state) => Object.fromEntries(Object.entries(state).filter(([, value]) => value.length));
  const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  const digits = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

  const drawGallery = async () => {
    gallery = await request("/api/gallery");
    $("gallery-words").textContent = gallery.made;
    $("gallery-words").title = gallery.searched;
    const fill = (name, all, entries) => {
      const options = [new Option(all, ""), ...entries.map(([value, text]) => new Option(text, value))];
      $(name).replaceChildren(...options);
      $(name + "-tool").hidden = !entries.length;
    };
    const top = gallery.folders.filter((one) => !one.name.includes("/")).map((one) => one.name).sort();
    const same = JSON.stringify(top) === JSON.stringify(gallery.labels.map((one) => one.name).sort());
    const named = (one) => [one.name, `${one.name} (${one.images})`];
    fill("label", "all", gallery.labels.map(named));
    fill("folder", "all", same && top.length === gallery.folders.length ? [] : gallery.folders.map(named));
    fill("rerank", "none", gallery.reranks.map((name) => [name, name.replaceAll("_", " ")]));
    const headName = (name) => (name === "features" ? "features as they are" : `head of ${name.split("/").filter(Boolean).pop()}`);
    const others = gallery.heads.filter((name) => name !== gallery.head);
    fill("head", headName(gallery.head), others.map((name) => [name, headName(name)]));
  };
  const choose = (state) => {
    const searching = Boolean(state.image || state.picture || state.text);
    for (const name of ["folder", "label", "rerank", "head"]) $(name).value = state[name];
    $("rerank-tool").hidden = !searching || Boolean(state.text) || !gallery.reranks.length;
    $("head-tool").hidden = !searching || Boolean(state.text) || gallery.heads.length < 2;
    $("words").hidden = !gallery.text;
    $("text").value = state.text;
    $("cut-tool").hidden = !searching;
  };

  const drawQuery = (state) => {
    document.body.classList.toggle("by-words", Boolean(state.text));
    if (state.text) return showBox(null);
    const image = $("query-picture"), source = large(state);
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = "the query";
    $("whole").hidden = !state.crop;
    if (!state.crop) showBox(null);
  };
  const fit = (element, width, height, room) => {  // as large as fits, before the picture has come
    element.style.aspectRatio = `${width} / ${height}`;
    element.style.width = `min(100%, calc(${room} * ${(width / height).toFixed(4)}))`;
  };
  const drawVerdict = (state) => {
    const name = state.text ? `“${found.query}”` : found.query.split("/").pop();
    if (!state.text) fit($("frame"), found.width, found.height, "var(--room)");
    $("query-name").textContent = name + (state.crop ? " · a part of it" : "");
    $("query-name").title = found.query;
    document.title = `${name} · fgis`;
    $("verdict").hidden = false;
    $("verdict").className = `verdict ${found.verdict}`;
    $("verdict-words").textContent = found.words[0].toUpperCase() + found.words.slice(1) + ".";
    $("verdict-rates").textContent = found.rates;
    const stages = Object.entries(found.milliseconds).map(([name, value]) => `${name} ${value.toFixed(0)}`).join(", ");
    $("timing").textContent = `Shown after ${found.total.toFixed(0)} ms (server: ${stages}).`;
    if (state.crop) {
      const [x, y, w, h] = state.crop.split(",").map(Number);
      showBox({ x: x / found.width, y: y / found.height, w: w / found.width, h: h / found.height });
    }
  };
  const drawMarks = (state) => {
    const marks = [...state.relevant.map((id) => [id, "yes"]), ...state.not_relevant.map((id) => [id, "no"])];
    $("marks").hidden = !marks.length;
    if (!marks.length) return;
    const { new: fresh, up, down, same } = found.changes;
    $("changes").textContent =
      `${count(marks.length, "mark")} moved the query: ${fresh} new, ${up} up, ${down} down, ${same} in place.`;
    $("marked").replaceChildren(...marks.map(([id, kind]) => {
      const item = document.createElement("li"), button = document.createElement("button"), image = new Image();
      item.className = kind;
      button.type = "button";
      button.title = button.ariaLabel = `Remove the mark "${kind === "yes" ? "relevant" : "not relevant"}" of ${id}`;
      button.onclick = () => mark(id, "");
      image.src = thumbnail(id);
      image.alt = "";
      button.append(image);
      item.append(button);
      return item;
    }));
  };

  const drawFound = (state) => {
    if (found) {
      drawVerdict(state);
      drawMarks(state);
      drawCut(state);
    } else document.title = "fgis";
    const before = document.activeElement && document.activeElement.closest("#grid li");
    const focused = before && [before.dataset.id, document.activeElement.className];
    $("grid").replaceChildren(...listed.map((one) => tile(one, state)));
    if (focused) {
      const again = [...$("grid").children].find((item) => item.dataset.id === focused[0]);
      (again && again.getElementsByClassName(focused[1])[0] || $("grid")).focus();
    }
    applyCut(state);
    const depth = Number(state.k) || (found ? LISTED : BROWSED);
    const all = found ? found.searched : listed.all, most = found ? MOST : 200;
    $("more").hidden = listed.length < depth || (!inParts() && listed.length >= all) || depth >= most;
    drawCompare(state);
  };
  const inParts = () => Boolean(found) && listed.some((one) => one.box);  // one picture may be listed several times
  const headline = () => {
    const shown = [...$("grid").children].filter((item) => !item.hidden).length;
    if (!listed) $("headline").textContent = "";
    else if (!found) {
      $("headline").textContent = listed.length
        ? `Or begin with a picture of the gallery: ${count(listed.length, "picture")} of ${listed.all.toLocaleString("en")}`
        : "No picture here.";
    } else {
      const cut = shown === listed.length ? "" : `, ${shown} of them within the cut-off`;
      const shownOf = inParts()
        ? `${count(listed.length, "part")} of ${count(found.searched, "picture")}`
        : `${count(listed.length, "picture")} of ${found.searched.toLocaleString("en")}`;
      $("headline").textContent = `${shownOf}, ${found.order}${cut}`;
    }
  };
  const tile = (one, state) => {
    const item = $("tile").content.firstElementChild.cloneNode(true), part = (name) => item.querySelector(name);
    const name = one.image_id.split("/").pop();
    item.dataset.id = one.image_id;
    part(".picture").href = from(one.image_id, one.box);
    if (one.box) placeOnTile(part(".picture i"), one); else part(".picture i").remove();
    part(".picture").title = `Search with ${one.image_id}`;
    part("img").src = thumbnail(one.image_id);
    part("img").alt = `${one.label_name} ${name}`.trim();
    part(".label").textContent = one.label_name;
    part(".label").hidden = !one.label_name;
    part(".id").textContent = name;
    part(".id").title = one.image_id;
    if (!found) {
      for (const absent of [".bar", ".line", ".acts"]) part(absent).remove();
      item.classList.add("plain");
      return item;
    }
    const percent = (value) => `${(100 * value).toFixed(1)}%`;
    item.dataset.distance = one.by_features;
    part(".bar i").style.width = percent(one.similarity);
    if (one.near) item.classList.add("near");
    if (found.limit !== null && one.by_features > found.limit) item.classList.add("far");
    const within = one.near ? ", within the threshold" : "";
    part(".bar").ariaLabel = part(".bar").title = `similarity ${one.similarity.toFixed(3)}${within}`;
    const line = found.threshold === null ? null : similarityOf(found.threshold);
    if (line === null) part(".bar b").remove(); else part(".bar b").style.left = percent(line);
    part(".rank").textContent = one.rank;
    part(".value").textContent = `similarity ${one.similarity.toFixed(2)}`;
    if (found.changes) moved(part(".moved"), one);
    for (const [selector, marked, kind] of [[".yes", state.relevant, "relevant"], [".no", state.not_relevant, "not_relevant"]]) {
      const here = marked.includes(one.image_id);
      part(selector).setAttribute("aria-pressed", here);
      part(selector).onclick = () => mark(one.image_id, here ? "" : kind);
      if (here) item.classList.add(kind.replace("_", "-"));
    }
    part(".beside").onclick = () => go({ compare: one.image_id });
    return item;
  };
  const placeOnTile = (element, one) => {  // tiles are 4:3, and pictures lie in their middle
    const ratio = (one.width / one.height) * (3 / 4), [w, h] = [Math.min(1, ratio), Math.min(1, 1 / ratio)];
    const [x, y, width, height] = one.box;
    setBox(element, (1 - w) / 2 + (w * x) / one.width, (1 - h) / 2 + (h * y) / one.height, (w * width) / one.width, (h * height) / one.height);
  };
  const similarityOf = (distance) => {  // as the server computes it, for the mark of the threshold
    if (gallery.distance === "cosine") return Math.min(1, Math.max(0, 1 - distance));
    if (gallery.distance === "unit_euclidean") return Math.min(1, Math.max(0, 1 - distance ** 2 / 2));
    return null;
  };
  const moved = (place, one) => {
    const steps = one.rank_before === null ? null : one.rank_before - one.rank;
    if (steps === 0) return;
    place.textContent = steps === null ? "new" : steps > 0 ? `▲${steps}` : `▼${-steps}`;
    place.classList.add(steps === null ? "new" : steps > 0 ? "up" : "down");
    place.title = steps === null ? "not listed without marks" : `was ${one.rank_before} without marks`;
  };
  const mark = (id, kind) => {
    const state = read(), without = (list) => list.filter((one) => one !== id);
    const changes = { relevant: without(state.relevant), not_relevant: without(state.not_relevant) };
    if (kind) changes[kind] = [...changes[kind], id];
    go(changes);
  };

  // ---- the cut-off
  const drawCut = (state) => {
    const farthest = Math.max(found.limit || 0, found.threshold || 0, ...listed.map((one) => one.by_features));
    const most = Math.ceil(1050 * (farthest || 1)) / 1000;
    const least = Math.min(0, ...listed.map((one) => one.by_features));
    $("cut").min = least;
    $("cut").max = most;
    $("cut").value = state.cut === "" ? most : state.cut;
    const both = found.limit === null || found.limit === found.threshold;  // one line where they are one
    const ticks = [[both && found.limit !== null ? "threshold and limit" : "threshold", found.threshold]];
    if (!both) ticks.push(["limit", found.limit]);
    if (found.threshold === null) ticks.length = 0;
    const place = (value) => (value - least) / (most - least);
    const close = ticks.length === 2 && place(found.limit) - place(found.threshold) < 0.3;
    $("ticks").replaceChildren(...ticks.map(([name, value], number) => {
      const tick = document.createElement("span");
      const edge = place(value) < 0.15 ? " first" : place(value) > 0.85 ? " last" : "";  // no label leaves the page
      tick.className = (number ? "limit" : "threshold") + (close && number ? " low" : "") + edge;
      tick.textContent = `${name} ${digits(value)}`;
      tick.style.left = `calc(8px + ${place(value)} * (100% - 16px))`;
      return tick;
    }));
    $("ticks").parentElement.classList.toggle("two", close);
  };
  const applyCut = (state) => {
    const none = state.cut === "" || Number(state.cut) >= Number($("cut").max);
    const within = (item) => none || Number(item.dataset.distance) <= Number(state.cut);
    if (found) for (const item of $("grid").children) item.hidden = !within(item);
    $("cut-value").textContent = none ? "none" : digits(Number(state.cut));
    headline();
  };

  // ---- side by side
  const drawCompare = (state) => {
    const place = found && state.compare && !state.text ? listed.findIndex((one) => one.image_id === state.compare) : -1;
    if (place < 0) {
      heated = "";
      if ($("compare").open) $("compare").close();
      return;
    }
    const one = listed[place];
    $("left").src = large(state);
    $("right").src = large({ image: one.image_id });
    $("left-name").textContent = found.query;
    $("right-name").textContent = one.image_id;
    fit($("left").parentElement, found.width, found.height, "var(--side)");
    fit($("right").parentElement, one.width, one.height, "var(--side)");
    const crop = state.crop ? state.crop.split(",").map(Number) : null;
    $("left-box").hidden = !crop;
    if (crop) setBox($("left-box"), crop[0] / found.width, crop[1] / found.height, crop[2] / found.width, crop[3] / found.height);
    $("right-box").hidden = !one.box;
    if (one.box) setBox($("right-box"), one.box[0] / one.width, one.box[1] / one.height, one.box[2] / one.width, one.box[3] / one.height);
    const beyond = found.limit !== null && one.by_features > found.limit ? "limit" : "threshold";
    const verdict = one.near === null ? ""
      : one.near ? `, within the threshold ${digits(found.threshold)}` : `, beyond the ${beyond} ${digits(found[beyond])}`;
    const label = one.label_name ? `${one.label_name}: ` : "";
    $("compare-words").textContent =
      `${label}rank ${one.rank}, similarity ${digits(one.similarity)}, distance ${digits(one.by_features)}${verdict}.`;
    $("search-on").href = from(one.image_id, one.box);
    for (const [button, step] of [["previous", -1], ["next", 1]]) {
      const other = listed[place + step];
      $(button).disabled = !other;
      $(button).onclick = () => other && go({ compare: other.image_id }, true);
    }
    drawHeat(state, one);
    if (!$("compare").open) $("compare").showModal();
  };
  const closeCompare = () => { if (read().compare) go({ compare: "", heat: "" }); };
  let heated = "";  // the pair whose parts are drawn
  const drawHeat = async (state, one) => {
    const wanted = gallery.agreement && state.heat ? address({ ...state, with: one.image_id }, ["image", "picture", "crop", "with"]) : "";
    $("heat").hidden = !gallery.agreement;
    $("heat").setAttribute("aria-pressed", Boolean(wanted));
    if (wanted === heated && wanted) return;
    heated = wanted;
    $("left-heat").hidden = $("right-heat").hidden = true;
    if (!wanted) return;
    try {
      const parts = await request("/api/agreement" + wanted);
      if (heated !== wanted) return;
      const box = state.crop ? state.crop.split(",").map(Number) : [0, 0, found.width, found.height];
      setBox($("left-heat"), box[0] / found.width, box[1] / found.height, box[2] / found.width, box[3] / found.height);
      paintHeat($("left-heat"), parts.query);
      paintHeat($("right-heat"), parts.result);
      $("compare-words").textContent += " Bright places make up most of the similarity, dark ones little.";
    } catch (error) {
      heated = "";
      $("compare-words").textContent = error.message;
    }
  };
  const paintHeat = (canvas, parts) => {  // one pixel for each place; the browser blends them
    const most = Math.max(...parts.flat());
    canvas.height = parts.length;
    canvas.width = parts[0].length;
    const drawing = canvas.getContext("2d"), pixels = drawing.createImageData(canvas.width, canvas.height);
    parts.flat().forEach((part, place) => {
      const share = most > 0 ? Math.min(1, Math.max(0, part / most)) : 0;
      pixels.data.set([8, 10, 14, 225 * (1 - share ** 1.2)], 4 * place);
    });
    drawing.putImageData(pixels, 0, 0);
    canvas.hidden = false;
  };

  // ---- the box on the query, in shares of the picture
  let box = null, start = null;
  const setBox = (element, x, y, w, h) => Object.assign(element.style,
    { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * w}%`, height: `${100 * h}%` });
  const showBox = (wanted) => {
    box = wanted;
    $("box").hidden = !box;
    if (box) setBox($("box"), box.x, box.y, box.w, box.h);
  };
  const searchBox = () => {
    if (!box || !found) return;
    const x = Math.round(box.x * found.width), y = Math.round(box.y * found.height);
    const w = Math.min(found.width - x, Math.round(box.w * found.width));
    const h = Math.min(found.height - y, Math.round(box.h * found.height));
    if (w >= 8 && h >= 8) go({ crop: `${x},${y},${w},${h}`, relevant: [], not_relevant: [], compare: "" });
    else if (!read().crop) showBox(null);
  };
  const point = (event) => {
    const area = $("frame").getBoundingClientRect(), inside = (value) => Math.min(1, Math.max(0, value));
    return [inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height)];
  };
  $("frame").addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = point(event);
    $("frame").setPointerCapture(event.pointerId);
  });
  $("frame").addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = point(event);
    showBox({ x: Math.min(x, start[0]), y: Math.min(y, start[1]), w: Math.abs(x - start[0]), h: Math.abs(y - start[1]) });
  });
  $("frame").addEventListener("pointerup", (event) => {
    if (!start) return;
    const [x, y] = point(event), far = Math.abs(x - start[0]) > 0.02 && Math.abs(y - start[1]) > 0.02;
    start = null;
    if (far) searchBox(); else if (found) drawVerdictBox();
  });
  const drawVerdictBox = () => { const state = read(); showBox(null); if (state.crop) drawVerdict(state); };
  $("frame").addEventListener("pointercancel", () => { start = null; drawVerdictBox(); });
  $("frame").addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (steps) {
      event.preventDefault();
      event.stopPropagation();
      if (!box) return showBox({ x: 0.25, y: 0.25, w: 0.5, h: 0.5 });
      const [dx, dy] = steps.map((step) => 0.03 * step), next = { ...box };
      const bound = (value, low, high) => Math.min(high, Math.max(low, value));
      if (event.shiftKey) {
        next.w = bound(box.w + dx, 0.05, 1 - box.x);
        next.h = bound(box.h + dy, 0.05, 1 - box.y);
      } else {
        next.x = bound(box.x + dx, 0, 1 - box.w);
        next.y = bound(box.y + dy, 0, 1 - box.h);
      }
      showBox(next);
    } else if (event.key === "Enter") searchBox();
    else if (event.key === "Escape") { if (read().crop) go({ crop: "" }); else showBox(null); }
  });

  // ---- what people do
  addEventListener("popstate", draw);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    draw().then(() => scrollTo(0, 0));
  });
  $("file").addEventListener("change", () => { upload($("file").files[0]); $("file").value = ""; });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) { event.preventDefault(); upload(file); }
  });
  let depth = 0;
  addEventListener("dragenter", () => { depth += 1; document.body.classList.add("dropping"); });
  addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) document.body.classList.remove("dropping"); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dropping");
    upload(event.dataTransfer.files[0]);
  });
  for (const name of ["folder", "label", "rerank", "head"]) $(name).addEventListener("change", () => go({ [name]: $(name).value, k: "" }));
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim(), { folder, label } = read();
    if (!text) return;
    history.pushState(null, "", "/" + address({ folder, label, text }, ["folder", "label", "text"]));
    draw().then(() => scrollTo(0, 0));
  });
  $("cut").addEventListener("input", () => {
    const cut = Number($("cut").value) >= Number($("cut").max) ? "" : $("cut").value;
    history.replaceState(null, "", "/" + address({ ...read(), cut }));
    applyCut(read());
  });
  $("more").addEventListener("click", () => go({ k: String(Math.min(2 * listed.length, found ? MOST : 200)) }, true));
  $("whole").addEventListener("click", () => go({ crop: "" }));
  $("clear-marks").addEventListener("click", () => go({ relevant: [], not_relevant: [] }));
  $("error").querySelector("button").addEventListener("click", () => complain(null));
  $("close").addEventListener("click", closeCompare);
  $("heat").addEventListener("click", () => go({ heat: read().heat ? "" : "1" }, true));
  $("compare").addEventListener("cancel", (event) => { event.preventDefault(); closeCompare(); });
  $("compare").addEventListener("click", (event) => { if (event.target === $("compare")) closeCompare(); });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, #frame")) return;
    if ($("compare").open) {
      if (event.key === "ArrowLeft") $("previous").click();
      if (event.key === "ArrowRight") $("next").click();
      return;
    }
    if (event.key === "u") return $("file").click();
    const tiles = [...$("grid").children].filter((item) => !item.hidden), item = event.target.closest("#grid li");
    const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step && (item || event.target === $("grid"))) {
      const next = tiles[item ? tiles.indexOf(item) + step : 0];
      if (next) { event.preventDefault(); next.querySelector(".picture").focus(); }
    }
    const button = item && { r: ".yes", n: ".no", c: ".beside" }[event.key];
    if (button && item.querySelector(button)) { event.preventDefault(); item.querySelector(button).click(); }
  });

  const themes = ["", "dark", "light"];
  const setTheme = (name) => {
    if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
    $("theme").title = `Colours: ${name || "as the system"}`;
  };
  let theme = "";
  try { theme = localStorage.getItem("theme") || ""; } catch { /* storage may be forbidden */ }
  setTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    setTheme(theme);
    try { localStorage.setItem("theme", theme); } catch { /* it lasts until the page is closed */ }
  });

  draw();
})();
