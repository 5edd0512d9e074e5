// Trainings, the gate's verdicts, and the versions in use.

import { get, send } from '/lab/api.js';
import { ask, day, duration, element, say, tag } from '/lab/dom.js';

const LOOK_MS = 5000;
const MODEL = 'totalspineseg';
const COLORS = ['#3b82c4', '#c2571a', '#2f8f4e', '#a23bb0', '#b58900', '#d1495b', '#5a6acf', '#4a9c9c', '#8a6d3b', '#7a7a7a', '#c04a8a'];
const MONTHS = 6;
const WIDTH = 600;
const HEIGHT = 180;
const SVG = 'http://www.w3.org/2000/svg';

export async function show(view) {
  let isLeft = false;
  let timer = 0;
  let judged = 0;
  let wasRunning = false;
  const training = element('section', { class: 'card', 'aria-labelledby': 'training-title' });
  const versions = element('section', { class: 'card', 'aria-labelledby': 'versions-title' });
  const verdict = element('section', { class: 'card', 'aria-labelledby': 'verdict-title', hidden: true });
  const corrections = element('section', { class: 'card', 'aria-labelledby': 'corrections-title' });
  view.append(training, versions, verdict, corrections);

  async function look() {
    clearTimeout(timer);
    const state = await get('/training');
    if (isLeft) {
      return;
    }
    drawTraining(state);
    const isRunning = state.running || state.state?.status === 'running';
    if (wasRunning && !isRunning) {
      // It made a version, and the gate has judged that.
      await loadVersions();
    }
    wasRunning = isRunning;
    timer = setTimeout(() => look().catch(error => say(error.message, true)), LOOK_MS);
  }

  function drawTraining({ running: isRunning, state, seconds_left: left, curves }) {
    const running = isRunning || state?.status === 'running';
    training.replaceChildren(
      element('h2', { id: 'training-title' }, 'Training'),
      state
        ? element('p', {}, tag(state.status, { published: 'passed', failed: 'failed', refused: 'refused' }[state.status] || 'predicted'), ` ${state.message || (state.step ? `Step ${state.step} is being trained.` : '')}`)
        : element('p', {}, 'No training has run on these scans yet.'),
      running && state
        ? element(
            'p',
            {},
            element('progress', { max: state.total_epochs || 1, value: state.epoch, 'aria-label': 'Training' }),
            ` ${state.epoch} of ${state.total_epochs} epochs${left === null ? '' : `, ${duration(left)} left`}`,
          )
        : '',
      element(
        'div',
        { class: 'bar' },
        running
          ? element('button', { type: 'button', id: 'stop-training', onclick: stop }, 'Stop')
          : element('button', { type: 'button', id: 'start-training', onclick: start }, 'Train on the finished labels'),
      ),
      Object.entries(curves).map(([step, curve]) => chart(step, curve)),
    );
  }

  async function start() {
    const isConfirmed = await ask(
      'Train on the finished labels?',
      element('p', {}, 'This trains the networks further on the finished labels. The new version is used only if the gate finds that nothing became worse. Until then, the present version stays in use.'),
      { yes: 'Train' },
    );
    if (isConfirmed) {
      await send(`/train/${MODEL}`);
      say('The training has started.');
      await look();
    }
  }

  async function stop() {
    const isConfirmed = await ask('Stop the training?', element('p', {}, 'You can continue it later from where it stopped.'), { yes: 'Stop' });
    if (isConfirmed) {
      await send('/train/', {}, 'DELETE');
      say('The training was stopped.');
      await look();
    }
  }

  async function loadCorrections() {
    const { months, structures, readers } = await get('/corrections');
    if (isLeft) {
      return;
    }
    const latest = months.slice(-MONTHS);
    const head = texts => element('thead', {}, element('tr', {}, texts.map((text, k) => element('th', { scope: 'col', class: k ? 'number' : '' }, text))));
    const line = (name, cells) => element('tr', {}, element('th', { scope: 'row' }, name), cells.map(text => element('td', { class: 'number' }, text)));
    const table = (label, texts, lines) =>
      element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label }, element('table', {}, head(texts), element('tbody', {}, lines)));
    const cell = month => (month ? `${month.dice.toFixed(2)} (${month.corrected} of ${month.structures})` : '-');
    corrections.replaceChildren(
      element('h2', { id: 'corrections-title' }, 'Corrections'),
      readers.length ? '' : element('p', {}, 'Nobody has sent a label yet.'),
      readers.length ? element('p', { class: 'soft' }, 'Mean Dice between the result and the label that a reader made from it, and how many structures the reader changed. A wrong name counts as 0.') : '',
      readers.length
        ? table('Corrections by reader', ['Reader', 'Labels', 'Accepted unchanged', 'Structures changed', 'Mean Dice', 'Parked', 'Taken back', 'Last label'],
          readers.map(one => line(one.reader, [one.labels, one.unchanged, `${one.corrected} of ${one.structures}`, one.dice === null ? '-' : one.dice.toFixed(2), one.parked, one.withdrawn, day(one.last)].map(String))))
        : '',
      ...(structures.length
        ? [element('h3', {}, 'By structure'), table('Corrections by structure', ['Structure', ...latest], structures.map(one => line(one.name, latest.map(month => cell(one.months[month])))))]
        : []),
    );
  }

  async function loadVersions() {
    const answer = await get('/versions');
    if (isLeft) {
      return;
    }
    const used = answer.in_use;
    versions.replaceChildren(
      element('h2', { id: 'versions-title' }, 'Versions'),
      element('p', {}, `In use: ${Object.entries(used).map(([step, name]) => `step ${step} ${name}`).join(', ')}.`, answer.fixed ? ` The server was started with the weights ${answer.fixed}; activating another version has no effect until the server is started without that option.` : ''),
      element(
        'div',
        { class: 'bar' },
        element('button', { type: 'button', id: 'go-back', disabled: !answer.back || Boolean(answer.fixed), onclick: () => change('Go back?', answer.back, used, '/versions/rollback') }, 'Go back'),
        answer.back ? '' : element('span', { class: 'soft' }, 'There is nothing to go back to.'),
      ),
      judgment(answer.judge),
      tree(answer, used),
    );
  }

  // The current judgment, or why the last one ended without a verdict.
  function judgment({ running: isRunning, version, seconds, message, failure }) {
    clearTimeout(judged);
    if (isRunning) {
      judged = setTimeout(() => loadVersions().catch(error => say(error.message, true)), LOOK_MS);
      return element(
        'p',
        { id: 'judgment', role: 'status' },
        element('progress', { 'aria-label': 'Judgment' }),
        ` ${version} is being judged (${Math.floor(seconds / 60)} min ${seconds % 60} s). ${message} `,
        element('button', { type: 'button', id: 'stop-judging', onclick: stopJudging }, 'Stop'),
      );
    }
    return failure ? element('p', { class: 'failed', role: 'status' }, failure) : '';
  }

  async function judge(version, isUsed) {
    const other = isUsed ? 'the versions that were in use before it' : 'the versions in use';
    const isConfirmed = await ask(
      `Judge ${version.name}?`,
      element('p', {}, `The gate compares it with ${other}, on the reference spines and on your hold-out. This takes some minutes and does not change which version is in use.`),
      { yes: 'Judge' },
    );
    if (isConfirmed) {
      await send(`/versions/${encodeURIComponent(version.name)}/judge`);
      say(`${version.name} is being judged.`);
      await loadVersions();
    }
  }

  async function stopJudging() {
    await send('/versions/judge', {}, 'DELETE');
    say('The judgment was stopped.');
    await loadVersions();
  }

  function tree(answer, used) {
    const names = new Set(answer.versions.map(version => version.name));
    const parentOf = version => Object.values(version.parents).find(name => names.has(name) && name !== version.name) || '';
    const branch = parent => {
      const children = answer.versions.filter(version => parentOf(version) === parent);
      return children.length ? element('ul', parent ? {} : { class: 'tree' }, children.map(version => element('li', { 'data-version': version.name }, line(version, answer, used), branch(version.name)))) : '';
    };
    return branch('');
  }

  function line(version, answer, used) {
    const isUsed = version.in_use.length > 0;
    const facts = [
      version.corrections ? `${version.corrections} corrections of ${version.annotators.join(', ') || 'unknown readers'}` : '',
      version.created ? day(version.created) : '',
      ...Object.entries(version.holdout).filter(([, score]) => score !== null).map(([measure, score]) => `${measure} ${score.toFixed(2)}`),
    ].filter(Boolean);
    const judged = version.passed === null ? '' : version.passed ? tag('passed', 'passed') : tag('refused', 'refused');
    const wanted = Object.fromEntries(Object.keys(used).map(step => [step, version.name]));
    return [
      element('strong', {}, version.name),
      ' ',
      isUsed ? tag(`in use for step ${version.in_use.join(' and ')}`, 'finished') : '',
      ' ',
      judged,
      version.removed ? element('span', { class: 'soft' }, ` removed ${day(version.removed)}`) : '',
      facts.length ? element('div', { class: 'soft' }, facts.join('; ')) : '',
      version.verdict ? element('div', {}, version.verdict) : '',
      element(
        'div',
        { class: 'bar' },
        version.removed ? '' : element('button', { type: 'button', disabled: answer.judge.running, 'aria-label': `Judge ${version.name}`, onclick: () => judge(version, isUsed) }, 'Judge'),
        version.table.length ? element('button', { type: 'button', onclick: () => drawVerdict(version), 'aria-label': `Verdict on ${version.name}` }, 'Verdict') : '',
        version.removed
          ? ''
          : element(
              'button',
              {
                type: 'button',
                disabled: version.passed === false || version.in_use.length === Object.keys(used).length || Boolean(answer.fixed),
                'aria-label': `Activate ${version.name}`,
                onclick: () => change(`Activate ${version.name}?`, wanted, used, `/versions/${encodeURIComponent(version.name)}/activate`),
              },
              'Activate',
            ),
      ),
    ];
  }

  async function change(title, wanted, used, path) {
    const lines = Object.keys(used).map(step => element('li', {}, used[step] === wanted[step] ? `Step ${step} stays ${used[step]}.` : `Step ${step}: ${used[step]} is replaced by ${wanted[step]}.`));
    const isConfirmed = await ask(
      title,
      [element('ul', {}, lines), element('p', {}, 'From then on, new results come from these versions. Stored results and labels stay as they are.')],
      { yes: 'Change' },
    );
    if (isConfirmed) {
      const answer = await send(path);
      say(`In use now: ${Object.entries(answer.in_use).map(([step, name]) => `step ${step} ${name}`).join(', ')}.`);
      await loadVersions();
    }
  }

  function drawVerdict(version) {
    const number = value => element('td', { class: 'number' }, value === null || value === undefined ? '-' : value.toFixed(3));
    verdict.hidden = false;
    verdict.replaceChildren(
      element('h2', { id: 'verdict-title' }, `Verdict on ${version.name}`),
      element('p', {}, version.verdict),
      element(
        'div',
        { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Comparison' },
        element(
          'table',
          { id: 'verdict' },
          element('thead', {}, element('tr', {}, ['Set', 'Measure', 'In use then', 'New', 'Change', 'At worst', 'May fall by', 'Subjects', ''].map((text, k) => element('th', { scope: 'col', class: k > 1 && k < 8 ? 'number' : '' }, text || element('span', {}, 'Result'))))),
          element(
            'tbody',
            {},
            version.table.map(row =>
              element(
                'tr',
                {},
                element('td', {}, row.set),
                element('th', { scope: 'row' }, row.measure),
                number(row.active),
                number(row.candidate),
                number(row.change),
                number(row.lower),
                number(row.margin),
                element('td', { class: 'number' }, String(row.subjects)),
                element('td', {}, row.allowed ? tag('held', 'passed') : tag('fell', 'refused')),
              ),
            ),
          ),
        ),
      ),
    );
    verdict.scrollIntoView({ block: 'nearest' });
  }

  await Promise.all([look(), loadVersions(), loadCorrections()]);
  return () => {
    isLeft = true;
    clearTimeout(timer);
    clearTimeout(judged);
  };
}

function chart(step, curve) {
  const at = curve.iterations;
  const span = Math.max(1, at[at.length - 1] - at[0]);
  const picture = document.createElementNS(SVG, 'svg');
  picture.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute('preserveAspectRatio', 'none');
  picture.setAttribute('class', 'curve');
  picture.setAttribute('role', 'img');
  picture.setAttribute('aria-label', `Agreement (Dice) of each structure over the training of step ${step}, from 0 below to 1 above`);
  const legend = element('div', { class: 'legend' });
  Object.entries(curve.dice).forEach(([name, values], k) => {
    const color = COLORS[k % COLORS.length];
    const points = values.map((value, j) => (value === null ? null : `${((at[j] - at[0]) / span) * WIDTH},${HEIGHT - value * HEIGHT}`)).filter(Boolean);
    const path = document.createElementNS(SVG, 'polyline');
    path.setAttribute('points', points.join(' '));
    path.setAttribute('stroke', color);
    picture.append(path);
    const swatch = element('span', { class: 'swatch' });
    swatch.style.cssText = `display: inline-block; background-color: ${color}`;
    const last = [...values].reverse().find(value => value !== null);
    legend.append(element('span', {}, swatch, ` ${name} ${last === undefined ? '-' : last.toFixed(2)}`));
  });
  return element('div', {}, element('h3', {}, `Step ${step}: agreement (Dice) on patches without augmentation, iteration ${at[0] ?? 0} to ${at[at.length - 1] ?? 0}`), picture, legend);
}
