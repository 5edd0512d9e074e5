// Asks the server. With sign-in each question carries the reader's token.

const TOKEN = 'totalspineseg-token';
const NAME = 'totalspineseg-name';
const STRATEGY = 'totalspineseg-strategy';

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function scanPath(id, more = '') {
  return `/scans/${encodeURIComponent(id)}${more}`;
}

export function ohifPath(row) {
  return `/ohif/monai-label?StudyInstanceUIDs=${encodeURIComponent(row.study)}`;
}

export function readerName() {
  return localStorage.getItem(NAME) || '';
}

export function setReaderName(name) {
  localStorage.setItem(NAME, name.trim());
}

// The order in which the next scan is chosen.
export function strategy() {
  return localStorage.getItem(STRATEGY) || 'doubtful_first';
}

export function setStrategy(name) {
  localStorage.setItem(STRATEGY, name);
}

export function isSignedIn() {
  return Boolean(sessionStorage.getItem(TOKEN));
}

export function signOut() {
  sessionStorage.removeItem(TOKEN);
}

async function fetched(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) {
    headers.authorization = `Bearer ${token}`;
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw new Refused(0, 'The server does not answer. Check that it runs, then try again.');
  }
  if (!response.ok) {
    let detail = '';
    try {
      detail = (await response.json()).detail;
    } catch (error) {
      detail = '';
    }
    throw new Refused(response.status, detail || `The server could not do this (status ${response.status}). Its log says why.`);
  }
  return response;
}

export async function get(path) {
  return (await fetched(path)).json();
}

export async function send(path, body = {}, method = 'POST') {
  const headers = { 'content-type': 'application/json' };
  return (await fetched(path, { method, headers, body: JSON.stringify(body) })).json();
}

export async function act(id, name, body = {}) {
  return send(scanPath(id, `/${name}`), { client_id: readerName(), ...body });
}

export async function predictOne(id) {
  await fetched(`/infer/totalspineseg?image=${encodeURIComponent(id)}&output=json`, { method: 'POST' });
}

// Returns an address for the content; empty if there is none (204).
export async function blobUrl(path) {
  const blob = await (await fetched(path)).blob();
  return blob.size ? URL.createObjectURL(blob) : '';
}

export async function signIn(username, password) {
  const response = await fetched('/auth/token', {
    method: 'POST',
    body: new URLSearchParams({ username, password, grant_type: 'password' }),
  });
  sessionStorage.setItem(TOKEN, (await response.json()).access_token || '');
}
