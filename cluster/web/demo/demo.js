// The project tracker: a small front end on TanStack Query, whose queries the cluster keeps live. See docs/browser.md.

import './environment.js';
import { attach, connect } from '../client.js';
import { MutationObserver, QueryClient, QueryObserver } from './query-core/index.js';

const optimistic = {
  create_task: (task) => [{ append: { key: ['tasks', task.projectId], item: task } }],
  update_task: (task) => [{ merge_where: { key: ['tasks', task.projectId], where: { id: task.id }, value: task } }],
  delete_task: ({ id, projectId }) => [{ remove: { key: ['tasks', projectId], where: { id } } }],
};
const harbor = connect({ optimistic });
const queryClient = new QueryClient();
attach(queryClient, harbor);
queryClient.mount();
Object.assign(globalThis, { harbor, queryClient }); // for whoever opens the browser's tools

const $ = (id) => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const STATUSES = { todo: 'To do', in_progress: 'In progress', review: 'Review', done: 'Done' };

/** Mutations are TanStack Query's, routed to the cluster by their key. */
const act = (name, variables) =>
  new MutationObserver(queryClient, { mutationKey: [name] }).mutate(variables).catch((error) => error.code !== 'CANCELLED' && toast(`${name.replace('_', ' ')}: ${error.message}`));

// --- tasks -----------------------------------------------------------------------------------------------------------

const rows = new Map();

function row(task) {
  const title = make('input', { value: task.title, maxLength: 120, autocomplete: 'off' });
  const options = Object.entries(STATUSES).map(([value, text]) => make('option', { value, textContent: text }));
  const status = make('select', {}, ...options);
  const remove = make('button', { type: 'button', textContent: 'Delete' });
  const item = make('li', {}, title, status, remove);
  const made = { item, title, status, remove, task };
  const change = (changes) => act('update_task', { id: made.task.id, projectId: made.task.projectId, ...changes });
  title.addEventListener('change', () => (title.value.trim() ? change({ title: title.value.trim() }) : (title.value = made.task.title)));
  title.addEventListener('keydown', ({ key }) => key === 'Enter' && title.blur());
  status.addEventListener('change', () => change({ status: status.value }));
  remove.addEventListener('click', () => act('delete_task', { id: made.task.id, projectId: made.task.projectId }));
  return made;
}

function showTasks(tasks) {
  const ours = new Set(harbor.mutations.map(({ variables }) => variables.id));
  const shown = new Set(tasks.map(({ id }) => id));
  for (const [id, made] of rows) {
    if (shown.has(id)) continue;
    rows.delete(id);
    // What gets its real id for a temporary one stays the row it was: somebody may be typing there.
    const place = [...$('tasks').children].indexOf(made.item);
    const real = id.startsWith('temp-') && !rows.has(tasks[place]?.id) && tasks[place]?.title === made.task.title && tasks[place];
    if (real) rows.set(real.id, made);
    else made.item.remove();
  }
  tasks.forEach((task, place) => {
    const made = rows.get(task.id) ?? row(task);
    rows.set(task.id, made);
    made.task = task;
    if (document.activeElement !== made.title) made.title.value = task.title;
    made.status.value = task.status ?? 'todo';
    made.title.setAttribute('aria-label', `Title of task ${task.title}`);
    made.status.setAttribute('aria-label', `Status of ${task.title}`);
    made.remove.setAttribute('aria-label', `Delete ${task.title}`);
    made.item.className = ours.has(task.id) ? 'mine' : '';
    const there = $('tasks').children[place];
    if (there !== made.item) $('tasks').insertBefore(made.item, there ?? null);
  });
}

$('create').addEventListener('submit', (event) => {
  event.preventDefault();
  act('create_task', { id: `temp-${crypto.randomUUID()}`, projectId: project, title: $('title').value.trim() || 'Untitled', status: 'todo' });
  $('title').value = '';
});

// --- what is shown ----------------------------------------------------------------------------------------------------

let project = new URLSearchParams(location.search).get('project') ?? '1';
const tasks = new QueryObserver(queryClient, { queryKey: ['tasks', project] });
tasks.subscribe(({ data }) => showTasks(data ?? []));
harbor.on('mutation', () => showTasks(tasks.getCurrentResult().data ?? []));

new QueryObserver(queryClient, { queryKey: ['projects', 'list', {}] }).subscribe(({ data }) => {
  if (!Array.isArray(data)) return;
  $('projects').replaceChildren(...data.map(({ id, name }) => make('option', { value: id, textContent: name })));
  $('projects').value = project;
});
$('projects').addEventListener('change', () => {
  project = $('projects').value;
  history.replaceState(null, '', `?project=${encodeURIComponent(project)}`);
  tasks.setOptions({ queryKey: ['tasks', project] });
  enter();
});

new QueryObserver(queryClient, { queryKey: ['activity'] }).subscribe(({ data }) => {
  if (!Array.isArray(data)) return;
  const told = ({ verb, kind, text }) => [verb, kind, text].filter(Boolean).join(' ');
  $('activity').replaceChildren(...data.slice(0, 12).map((each) => make('li', { textContent: told(each) })));
});

// --- who is here ------------------------------------------------------------------------------------------------------

const name = `Guest ${Math.floor(Math.random() * 900 + 100)}`;
let room;

function enter() {
  room?.leave();
  room = harbor.presence(`project:${project}`, { state: { name } }, ({ members, count }) => {
    $('here').textContent = count === 1 ? 'Only you are here' : `${count} people are here`;
    const others = [...members.values()].filter(({ member, state }) => member !== harbor.session && state?.cursor);
    $('cursors').replaceChildren(
      ...others.map(({ state }) => {
        const cursor = make('span', { className: 'cursor', textContent: String(state.name) });
        cursor.style.left = `${Number(state.cursor.x) * 100}%`;
        cursor.style.top = `${Number(state.cursor.y)}px`;
        return cursor;
      }),
    );
  });
}
enter();
$('board').addEventListener('pointermove', ({ clientX, clientY }) => {
  const { left, top, width } = $('board').getBoundingClientRect();
  room.update({ name, cursor: { x: Math.round(((clientX - left) / width) * 1000) / 1000, y: Math.round(clientY - top) } });
});

// --- the connection ---------------------------------------------------------------------------------------------------

function showState() {
  const waiting = harbor.mutations.filter(({ status }) => status === 'waiting').length;
  $('state').textContent = harbor.state + (waiting ? `, ${waiting} to be sent` : '');
  $('state').className = harbor.state;
}
showState();
harbor.on('state', showState);
harbor.on('mutation', showState);
$('offline').addEventListener('change', ({ target }) => (target.checked ? harbor.disconnect() : harbor.reconnect()));

function toast(text, label, action, forMs = 6000) {
  const shown = make('div', { className: 'toast' }, make('span', { textContent: text }));
  if (label) {
    const button = make('button', { type: 'button', textContent: label });
    button.addEventListener('click', () => (shown.remove(), action()));
    shown.append(button);
  }
  $('toasts').append(shown);
  setTimeout(() => shown.remove(), forMs);
}
harbor.on('notice', ({ code, message, mutation_id: id, until_ms: until }) => {
  if (code === 'undo_available') toast('The task is deleted', 'Undo', () => harbor.undo(id).catch((error) => toast(error.message)), until - harbor.clockOffset - Date.now());
  else toast(message);
});
