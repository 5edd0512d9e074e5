// Shows the view that the address names, and signs in if the server asks for it.

import { Refused, get, isSignedIn, readerName, setReaderName, signIn, signOut } from '/lab/api.js';
import { ask, element, say } from '/lab/dom.js';
import * as learning from '/lab/learning.js';
import * as review from '/lab/review.js';
import * as worklist from '/lab/worklist.js';

const VIEWS = { worklist, review, learning };
const TITLES = { worklist: 'Worklist', review: 'Review', learning: 'Learning' };
let current = null;

function place() {
  const [, name, ...rest] = location.hash.split('/');
  return { name: name in VIEWS ? name : 'worklist', argument: decodeURIComponent(rest.join('/')) };
}

async function show() {
  const { name, argument } = place();
  current?.leave?.();
  for (const link of document.querySelectorAll('nav a[data-view]')) {
    link.toggleAttribute('aria-current', link.dataset.view === name);
    if (link.dataset.view === name) {
      link.setAttribute('aria-current', 'page');
    }
  }
  document.title = `${TITLES[name]} - TotalSpineSeg`;
  say('');
  // An element for this view alone: what another view still adds is not displayed.
  const view = element('div', { class: 'view' });
  document.getElementById('view').replaceChildren(view);
  const running = { leave: null };
  current = running;
  try {
    running.leave = await VIEWS[name].show(view, argument);
    if (current !== running) {
      running.leave?.();
    } else {
      document.getElementById('view').focus();
    }
  } catch (error) {
    await failed(error);
  }
}

async function failed(error) {
  say(error.message, true);
  if (error.status === 401) {
    const fields = [
      element('label', {}, 'User name ', element('input', { name: 'user', autocomplete: 'username', required: true })),
      element(
        'label',
        {},
        'Password ',
        element('input', { name: 'password', type: 'password', autocomplete: 'current-password', required: true }),
      ),
    ];
    const read = form => [form.elements.user.value, form.elements.password.value];
    const reply = await ask('Sign in', fields, { yes: 'Sign in', read });
    if (reply) {
      try {
        await signIn(...reply);
      } catch (refusal) {
        // An identity server may refuse with another status.
        await failed(refusal.status >= 400 && refusal.status < 500 ? new Refused(401, refusal.message) : refusal);
        return;
      }
      await start();
    }
  }
}

async function start() {
  document.getElementById('sign-out').hidden = !isSignedIn();
  document.getElementById('who').hidden = isSignedIn();
  await show();
  try {
    const warning = (await get('/info/')).warning || '';
    document.getElementById('warning').textContent = warning;
    document.getElementById('warning').hidden = !warning;
  } catch (error) {
    document.getElementById('warning').hidden = true;
  }
}

const name = document.getElementById('name');
name.value = readerName();
name.addEventListener('change', () => setReaderName(name.value));
document.getElementById('sign-out').addEventListener('click', () => {
  signOut();
  start();
});
window.addEventListener('hashchange', show);
window.addEventListener('unhandledrejection', event => failed(event.reason));
start();
