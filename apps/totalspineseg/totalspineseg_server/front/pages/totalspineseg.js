// Served with OHIF: the functions that the changed places of its bundle call. See totalspineseg_server/front/bundle.py.
(function () {
  'use strict';
  const COLORS = /*COLORS*/{};
  const ORDER = /*ORDER*/[];
  const TITLE = 'TotalSpineSeg';
  const READY_MS = 250;
  const REVIEW = '_review';
  const ASK_MS = 700;
  const SEGMENTATION = '1';
  const REPORT = 'x-totalspineseg-report';
  const MARK = ' ?';
  const COLOR_OF = { accepted: '#4ade80', prediction: '#60a5fa' };
  const STYLE = `
    .monaiLabelPanel .tab:has(> #tab-4), .monaiLabelPanel .modelSelector > div { display: none !important; }
    .monaiLabelPanel .w3-center { color: #000; }
    .monaiLabelPanel input:not([type=radio]):not([type=checkbox]), .monaiLabelPanel select, .optionsForm select,
    .optionsInput { color: #000; background: #fff; }
    #totalspineseg-side { margin: 6px 4px; font-size: 12px; line-height: 1.4; color: #fff; }
    #totalspineseg-side a, .totalspineseg-answer a { color: #5acce6; text-decoration: underline; }
    #totalspineseg-side progress { width: 100%; height: 8px; }
    #totalspineseg-side ul { margin: 4px 0; max-height: 30vh; overflow-y: auto; }
    #totalspineseg-side li { margin: 2px 0; }
    #totalspineseg-side button { text-align: left; color: #fbbf24; text-decoration: underline; }
    #totalspineseg-side p > button { padding: 2px 8px; color: #000; background: #fbbf24; border-radius: 4px;
      text-decoration: none; }
    #totalspineseg-answers { position: fixed; left: 50%; bottom: 12px; transform: translateX(-50%); z-index: 99998;
      width: min(640px, 90vw); font: 14px/1.4 sans-serif; }
    .totalspineseg-answer { display: flex; gap: 12px; align-items: start; margin-top: 6px; padding: 10px 12px;
      color: #fff; background: #16202b; border: 1px solid #3c5d80; border-left: 6px solid; border-radius: 4px; }
    .totalspineseg-answer > div { flex: 1; max-height: 30vh; overflow-y: auto; }
    .totalspineseg-answer button { font-size: 20px; line-height: 1; color: #fff; }
    #totalspineseg-hover { position: fixed; z-index: 99997; padding: 1px 6px; pointer-events: none; color: #fff;
      background: rgba(0, 0, 0, 0.8); border-radius: 3px; font: 13px sans-serif; }`;

  const BRUSH_MM = { min: 0.5, max: 30, step: 0.5, value: 4 };

  // One tool of the toolbox in its two shapes.
  function brush(id, icon, label, toolNames) {
    return {
      id,
      icon,
      label,
      evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames },
      options: [
        {
          id: `${id}-radius`,
          name: 'Radius (mm)',
          type: 'range',
          ...BRUSH_MM,
          commands: { commandName: 'setBrushSize', commandOptions: { toolNames } },
        },
        {
          id: `${id}-shape`,
          name: 'Shape',
          type: 'radio',
          value: toolNames[0],
          values: [
            { value: toolNames[0], label: 'Circle' },
            { value: toolNames[1], label: 'Sphere' },
          ],
          commands: 'setToolActiveToolbar',
        },
      ],
    };
  }

  // An element with its attributes and what it contains.
  function element(name, attributes = {}, ...content) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === 'onclick') {
        made.addEventListener('click', value);
      } else {
        made.setAttribute(key, value);
      }
    }
    made.append(...content);
    return made;
  }

  function service() {
    return window.services.segmentationService;
  }

  function segments() {
    return service().getSegmentation(SEGMENTATION)?.segments || {};
  }

  // --- beside the picture: progress, what is doubtful, what the checks found

  // The published name of each segment, the series on the screen, and what is displayed about its result.
  const known = { names: {}, panel: null, running: null, message: '', marked: [], levels: [], findings: [] };

  function series() {
    try {
      return known.panel.getActiveViewportInfo().displaySet.SeriesInstanceUID;
    } catch (error) {
      return '';
    }
  }

  function reviewLink() {
    const uid = series();
    const address = uid ? `/#/review/${encodeURIComponent(uid)}` : '/';
    return element('a', { href: address, target: '_blank', rel: 'noopener' }, uid ? 'Review page of this scan' : 'Worklist');
  }

  function drawSide() {
    const side = document.getElementById('totalspineseg-side');
    if (!side) {
      return;
    }
    const parts = [element('p', {}, reviewLink())];
    if (known.running) {
      const { text, place, stages } = known.running;
      const bar = element('progress', { max: stages, 'aria-label': 'Progress' });
      if (place) {
        bar.value = place;
      }
      parts.push(element('p', { role: 'status' }, text), bar);
    }
    if (known.message) {
      parts.push(element('p', { id: 'totalspineseg-message' }, known.message));
    }
    const lines = known.levels.map(level => {
      const other = level.runner_up;
      const rather = other ? ` or ${other.name} (${Math.round(100 * other.probability)}%)` : '';
      return element('li', {}, element('button', { onclick: () => jumpTo(level.name) }, `${level.name}${MARK}${rather}`));
    });
    lines.push(...known.findings.map(finding => element('li', {}, finding)));
    if (lines.length) {
      parts.push(element('ul', {}, ...lines));
    }
    if (known.marked.length) {
      parts.push(element('p', {}, element('button', { onclick: confirmNames }, 'Confirm all names')));
    }
    side.replaceChildren(...parts);
  }

  // Show which stage of the server's work the reader is waiting for.
  async function watch(model, image) {
    const mine = (known.running = { text: 'Asking the server', place: 0, stages: 1 });
    while (known.running === mine) {
      drawSide();
      await new Promise(resolve => setTimeout(resolve, ASK_MS));
      const response = await fetch('/infer/progress').catch(() => null);
      if (response?.ok) {
        const { running, waiting } = await response.json();
        if (known.running === mine && running && running.model === model && running.image === image) {
          const seconds = `${Math.round(running.seconds)} s`;
          Object.assign(mine, { text: `${running.stage} (${seconds})`, place: running.place, stages: running.stages });
        } else if (running) {
          mine.text = `Waiting: the server is working on another scan (${waiting} waiting)`;
        }
      }
    }
  }

  // Read the doubtful levels and the findings of a result from the server.
  async function readReview(image, prediction) {
    const response = await fetch(`/scans/${encodeURIComponent(image)}`).catch(() => null);
    const scan = response?.ok ? await response.json() : {};
    if (scan.prediction === prediction) {
      known.levels = scan.levels.filter(level => level.doubtful);
      known.findings = scan.findings;
      drawSide();
    }
  }

  // Restore the published names, because a result is laid over the segments by name; the reader may have renamed some.
  function restoreNames() {
    for (const [index, name] of Object.entries(known.names)) {
      if (segments()[index] && segments()[index].label !== name) {
        service().setSegmentLabel(SEGMENTATION, Number(index), name);
      }
    }
  }

  function markNames(marked) {
    known.marked = marked;
    for (const [index, name] of Object.entries(known.names)) {
      if (segments()[index] && marked.includes(name)) {
        service().setSegmentLabel(SEGMENTATION, Number(index), name + MARK);
      }
    }
  }

  // Remove all marks that are left, so that 20 segments need not be renamed one by one.
  function confirmNames() {
    for (const [index, segment] of Object.entries(segments())) {
      if (segment?.label.endsWith(MARK)) {
        service().setSegmentLabel(SEGMENTATION, Number(index), segment.label.slice(0, -MARK.length));
      }
    }
    Object.assign(known, { marked: [], levels: [] });
    drawSide();
  }

  function viewports() {
    return window.cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports());
  }

  // Show the middle of a level in every view.
  function jumpTo(name) {
    const index = Object.keys(known.names).find(key => known.names[key] === name);
    const volume = service().getLabelmapVolume(SEGMENTATION);
    const data = volume.voxelManager.getCompleteScalarDataArray();
    const [width, height] = volume.dimensions;
    const sum = [0, 0, 0];
    let count = 0;
    for (let at = 0; at < data.length; at++) {
      if (data[at] === Number(index)) {
        sum[0] += at % width;
        sum[1] += Math.floor(at / width) % height;
        sum[2] += Math.floor(at / (width * height));
        count += 1;
      }
    }
    if (count) {
      const middle = volume.imageData.indexToWorld(sum.map(value => value / count));
      viewports().forEach(viewport => viewport.jumpToWorld?.(middle));
    }
  }

  // --- in the picture: the name below the mouse

  // Views that are not the active one let the mouse through to what is around them.
  function isOver(event, viewport) {
    const { left, top, right, bottom } = viewport.canvas.getBoundingClientRect();
    const { clientX: x, clientY: y, target } = event;
    const covered = !viewport.element.contains(target) && !target.contains(viewport.element);
    return left <= x && x < right && top <= y && y < bottom && !covered;
  }

  function nameAt(event) {
    const viewport = viewports().find(one => isOver(event, one));
    const volume = viewport && service().getSegmentation(SEGMENTATION) && service().getLabelmapVolume(SEGMENTATION);
    if (!volume) {
      return '';
    }
    const frame = viewport.canvas.getBoundingClientRect();
    const world = viewport.canvasToWorld([event.clientX - frame.x, event.clientY - frame.y]);
    const index = volume.imageData.worldToIndex(world).map(Math.round);
    if (index.some((place, axis) => place < 0 || place >= volume.dimensions[axis])) {
      return '';
    }
    return segments()[volume.voxelManager.getAtIJK(...index)]?.label || '';
  }

  function hover(event) {
    let label = document.getElementById('totalspineseg-hover');
    let name = '';
    try {
      name = nameAt(event);
    } catch (error) {
      // Views that show no volume have no names.
    }
    if (!name) {
      label?.remove();
      return;
    }
    if (!label) {
      label = element('div', { id: 'totalspineseg-hover' });
      document.body.append(label);
    }
    label.textContent = name;
    label.style.left = `${event.clientX + 14}px`;
    label.style.top = `${event.clientY + 14}px`;
  }

  // --- the answer to a submission, until its reader closes it

  function answer(message, status) {
    let answers = document.getElementById('totalspineseg-answers');
    if (!answers) {
      answers = element('div', { id: 'totalspineseg-answers', role: 'log', 'aria-label': `${TITLE}: answers` });
      document.body.append(answers);
    }
    const box = element('div', { class: 'totalspineseg-answer' }, element('div', {}, message, ' ', reviewLink()));
    box.style.borderLeftColor = COLOR_OF[status] || '#f87171';
    box.append(element('button', { type: 'button', 'aria-label': 'Close', onclick: () => box.remove() }, '\u00d7'));
    answers.append(box);
  }

  document.head.append(element('style', {}, STYLE));
  let frame = 0;
  document.addEventListener('mousemove', event => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => hover(event));
  });

  // The picture must be there before segments can be laid over it.
  function isLoaded(panel) {
    try {
      const services = panel.props.servicesManager.services;
      const { viewport, displaySet } = panel.getActiveViewportInfo();
      const data = services.cornerstoneViewportService.getViewportInfo(viewport.viewportId)?.viewportData?.data;
      const volume = data && data[0] && data[0].volume;
      return Boolean(displaySet && volume && volume.loadStatus && volume.loadStatus.loaded);
    } catch (error) {
      return false;
    }
  }

  window.totalspineseg = {
    // The panel's toolbox expects groups of these two names.
    tools: [
      {
        id: 'BrushTools',
        uiType: 'ohif.buttonGroup',
        props: {
          groupId: 'BrushTools',
          items: [
            brush('Brush', 'icon-tool-brush', 'Brush', ['CircularBrush', 'SphereBrush']),
            brush('Eraser', 'icon-tool-eraser', 'Eraser', ['CircularEraser', 'SphereEraser']),
          ],
        },
      },
      {
        id: 'Shapes',
        uiType: 'ohif.radioGroup',
        props: {
          icon: 'icon-tool-shape',
          label: 'Scissors',
          evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames: ['CircleScissors', 'RectangleScissors'] },
          options: [
            {
              id: 'scissors-shape',
              name: 'Shape',
              type: 'radio',
              value: 'CircleScissors',
              values: [
                { value: 'CircleScissors', label: 'Circle' },
                { value: 'RectangleScissors', label: 'Rectangle' },
              ],
              commands: 'setToolActiveToolbar',
            },
          ],
        },
      },
    ],

    color(label) {
      const rgb = COLORS[label.toLowerCase()];
      return rgb ? { r: rgb[0], g: rgb[1], b: rgb[2] } : null;
    },

    // Return the models of the server without the review; the panel reads both lists. For a model that cannot be
    // trained, it would show that all of its training is done.
    offered(info) {
      info.train_stats = Object.fromEntries(
        Object.entries(info.train_stats).map(([name, stats]) => [name, Object.keys(stats).length ? stats : null])
      );
      const names = Object.keys(info.models).filter(name => !name.endsWith(REVIEW));
      info.models = Object.fromEntries(names.map(name => [name, info.models[name]]));
      return info.models;
    },

    // The names in the panel's order, which numbers the segments from 1: the column from top to bottom, then the rest.
    ordered(names) {
      const place = name => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
      const list = [...new Set(names)].sort((one, other) => place(one) - place(other));
      known.names = Object.fromEntries(list.map((name, index) => [index + 1, name]));
      return list;
    },

    // Below the server's name: whether the weights are for patients, and what is known about the result.
    aside(createElement, info) {
      const warning = { key: 'warning', id: 'totalspineseg-warning', style: { color: '#fbbf24' } };
      return [
        info.warning && createElement('p', warning, info.warning),
        createElement('div', { key: 'side', id: 'totalspineseg-side', ref: node => node && drawSide() }),
      ];
    },

    // Run a model, with the progress of the server's work.
    async run(infer, model, image) {
      Object.assign(known, { message: '', marked: [], levels: [], findings: [] });
      watch(model, image);
      try {
        const response = await infer();
        if (response.status === 200) {
          restoreNames();
        } else {
          known.message = this.reason(response) || '';
        }
        return response;
      } finally {
        known.running = null;
        drawSide();
      }
    },

    // A result is on the screen: mark its doubtful names.
    overlaid(response, image) {
      const report = JSON.parse(response.headers[REPORT]);
      markNames(report.marked);
      known.message = [report.message, report.warning].filter(text => text).join(' ');
      drawSide();
      return readReview(image, report.prediction);
    },

    async ready(panel) {
      known.panel = panel;
      while (!isLoaded(panel)) {
        await new Promise(resolve => setTimeout(resolve, READY_MS));
      }
    },

    // Return the sentence in which the server gives the reason.
    reason(response) {
      try {
        const data = response.response.data;
        const text = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : JSON.stringify(data);
        return JSON.parse(text).detail;
      } catch (error) {
        return null;
      }
    },

    // The server has judged the segmentation by the time the PACS has it.
    async stored(report) {
      const response = await fetch(`/submissions/${encodeURIComponent(report.SOPInstanceUID)}`);
      const outcome = response.ok ? await response.json() : { message: '', status: 'refused' };
      const message = outcome.message || 'The PACS has the segmentation, but the server did not count it.';
      answer(message, outcome.status);
    },
  };
})();
