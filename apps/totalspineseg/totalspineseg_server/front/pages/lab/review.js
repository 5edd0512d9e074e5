// One scan: three planes, its levels from top to bottom, and what a reader decides.

import { Refused, act, blobUrl, get, ohifPath, predictOne, scanPath } from '/lab/api.js';
import { ask, day, element, isTyping, percent, say, tag } from '/lab/dom.js';
import { openNext } from '/lab/worklist.js';

const VIEWER = '/lab/niivue.js';
const PLANES = ['All planes', 'Sagittal', 'Axial', 'Coronal'];
const SEEN = { 'All planes': ['sagittal', 'axial', 'coronal'], Sagittal: ['sagittal'], Axial: ['axial'], Coronal: ['coronal'] };
const UNREADABLE = 422;
const CODES = 256;
// The viewer colors the smallest values of a table alike, so the first ones stay free and clear.
const FREE = 8;
const COLORS = 'levels';
const FULL = 255;
const STEP = 0.1;
const REASONS = ['Needs drawing in 3D Slicer', 'Not a spine', 'Poor image quality', 'Wrong series'];
const KEYS = [
  ['j k', 'level'],
  ['a', 'accept'],
  ['p', 'pin'],
  ['r', 'reject'],
  ['u', 'undo'],
  ['n', 'next'],
  ['1-4', 'planes'],
  ['o l', 'outline, labels'],
];

export async function show(view, id) {
  if (!id) {
    await openNext();
    return null;
  }
  let scan;
  try {
    scan = await get(scanPath(id));
  } catch (error) {
    if (error.status !== UNREADABLE) {
      throw error;
    }
    // An image that nobody can look at must not end a reader's round.
    view.append(element('section', { class: 'card' }, element('h2', { class: 'scan' }, id), element('p', {}, error.message), element('button', { type: 'button', class: 'main', onclick: openNext }, 'Next')));
    return null;
  }
  let viewer = null;
  let chosen = null;
  let isLeft = false;
  let isOutlined = false;
  let areLabelsOn = true;
  let opacity = 0.5;
  let lit = false;
  const seen = new Set();
  const urls = [];
  const pins = {};
  let renamed = {};
  let codes = null;
  let areas = null;
  let outlines = null;

  const canvas = element('canvas', { role: 'application', 'aria-label': 'The scan in three planes. Use the list of levels to move.', tabindex: 0 });
  const under = element('p', { class: 'soft', id: 'under' }, '');
  const list = element('ol', { 'aria-label': 'Levels from top to bottom' });
  const about = element('section', { class: 'card about', 'aria-label': 'About this scan' });
  const planes = element('select', { 'aria-label': 'Planes' }, PLANES.map(name => element('option', {}, name)));
  const slider = element('input', { type: 'range', min: 0, max: 1, step: 0.05, value: opacity, 'aria-label': 'Opacity of the labels' });
  const buttons = {
    accept: element('button', { type: 'button', class: 'main', id: 'accept', onclick: accept }, 'Accept'),
    pin: element('button', { type: 'button', id: 'pin', onclick: pin }, 'Pin'),
    submit: element('button', { type: 'button', id: 'submit', hidden: true, onclick: submit }, 'Submit names'),
    reject: element('button', { type: 'button', id: 'reject', onclick: reject }, 'Reject'),
    undo: element('button', { type: 'button', id: 'undo', onclick: undo }, 'Undo'),
    next: element('button', { type: 'button', id: 'next', onclick: openNext }, 'Next'),
  };
  const keys = element('p', { class: 'soft' }, KEYS.flatMap(([key, what]) => [element('kbd', {}, key), ` ${what}  `]));
  view.append(
    element(
      'div',
      { class: 'review' },
      element(
        'div',
        { class: 'picture' },
        element(
          'div',
          { class: 'bar' },
          planes,
          element('label', {}, 'Labels ', slider),
          element('button', { type: 'button', id: 'outline', 'aria-pressed': 'false', onclick: outline }, 'Outline'),
          element('button', { type: 'button', id: 'light', 'aria-pressed': 'false', onclick: light }, 'Highlight'),
          under,
        ),
        element('div', { class: 'canvas' }, canvas),
        keys,
      ),
      element(
        'div',
        { class: 'side' },
        about,
        element('div', { class: 'bar' }, Object.values(buttons)),
        element('div', { class: 'levels' }, list),
      ),
    ),
  );

  function nameOf(level) {
    return renamed[level.name] || level.name;
  }

  function colorOf(level) {
    const same = scan.levels.find(one => one.name === nameOf(level));
    return same ? same.color : level.color;
  }

  function drawAbout() {
    about.replaceChildren(
      element('h2', { class: 'scan', title: scan.id }, scan.about || scan.id),
      element('p', {}, tag(scan.status), ' ', scan.certainty ? tag(scan.certainty) : '', scan.unchanged ? ' accepted unchanged' : ''),
      scan.reason ? element('p', {}, scan.reason) : '',
      scan.status === 'finished' ? element('p', {}, `Finished by ${scan.user}, ${day(scan.date)}.`) : '',
      scan.would_settle.length && scan.certainty === 'doubtful'
        ? element('p', { class: 'soft' }, `What would make the names certain: ${scan.would_settle.join(', or ')}.`)
        : '',
      scan.history.length
        ? element(
            'details',
            {},
            element('summary', {}, `History (${scan.history.length})`),
            element('ul', {}, scan.history.map(one => element('li', {}, `${day(one.date)}, ${one.user}: ${one.status}${one.unchanged ? ', unchanged' : ''}${one.chosen.length ? `, chosen from ${one.chosen.join(' and ')}` : ''} ${one.reason}`))),
          )
        : '',
      scan.study ? element('p', {}, element('a', { href: ohifPath(scan), target: '_blank', rel: 'noopener' }, 'Open in OHIF')) : '',
      ...scan.agreements.map(agreement),
      scan.agreements.length ? element('p', {}, element('button', { type: 'button', id: 'choose', onclick: chooseLabel }, 'Choose or merge')) : '',
      scan.label ? '' : element('p', {}, scan.prediction ? 'The segmentation of this result is no longer stored. ' : scan.status === 'failed' ? '' : 'There is no result yet. ', element('button', { type: 'button', id: 'predict', onclick: predict }, scan.status === 'failed' ? 'Predict again' : 'Predict')),
    );
    const isOpen = scan.status !== 'finished';
    buttons.accept.disabled = !(isOpen && scan.label === 'prediction' && ['certain', 'counted'].includes(scan.certainty) && seen.has('sagittal') && seen.has('axial'));
    buttons.accept.title = scan.certainty === 'doubtful' ? 'The names are doubtful: pin a level instead.' : 'Accept the result as it is (a)';
    buttons.pin.disabled = !scan.can_pin;
    buttons.submit.hidden = !Object.keys(pins).length;
    buttons.reject.disabled = !isOpen;
    buttons.undo.disabled = !(scan.status === 'finished' || scan.status === 'rejected');
  }

  // An administrator says which of several readers' labels counts.
  async function chooseLabel() {
    const others = scan.agreements;
    const first = { correction: others[0].beside, reader: `${scan.user} (counts now)` };
    const option = one => element('option', { value: one.correction }, one.reader);
    const label = element('select', { id: 'choose-label' }, [first, ...others].map(option));
    const other = element('select', { id: 'choose-other' }, [...others, first].map(option));
    const beside = element('input', { type: 'checkbox', id: 'choose-leave-out' });
    const parts = element('select', { id: 'choose-parts', multiple: true, size: 6 });
    const names = [...new Set(others.flatMap(one => Object.entries(one.dice).sort((a, b) => a[1] - b[1]).map(([name]) => name)))];
    parts.append(...names.map(name => element('option', { value: name }, `${name} (Dice ${Math.min(...others.map(one => one.dice[name] ?? 1)).toFixed(2)})`)));
    const fields = [
      element('label', {}, 'The label that counts ', label),
      element('label', {}, 'The other label ', other),
      element('label', {}, 'Structures to take from the other label (select none to use the label as it is) ', parts),
      element('div', {}, element('label', { class: 'check' }, beside, ' Leave out of training where the two labels differ')),
      element('p', { class: 'soft' }, 'This label will be shown to readers and used for training. All labels of the readers are kept.'),
    ];
    const read = () => ({
      correction: label.value,
      take: Object.fromEntries([...parts.selectedOptions].map(one => [one.value, other.value])),
      leave_out: beside.checked ? [other.value] : [],
    });
    const reply = await ask('Which label counts?', fields, { yes: 'Use this label', read, ready: () => label.focus() });
    if (reply) {
      const answer = await act(id, 'choose', reply);
      await again(answer.message, true);
    }
  }

  function agreement(other) {
    const named = Object.entries(other.named).map(([here, there]) => `${here} here is ${there} there`);
    const dice = Object.entries(other.dice).map(([name, value]) => element('li', {}, `${name} ${value.toFixed(2)}`));
    return element(
      'details',
      { class: 'agreement' },
      element('summary', {}, `Compared with the label of ${other.reader}, ${day(other.date)}: mean Dice ${other.mean === null ? '-' : other.mean.toFixed(2)}, ${named.length ? `${named.length} named differently` : 'the same names'}`),
      named.length ? element('p', {}, `${named.join(', ')}.`) : '',
      element('ul', {}, dice),
    );
  }

  function drawList() {
    list.replaceChildren(
      ...scan.levels.map(level => {
        const swatch = element('span', { class: 'swatch' });
        swatch.style.backgroundColor = `rgb(${colorOf(level).join(',')})`;
        const runnerUp = level.runner_up && level.runner_up.probability >= 0.005 ? `or ${level.runner_up.name} ${percent(level.runner_up.probability)}` : '';
        const now = nameOf(level);
        const text = now === level.name ? now : `${now} (was ${level.name})`;
        return element(
          'li',
          {},
          element(
            'button',
            { type: 'button', 'data-level': level.name, 'aria-pressed': String(level === chosen), onclick: () => choose(level) },
            swatch,
            element('span', {}, `${text}${level.doubtful && now === level.name ? ' ?' : ''}`),
            element('span', {}, percent(level.probability)),
            element('span', { class: 'soft' }, runnerUp),
            level.findings.map(text => element('span', { class: 'note' }, text)),
          ),
        );
      }),
    );
  }

  function paint() {
    if (!viewer || viewer.volumes.length < 2) {
      return;
    }
    const table = () => Array(CODES).fill(0);
    const map = { R: table(), G: table(), B: table(), A: table(), I: [...table().keys()] };
    for (const level of scan.levels) {
      const place = level.code + FREE;
      [map.R[place], map.G[place], map.B[place]] = colorOf(level);
      map.A[place] = lit && chosen && level !== chosen ? 0 : FULL;
    }
    const label = viewer.volumes[1];
    viewer.addColormap(COLORS, map);
    label.colormap = COLORS;
    // The middle of each entry of the table: no code shines with the color of its neighbor.
    label.cal_min = -0.5;
    label.cal_max = CODES - 0.5;
    label.img = isOutlined ? outlines : areas;
    viewer.setOpacity(1, areLabelsOn ? opacity : 0);
    viewer.updateGLVolume();
  }

  function choose(level, isJump = true) {
    chosen = level;
    under.textContent = level ? `Chosen: ${nameOf(level)}` : '';
    for (const button of list.querySelectorAll('button')) {
      button.setAttribute('aria-pressed', String(level !== null && button.dataset.level === level.name));
    }
    list.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: 'nearest' });
    if (level && isJump && viewer) {
      viewer.scene.crosshairPos = [...level.at];
      viewer.drawScene();
    }
    if (lit) {
      paint();
    }
  }

  function step(by) {
    const place = scan.levels.indexOf(chosen);
    choose(scan.levels[Math.max(0, Math.min(place + by, scan.levels.length - 1))] || null);
  }

  function showPlanes(name) {
    planes.value = name;
    if (!viewer) {
      return;
    }
    const { sliceTypeMultiplanar, sliceTypeSagittal, sliceTypeAxial, sliceTypeCoronal } = viewer;
    const types = [sliceTypeMultiplanar, sliceTypeSagittal, sliceTypeAxial, sliceTypeCoronal];
    if (name === PLANES[0]) {
      viewer.setCustomLayout([
        { sliceType: sliceTypeSagittal, position: [0, 0, 0.46, 1] },
        { sliceType: sliceTypeCoronal, position: [0.46, 0, 0.28, 1] },
        { sliceType: sliceTypeAxial, position: [0.74, 0, 0.26, 1] },
      ]);
    } else {
      viewer.clearCustomLayout();
    }
    viewer.setSliceType(types[PLANES.indexOf(name)]);
    SEEN[name].forEach(plane => seen.add(plane));
    canvas.dataset.seen = [...seen].sort().join(' ');
    drawAbout();
  }

  function outline() {
    isOutlined = !isOutlined;
    document.getElementById('outline').setAttribute('aria-pressed', String(isOutlined));
    paint();
  }

  function light() {
    lit = !lit;
    document.getElementById('light').setAttribute('aria-pressed', String(lit));
    paint();
  }

  function keepLabel() {
    const label = viewer.volumes[1];
    codes = label ? label.img : null;
    areas = label ? codes.map(code => (code ? code + FREE : 0)) : null;
    outlines = label ? outlinesOf(areas, label.hdr.dims.slice(1, 4)) : null;
  }

  async function open() {
    drawAbout();
    drawList();
    let library;
    try {
      library = await import(VIEWER);
    } catch (error) {
      throw new Refused(0, 'The viewer is not installed on the server. Run "make setup" there with access to npm.');
    }
    const names = scan.label ? ['volume', 'label'] : ['volume'];
    const found = await Promise.all(names.map(name => blobUrl(scanPath(id, `/${name}`))));
    urls.push(...found);
    if (isLeft) {
      return;
    }
    viewer = new library.Niivue({
      show3Dcrosshair: false,
      multiplanarShowRender: library.SHOW_RENDER.NEVER,
      sagittalNoseLeft: true,
      isRadiologicalConvention: true,
      isColorbar: false,
      dragAndDropEnabled: false,
      crosshairWidth: 0.25,
      crosshairWidthUnit: 'percent',
      logLevel: 'error',
      crosshairColor: [0.2, 0.9, 1, 0.8],
      loadingText: 'Loading ...',
    });
    viewer.onLocationChange = ({ vox }) => {
      if (!codes) {
        return;
      }
      const [width, depth] = viewer.volumes[1].hdr.dims.slice(1, 3);
      const code = codes[vox[0] + width * (vox[1] + depth * vox[2])];
      const level = scan.levels.find(one => one.code === code);
      if (level && level !== chosen) {
        choose(level, false);
      }
    };
    try {
      await viewer.attachToCanvas(canvas);
    } catch (error) {
      throw new Refused(0, 'This browser cannot show scans, because WebGL 2 is turned off. Turn it on in the settings of the browser, or use another browser.');
    }
    await viewer.loadVolumes(found.map((url, k) => ({ url, name: `${names[k]}.nii.gz`, opacity: k ? opacity : 1 })));
    if (isLeft) {
      return;
    }
    keepLabel();
    paint();
    showPlanes('All planes');
    choose(scan.levels.find(level => level.doubtful) || scan.levels[Math.floor(scan.levels.length / 2)] || null);
    canvas.dataset.ready = 'true';
  }

  async function again(text, isNewLabel = false) {
    for (const name of Object.keys(pins)) {
      delete pins[name];
    }
    renamed = {};
    scan = await get(scanPath(id));
    if (isNewLabel && viewer?.volumes.length > 1) {
      const url = await blobUrl(scanPath(id, '/label'));
      urls.push(url);
      viewer.removeVolume(viewer.volumes[1]);
      await viewer.addVolumesFromUrl([{ url, name: 'label.nii.gz', opacity }]);
      keepLabel();
    }
    drawAbout();
    drawList();
    paint();
    say(text);
  }

  async function predict() {
    document.getElementById('predict').disabled = true;
    say('The scan is being predicted. This takes seconds to minutes.');
    await predictOne(id);
    window.dispatchEvent(new Event('hashchange'));
  }

  async function accept() {
    if (buttons.accept.disabled) {
      say(scan.certainty === 'doubtful' ? 'The names are doubtful. Pin a level, or correct the scan in 3D Slicer.' : 'This scan cannot be accepted now.', true);
      return;
    }
    const answer = await act(id, 'accept', { prediction: scan.prediction, views: [...seen] });
    await again(`${answer.message} Press n for the next scan.`);
  }

  async function pin() {
    if (buttons.pin.disabled || !chosen || !(chosen.kind in scan.names)) {
      say('Choose a vertebra or a disc of the result first, then pin its name.', true);
      return;
    }
    const level = chosen;
    const select = element('select', { id: 'pin-name' }, scan.names[level.kind].map(name => element('option', {}, name)));
    select.value = nameOf(level);
    const reply = await ask(
      `The result calls this level ${level.name}. What is its right name?`,
      element('label', {}, 'Right name ', select),
      { yes: 'Rename', read: () => select.value, ready: () => select.focus() },
    );
    if (reply === null) {
      return;
    }
    const wanted = { ...pins, [level.name]: reply };
    const answer = await act(id, 'pin', { prediction: scan.prediction, names: wanted });
    Object.assign(pins, wanted);
    renamed = answer.names;
    drawAbout();
    drawList();
    paint();
    choose(level, false);
    const changes = Object.entries(renamed).map(([before, now]) => `${before} is now ${now}`);
    say(`${answer.message} ${changes.slice(0, 3).join(', ')}${changes.length > 3 ? ` and ${changes.length - 3} more` : ''}. Press s to submit, u to undo.`);
  }

  async function submit() {
    if (!Object.keys(pins).length) {
      return;
    }
    const answer = await act(id, 'pin', { prediction: scan.prediction, names: pins, submit: true });
    await again(`${answer.message} Press n for the next scan.`, true);
  }

  async function reject() {
    if (buttons.reject.disabled) {
      return;
    }
    const reason = element('input', { id: 'reason', list: 'reasons', maxlength: 500, required: true });
    const reply = await ask(
      'Why can this result not be used?',
      [element('label', {}, 'Reason ', reason), element('datalist', { id: 'reasons' }, REASONS.map(text => element('option', { value: text })))],
      { yes: 'Reject', read: () => reason.value, ready: () => reason.focus() },
    );
    if (reply) {
      const answer = await act(id, 'reject', { reason: reply });
      await again(`${answer.message} Press n for the next scan.`);
    }
  }

  async function undo() {
    if (Object.keys(pins).length) {
      await again('The names of the result are back.');
      return;
    }
    const answer = await act(id, 'undo');
    await again(answer.message, true);
  }

  function onKey(event) {
    if (isTyping(event) && !(event.target === slider || event.target === planes)) {
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const commands = {
      j: () => step(1),
      ArrowDown: () => step(1),
      k: () => step(-1),
      ArrowUp: () => step(-1),
      a: accept,
      p: pin,
      s: submit,
      r: reject,
      u: undo,
      n: openNext,
      o: outline,
      h: light,
      l: () => {
        areLabelsOn = !areLabelsOn;
        paint();
      },
      '+': () => setOpacity(opacity + STEP),
      '-': () => setOpacity(opacity - STEP),
      1: () => showPlanes(PLANES[0]),
      2: () => showPlanes(PLANES[1]),
      3: () => showPlanes(PLANES[2]),
      4: () => showPlanes(PLANES[3]),
    };
    if (event.key in commands && !(event.target === slider && event.key.startsWith('Arrow'))) {
      event.preventDefault();
      event.stopPropagation();
      // Not awaited: a refusal is shown by the page.
      commands[event.key]();
    }
  }

  function setOpacity(value) {
    opacity = Math.max(0, Math.min(1, value));
    slider.value = opacity;
    areLabelsOn = true;
    paint();
  }

  slider.addEventListener('input', () => setOpacity(Number(slider.value)));
  planes.addEventListener('change', () => showPlanes(planes.value));
  // Before the viewer, which has keys of its own.
  window.addEventListener('keydown', onKey, true);
  open().catch(error => say(error.message, true));

  return () => {
    isLeft = true;
    window.removeEventListener('keydown', onKey, true);
    urls.forEach(url => URL.revokeObjectURL(url));
    viewer?.gl?.getExtension('WEBGL_lose_context')?.loseContext();
  };
}

// The label without what lies inside its structures.
function outlinesOf(codes, [width, depth, height]) {
  const found = codes.slice();
  const steps = [1, width, width * depth];
  for (let z = 1; z < height - 1; z += 1) {
    for (let y = 1; y < depth - 1; y += 1) {
      for (let x = 1; x < width - 1; x += 1) {
        const k = x + width * (y + depth * z);
        if (codes[k] && steps.every(step => codes[k - step] === codes[k] && codes[k + step] === codes[k])) {
          found[k] = 0;
        }
      }
    }
  }
  return found;
}
