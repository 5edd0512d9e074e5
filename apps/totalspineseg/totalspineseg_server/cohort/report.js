const main = document.querySelector('main');
const dialog = document.querySelector('dialog');
const cards = [...main.querySelectorAll('article')];
const $ = id => document.getElementById(id);
const KEPT = `totalspineseg-report:${location.pathname}`;
const compare = new Intl.Collator(undefined, { numeric: true }).compare;
const box = card => card.querySelector('[type=checkbox]');
const note = card => card.querySelector('[type=text]');
const visible = () => [...main.children].filter(card => !card.hidden);

// A reader's marks are stored in this browser. Some browsers store nothing for local files: there, they last until the page is closed.
function restore() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEPT)) || {};
    for (const card of cards.filter(one => one.dataset.scan in stored)) {
      [box(card).checked, note(card).value] = stored[card.dataset.scan];
    }
  } catch (error) {
    // Nothing is stored.
  }
}

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(cards.map(card => [card.dataset.scan, [box(card).checked, note(card).value]]))));
  } catch (error) {
    // Nothing can be stored.
  }
}

function draw() {
  const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  const filter = $('shown').value;
  const keys = { urgency: card => -Number(card.dataset.urgency), scan: () => 0, view: card => card.dataset.view, seconds: card => -Number(card.dataset.seconds) };
  const key = keys[$('order').value];
  for (const card of cards) {
    const fits = !filter || (filter === 'check' ? box(card).checked : card.dataset.names === filter);
    const text = card.querySelector('.about').textContent.toLowerCase();
    card.hidden = !(fits && words.every(word => text.includes(word)));
  }
  const order = (a, b) => {
    const [left, right] = [key(a), key(b)];
    return (typeof left === 'number' ? left - right : compare(left, right)) || compare(a.dataset.scan, b.dataset.scan);
  };
  main.append(...[...cards].sort(order));
  count();
}

function count() {
  const wanted = cards.filter(card => box(card).checked).length;
  $('count').textContent = `${visible().length} of ${cards.length} scans, ${wanted} to check`;
}

function blink() {
  const isRaw = document.body.classList.toggle('raw');
  $('blink').setAttribute('aria-pressed', String(isRaw));
}

function current() {
  return document.activeElement?.closest('article') || visible().find(card => card.getBoundingClientRect().bottom > $('bar').offsetHeight + 20);
}

function go(by) {
  const all = visible();
  const isInside = document.activeElement?.closest('article');
  const place = all.indexOf(current()) + (isInside ? by : Math.min(by, 0));
  const card = all[Math.max(0, Math.min(place, all.length - 1))];
  card?.focus({ preventScroll: true });
  card?.scrollIntoView({ block: 'start' });
}

function enlarge(card) {
  const sheet = card?.querySelector('svg');
  if (sheet) {
    dialog.replaceChildren(sheet.cloneNode(true));
    dialog.showModal();
  }
}

function cell(text) {
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// The scans to check, in the displayed order, for a spreadsheet.
function list() {
  const lines = [...main.children].filter(card => box(card).checked).map(card => {
    const reasons = [...card.querySelectorAll('li')].map(item => item.textContent).join(' ');
    return [card.dataset.scan, card.dataset.names, card.dataset.view, note(card).value, reasons].map(cell).join(',');
  });
  return `scan,names,levels in view,note,reasons\n${lines.map(line => `${line}\n`).join('')}`;
}

function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([list()], { type: 'text/csv;charset=utf-8' }));
  link.download = 'to_check.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function toggle(card) {
  if (card) {
    box(card).checked = !box(card).checked;
    keep();
    count();
  }
}

const commands = {
  j: () => go(1),
  k: () => go(-1),
  b: blink,
  c: () => toggle(current()),
  n: () => note(current())?.focus(),
  e: save,
  Enter: () => enlarge(current()),
};
document.addEventListener('keydown', event => {
  const isTyping = event.target.closest('input:not([type=checkbox]), select');
  if (event.key === 'Escape' && isTyping) {
    event.target.closest('article')?.focus();
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !(event.key in commands)) {
    return;
  }
  if ((dialog.open && event.key !== 'b') || (event.key === 'Enter' && event.target.closest('a, button, summary, [type=checkbox]'))) {
    return;
  }
  event.preventDefault();
  commands[event.key]();
});
$('bar').addEventListener('submit', event => event.preventDefault());
$('bar').addEventListener('input', draw);
$('blink').addEventListener('click', blink);
$('save').addEventListener('click', save);
main.addEventListener('input', () => {
  keep();
  count();
});
main.addEventListener('click', event => event.target.closest('svg') && enlarge(event.target.closest('article')));
dialog.addEventListener('click', () => dialog.close());
restore();
draw();
