// Builds elements; text is always text, never markup.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) {
      made.addEventListener(key.slice(2), value);
    } else if (key in made && typeof value === 'boolean') {
      made[key] = value;
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(key, value === true ? '' : value);
    }
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ''));
  return made;
}

export function tag(text, kind = text) {
  return element('span', { class: `tag ${kind.replace(' ', '-')}` }, text);
}

export function say(text, isWrong = false) {
  const place = document.getElementById('message');
  place.textContent = text;
  place.classList.toggle('wrong', isWrong);
}

export function day(text) {
  if (!text) {
    return '';
  }
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
}

// A time that people estimate: minutes, or hours.
export function duration(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 90 ? `about ${minutes} min` : `about ${Math.round(minutes / 60)} h`;
}

export function percent(share) {
  return share === null || share === undefined ? '' : `${Math.round(100 * share)} %`;
}

// Whether a key is meant for a field or a dialog, not for the view.
export function isTyping(event) {
  const field = event.target.closest('input, textarea, select, dialog');
  return event.ctrlKey || event.metaKey || event.altKey || field !== null;
}

// Opens the dialog with a form; resolves to what `read(form)` returns, or null if it is canceled.
export function ask(title, content, { yes = 'OK', read = () => true, ready = () => {} } = {}) {
  const dialog = document.getElementById('dialog');
  return new Promise(resolve => {
    const form = element(
      'form',
      { method: 'dialog' },
      element('h2', { id: 'dialog-title' }, title),
      content,
      element(
        'div',
        { class: 'bar' },
        element('button', { type: 'button', onclick: () => dialog.close('no') }, 'Cancel'),
        element('button', { class: 'main', value: 'yes', id: 'dialog-yes' }, yes),
      ),
    );
    dialog.replaceChildren(form);
    dialog.returnValue = '';
    dialog.onclose = () => resolve(dialog.returnValue === 'yes' ? read(form) : null);
    dialog.showModal();
    ready(form);
  });
}
