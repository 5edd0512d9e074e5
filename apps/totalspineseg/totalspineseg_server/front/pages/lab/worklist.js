// All scans: find, predict, open.

import { blobUrl, get, ohifPath, readerName, scanPath, send, setStrategy, strategy as chosenStrategy } from '/lab/api.js';
import { ask, day, duration, element, isTyping, percent, say, tag } from '/lab/dom.js';

const STATUSES = ['new', 'predicted', 'failed', 'in progress', 'submitted', 'parked', 'rejected', 'finished'];
const CERTAINTIES = ['certain', 'counted', 'doubtful'];
const COLUMNS = [
  ['', ''],
  ['id', 'Scan'],
  ['doubt', 'Names'],
  ['status', 'Status'],
  ['user', 'Reader'],
  ['date', 'Date'],
  ['version', 'Version'],
];
const SIZE = 25;
// Files and folders that are named with the reason why they are not in the list.
const NOT_OFFERED = 50;
// One clear point: an address without a picture shows as a broken one.
const NO_PICTURE = 'data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==';
const MODEL = 'totalspineseg';
const PICTURES_AT_ONCE = 3;
const LOOK_MS = 5000;
const SEARCH_MS = 250;
const SIGN_IN = 401;

const PICTURES = 'totalspineseg-pictures';

const asked = { search: '', status: '', certainty: '', sort: 'id', descending: false, page: 0 };

export async function openNext() {
  const place = location.hash;
  const offered = await send(`/activelearning/${chosenStrategy()}`, { client_id: readerName() });
  if (!offered.id) {
    say('Every scan is finished.');
    return;
  }
  // Somebody who opened another view in the meantime stays there.
  if (location.hash === place) {
    location.hash = `#/review/${encodeURIComponent(offered.id)}`;
  }
}

export async function show(view) {
  const pictures = new Map();
  let rows = [];
  let chosen = 0;
  let isLeft = false;
  let timer = 0;
  let running = '';
  let last = null;

  const search = element('input', { type: 'search', id: 'search', value: asked.search, size: 22, 'aria-label': 'Search' });
  search.placeholder = 'Search (/)';
  const status = choice('Status', ['', ...STATUSES], asked.status, 'every status');
  const certainty = choice('Names', ['', ...CERTAINTIES], asked.certainty, 'all names');
  const strategy = element('select', { 'aria-label': 'Order of the next scan' });
  const predict = element('button', { type: 'button', onclick: predictThese }, 'Predict these');
  const stop = element('button', { type: 'button', hidden: true, onclick: stopPrediction }, 'Stop');
  const bar = element('progress', { max: 1, value: 0, hidden: true, 'aria-label': 'Scans with a result' });
  const progress = element('span', { class: 'soft', id: 'progress' });
  const next = element('button', { type: 'button', class: 'main', onclick: openNext }, 'Next for me');
  const counts = element('span', { class: 'soft', id: 'counts' });
  const large = element('button', { type: 'button', id: 'pictures', title: 'Large pictures in which names can be read (v)', onclick: () => showPictures(!split.classList.contains('pictures')) }, 'Pictures');
  const head = element('tr', {});
  const body = element('tbody', {});
  const pager = element('div', { class: 'bar' });
  const side = element('section', { class: 'card', 'aria-label': 'Chosen scan' });
  const table = element('table', { id: 'scans' }, element('thead', {}, head), body);
  const left = element('details', { id: 'not-offered', class: 'soft', hidden: true });
  const split = element('div', { class: 'split' }, element('div', {}, table, pager, left), side);
  view.append(
    element('h2', {}, 'Scans'),
    element('div', { class: 'bar' }, search, status, certainty, counts, element('span', { class: 'grow' }), strategy, next),
    element('div', { class: 'bar' }, predict, stop, bar, progress, element('span', { class: 'grow' }), large),
    split,
  );

  function showPictures(areLarge) {
    localStorage.setItem(PICTURES, areLarge ? 'large' : '');
    split.classList.toggle('pictures', areLarge);
    large.setAttribute('aria-pressed', String(areLarge));
    body.children[chosen]?.scrollIntoView({ block: 'nearest' });
  }

  function choice(label, values, value, all) {
    const made = element('select', { 'aria-label': label });
    made.append(...values.map(one => element('option', { value: one }, one || all)));
    made.value = value;
    return made;
  }

  function renew(change = {}) {
    Object.assign(asked, { page: 0 }, change);
    chosen = 0;
    return load();
  }

  async function load() {
    const query = new URLSearchParams({ ...asked, size: SIZE });
    if (!asked.status) {
      query.delete('status');
    }
    const answer = await get(`/worklist?${query}`);
    if (isLeft) {
      return null;
    }
    rows = answer.rows;
    running = answer.batch?.current || '';
    chosen = Math.max(0, Math.min(chosen, rows.length - 1));
    const listed = STATUSES.filter(name => answer.counts[name]).map(name => `${answer.counts[name]} ${name}`);
    counts.textContent = answer.failure || (answer.complete ? listed.join(', ') : 'The scans are being read ...');
    drawHead();
    drawRows();
    drawPager(answer.total);
    predict.textContent = `Predict these (${answer.total})`;
    predict.disabled = answer.total === 0;
    fetchPictures();
    return answer.batch;
  }

  function drawHead() {
    head.replaceChildren(
      ...COLUMNS.map(([key, text]) => {
        if (!key) {
          return element('th', { scope: 'col' }, element('span', {}, 'Picture'));
        }
        const order = asked.sort !== key ? 'none' : asked.descending ? 'descending' : 'ascending';
        const sort = () => renew({ sort: key, descending: asked.sort === key ? !asked.descending : key === 'doubt' });
        const arrow = { none: '', ascending: ' \u2191', descending: ' \u2193' }[order];
        return element(
          'th',
          { scope: 'col', 'aria-sort': order },
          element('button', { type: 'button', onclick: sort }, `${text}${arrow}`),
        );
      }),
    );
  }

  function drawRows() {
    body.replaceChildren(...rows.map((row, place) => line(row, place)));
    if (!rows.length) {
      body.append(element('tr', {}, element('td', { colspan: COLUMNS.length }, 'No scan matches. Change the search.')));
    }
    mark();
  }

  function line(row, place) {
    const open = element('a', { class: 'scan', title: row.id, href: `#/review/${encodeURIComponent(row.id)}` }, row.about || row.id);
    const names = [row.certainty ? tag(row.certainty) : '', row.reason ? element('div', { class: 'short', title: row.reason }, row.reason) : ''];
    return element(
      'tr',
      { 'data-scan': row.id, onclick: () => choose(place), ondblclick: () => open.click() },
      element('td', { class: 'shot' }, element('img', { alt: '', src: pictures.get(pictureKey(row)) || NO_PICTURE })),
      element('td', {}, open, element('div', { class: 'soft' }, row.levels)),
      element('td', {}, names),
      element('td', {}, row.id === running ? tag('running', 'submitted') : tag(row.status), row.unchanged ? element('div', { class: 'soft' }, 'unchanged') : ''),
      element('td', {}, row.user),
      element('td', { class: 'soft' }, day(row.date)),
      element('td', { class: 'soft' }, element('div', { class: 'clipped', title: row.version }, row.version)),
    );
  }

  function pictureKey(row) {
    return `${row.id}|${row.prediction}|${row.status === 'finished' ? row.date : ''}`;
  }

  async function fetchPictures() {
    const missing = rows.filter(row => !pictures.has(pictureKey(row)));
    async function work() {
      for (let row = missing.shift(); row && !isLeft; row = missing.shift()) {
        const key = pictureKey(row);
        pictures.set(key, '');
        try {
          pictures.set(key, await blobUrl(scanPath(row.id, '/thumbnail')));
        } catch (error) {
          // The image cannot be read; the row says so.
          pictures.set(key, '');
        }
        const place = rows.findIndex(one => pictureKey(one) === key);
        if (place >= 0 && pictures.get(key)) {
          body.children[place].querySelector('img').src = pictures.get(key);
          if (place === chosen) {
            drawSide();
          }
        }
      }
    }
    await Promise.all(Array.from({ length: PICTURES_AT_ONCE }, work));
  }

  function choose(place) {
    chosen = Math.max(0, Math.min(place, rows.length - 1));
    mark();
    body.children[chosen]?.scrollIntoView({ block: 'nearest' });
  }

  function mark() {
    [...body.children].forEach((one, place) => one.setAttribute('aria-current', String(place === chosen && rows.length > 0)));
    drawSide();
  }

  function drawSide() {
    const row = rows[chosen];
    if (!row) {
      side.replaceChildren(element('h2', {}, 'No scan'));
      return;
    }
    const picture = pictures.get(pictureKey(row));
    side.replaceChildren(
      element('h2', { class: 'scan', title: row.id }, row.about || row.id),
      picture ? element('img', { src: picture, alt: `Sagittal picture of ${row.about || row.id} with the names of its levels` }) : '',
      element('p', {}, tag(row.status), ' ', row.certainty ? tag(row.certainty) : ''),
      element('p', {}, row.reason || (row.status === 'new' ? 'There is no result yet.' : '')),
      row.doubt === null ? '' : element('p', { class: 'soft' }, `Chance that something is wrong: ${percent(row.doubt)}`),
      element(
        'div',
        { class: 'bar' },
        element('a', { href: `#/review/${encodeURIComponent(row.id)}` }, 'Open'),
        row.study ? element('a', { href: ohifPath(row), target: '_blank', rel: 'noopener' }, 'In OHIF') : '',
        element('button', { type: 'button', onclick: inSlicer }, 'In 3D Slicer'),
      ),
    );
  }

  function inSlicer() {
    ask(
      'Open in 3D Slicer',
      element(
        'ol',
        {},
        element('li', {}, 'Open the module MONAI Label (Active Learning).'),
        element('li', {}, `Enter ${location.origin} as the server.`),
        element('li', {}, 'Press Next Sample, or load the scan and press Run.'),
      ),
      { yes: 'Close' },
    );
  }

  function drawPager(total) {
    const pages = Math.max(1, Math.ceil(total / SIZE));
    const go = page => {
      asked.page = page;
      chosen = 0;
      load();
    };
    pager.replaceChildren(
      element('button', { type: 'button', disabled: asked.page === 0, onclick: () => go(asked.page - 1) }, 'Previous page'),
      element('span', {}, `Page ${asked.page + 1} of ${pages}, ${total} scans`),
      element('button', { type: 'button', disabled: asked.page + 1 >= pages, onclick: () => go(asked.page + 1) }, 'Next page'),
    );
  }

  async function theseIds() {
    const ids = [];
    for (let page = 0; ; page += 1) {
      const query = new URLSearchParams({ ...asked, page, size: 200 });
      if (!asked.status) {
        query.delete('status');
      }
      const answer = await get(`/worklist?${query}`);
      ids.push(...answer.rows.map(row => row.id));
      if (ids.length >= answer.total || !answer.rows.length) {
        return ids;
      }
    }
  }

  async function predictThese() {
    predict.disabled = true;
    const images = await theseIds();
    await send(`/batch/infer/${MODEL}`, { images, label_tag: 'original', save_label: true });
    say(`${images.length} scans are being predicted in the background, one after the other. Scans that have a result are skipped.`);
    await look();
  }

  async function stopPrediction() {
    await send('/batch/infer', {}, 'DELETE');
    last = null;
    await look();
    say('The prediction was stopped. Start it again to continue.');
  }

  async function look() {
    clearTimeout(timer);
    if (isLeft) {
      return;
    }
    const batch = await load();
    const isRunning = Boolean(batch);
    stop.hidden = !isRunning;
    bar.hidden = !isRunning;
    predict.hidden = isRunning;
    bar.max = batch?.total || 1;
    bar.value = batch?.scored || 0;
    if (isRunning) {
      const left = batch.seconds_left === null || batch.seconds_left === undefined ? '' : `, ${duration(batch.seconds_left)} left`;
      progress.textContent = `${batch.scored} of ${batch.total} scans done${batch.failed ? `, ${batch.failed} of them failed` : ''}${left}${running ? `. Now: ${running}` : ''}`;
    } else {
      progress.textContent = '';
      if (last) {
        say(`The prediction is finished: ${last.total} scans${last.failed ? `, ${last.failed} of them failed` : ''}.`);
      }
    }
    last = batch;
    if (!isLeft) {
      timer = setTimeout(() => look().catch(error => say(error.message, true)), isRunning ? LOOK_MS / 2 : 2 * LOOK_MS);
    }
  }

  function onKey(event) {
    if (isTyping(event)) {
      if (event.target === search && ['Enter', 'Escape'].includes(event.key)) {
        event.preventDefault();
        search.blur();
      }
      return;
    }
    const keys = {
      '/': () => search.focus(),
      j: () => choose(chosen + 1),
      ArrowDown: () => choose(chosen + 1),
      k: () => choose(chosen - 1),
      ArrowUp: () => choose(chosen - 1),
      n: () => next.click(),
      v: () => large.click(),
      Enter: () => event.target.closest('a, button') || (location.hash = `#/review/${encodeURIComponent(rows[chosen]?.id || '')}`),
    };
    if (event.key in keys) {
      if (event.key !== 'Enter') {
        event.preventDefault();
      }
      keys[event.key]();
    }
  }

  let typed = 0;
  search.addEventListener('input', () => {
    clearTimeout(typed);
    typed = setTimeout(() => renew({ search: search.value }), SEARCH_MS);
  });
  status.addEventListener('change', () => renew({ status: status.value }));
  certainty.addEventListener('change', () => renew({ certainty: certainty.value }));
  strategy.addEventListener('change', () => setStrategy(strategy.value));
  document.addEventListener('keydown', onKey);

  function drawNotOffered(reasons) {
    const names = Object.keys(reasons);
    const summary = names.length === 1 ? 'One file or folder is not in this list' : `${names.length} files or folders are not in this list`;
    left.replaceChildren(
      element('summary', {}, summary),
      element('ul', {}, ...names.slice(0, NOT_OFFERED).map(name => element('li', {}, `${name} ${reasons[name]}.`))),
      names.length > NOT_OFFERED ? `And ${names.length - NOT_OFFERED} more.` : '',
    );
    left.hidden = !names.length;
  }

  async function loadInfo() {
    const info = await get('/info/');
    drawNotOffered(info.datastore.not_offered || {});
    strategy.append(...Object.keys(info.strategies).map(name => element('option', { value: name }, name.replaceAll('_', ' '))));
    strategy.value = chosenStrategy() in info.strategies ? chosenStrategy() : Object.keys(info.strategies)[0];
    setStrategy(strategy.value);
  }

  // Not awaited: it asks the PACS, which may be slow, and the list is there without it.
  // Somebody who is not signed in is asked once, for the list.
  loadInfo().catch(error => error.status === SIGN_IN || say(error.message, true));
  showPictures(localStorage.getItem(PICTURES) === 'large');
  await look();

  return () => {
    isLeft = true;
    clearTimeout(timer);
    document.removeEventListener('keydown', onKey);
    pictures.forEach(url => url && URL.revokeObjectURL(url));
  };
}
