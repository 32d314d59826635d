'use strict';
// All text from outside goes through text nodes: nothing is ever read as HTML.
(() => {
const byId = (id) => document.getElementById(id);
const view = byId('view');

/** An element: properties, then children (text or elements). */
function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'class') node.className = value;
    else if (value === true) node.setAttribute(key, '');
    else node.setAttribute(key, String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function say(text, bad) {
  const said = byId('said');
  said.textContent = text;
  said.className = bad ? 'tag bad' : text ? 'tag good' : '';
}

async function get(path) {
  const answer = await fetch(path, { cache: 'no-store' });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `${path}: ${answer.status}`);
  return answer;
}
const json = async (path) => (await get(path)).json();
const query = (pairs) => {
  const all = new URLSearchParams();
  for (const [name, value] of pairs) if (value !== '' && value !== null && value !== undefined) all.append(name, value);
  // A plus sign means itself here, so blanks are escaped otherwise.
  return all.toString().replaceAll('+', '%20');
};

async function post(path, done) {
  try {
    const answer = await fetch(path, { method: 'POST' });
    const text = (await answer.text()).trim();
    if (!answer.ok) throw new Error(text || String(answer.status));
    say(done || text);
    refresh();
    return text;
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

const number = (value) => (value === undefined || value === null ? '' : Number(value).toLocaleString('en-US'));
const bytes = (value) => {
  if (value === undefined || value === null) return '';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (value >= 1024 && at + 1 < units.length) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
};
const millis = (value) => (value === undefined || value === null ? '' : value < 1000 ? `${Number(value.toPrecision(3))} ms` : `${(value / 1000).toFixed(1)} s`);
const seconds = (value) => {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'm'], [1, 's']];
  const out = [];
  for (const [size, unit] of parts) if (value >= size && out.length < 2) { out.push(`${Math.floor(value / size)}${unit}`); value %= size; }
  return out.join(' ') || '0s';
};
const time = (text) => text.replace('T', ' ').replace('Z', '');
const clusterLink = (name) => (name ? el('a', { href: `#clusters/${encodeURIComponent(name)}` }, name) : '');

/** A table: columns are [title, cell of a row, kind of cell]. */
function table(caption, columns, rows, kindOf) {
  if (!rows.length) return el('p', { class: 'soft' }, `No ${caption}.`);
  const head = el('tr', {}, columns.map(([title, , kind]) => el('th', { scope: 'col', class: kind }, title)));
  const body = rows.map((row) => el('tr', { class: kindOf && kindOf(row) }, columns.map(([, cell, kind]) => el('td', { class: kind }, cell(row)))));
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, el('table', {}, el('thead', {}, head), el('tbody', {}, body)));
}

/** A table of all that is known of something. */
const facts = (value) => el('table', {}, el('tbody', {}, Object.entries(value).map(([name, fact]) =>
  el('tr', {}, el('th', { scope: 'row' }, name.replaceAll('_', ' ')), el('td', { class: 'w' }, typeof fact === 'object' ? JSON.stringify(fact) : fact)))));

// Overview: figures and charts, from differences between two looks.
const MOST = 300;
const series = { at: [], rate: [], failed: [], median: [], tail: [], connections: [], active: [], waiting: [] };
let before = null;
let charts = [];

/** The time within which a share of the requests between two looks was over. */
function quantile(bounds, counts, share) {
  const total = counts[counts.length - 1];
  if (!total) return null;
  const wanted = total * share;
  const at = counts.findIndex((count) => count >= wanted);
  const [from, below] = at > 0 ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  const inside = counts[at] - below;
  return from + (bounds[at] - from) * (inside ? (wanted - below) / inside : 1);
}

function take(now) {
  const at = Date.now() / 1000;
  const span = before ? Math.max(at - before.at, 0.001) : 0;
  const since = (name) => Math.max(now[name] - before.data[name], 0);
  if (before && before.data.uptime_seconds <= now.uptime_seconds) {
    const counts = now.latency_counts.map((count, index) => Math.max(count - before.data.latency_counts[index], 0));
    series.at.push(at);
    series.rate.push(since('requests_total') / span);
    series.failed.push(since('responses_5xx') / span);
    series.median.push(quantile(now.latency_bounds_ms, counts, 0.5));
    series.tail.push(quantile(now.latency_bounds_ms, counts, 0.99));
    series.connections.push(now.connections);
    series.active.push(now.requests_active);
    series.waiting.push(now.waiting);
    if (series.at.length > MOST) for (const list of Object.values(series)) list.shift();
  }
  before = { at, data: now };
  const state = byId('state');
  state.textContent = now.state;
  state.className = `tag ${now.state === 'LIVE' ? 'good' : 'warn'}`;
  byId('who').textContent = `${now.node || ''} ${now.version.split('/')[1] || ''} up ${seconds(now.uptime_seconds)}`;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clock = (at) => new Date(at * 1000).toLocaleTimeString('en-GB');
const boxOf = (title) => el('div', { class: 'chart', role: 'img', 'aria-label': `${title} over time` }, el('h3', {}, title));
function chart(box, lines, unit) {
  const axis = { stroke: colour('--soft'), grid: { stroke: colour('--line'), width: 1 }, ticks: { stroke: colour('--line') } };
  const plot = new uPlot({
    width: Math.max(box.clientWidth - 16, 200), height: 170,
    scales: { y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] } },
    axes: [{ ...axis, space: 80, values: (_, all) => all.map((at) => (at === Math.round(at) ? clock(at) : '')) }, { ...axis, size: 72, values: (_, all) => all.map(unit || number) }],
    series: [{ value: (_, at) => (at ? clock(at) : '') },
      ...lines.map(([label, , name]) => ({ label, stroke: colour(name), width: 2, spanGaps: true, value: (_, value) => (value === null || value === undefined ? '-' : (unit || ((x) => number(Math.round(x * 10) / 10)))(value)) }))],
  }, [series.at, ...lines.map(([, list]) => series[list])], box);
  charts.push({ plot, box, lines });
}

const overview = {
  title: 'Overview',
  build() {
    // All boxes first: each is as wide as there is room beside the others.
    const boxes = ['Requests per second', 'Time of requests', 'Open now', 'Waiting in queues'].map(boxOf);
    view.append(el('h2', {}, 'Overview'), el('div', { class: 'cards', id: 'cards' }), el('div', { class: 'charts' }, boxes));
    charts = [];
    chart(boxes[0], [['all', 'rate', '--accent'], ['5xx', 'failed', '--bad']]);
    chart(boxes[1], [['median', 'median', '--good'], ['99 %', 'tail', '--warn']], millis);
    chart(boxes[2], [['connections', 'connections', '--accent'], ['requests', 'active', '--good']]);
    chart(boxes[3], [['requests', 'waiting', '--warn']]);
  },
  async show() {
    const now = before.data;
    const rate = series.rate.length ? series.rate[series.rate.length - 1] : 0;
    const cards = [
      ['requests/s', number(Math.round(rate * 10) / 10)], ['requests', number(now.requests_total)], ['5xx', number(now.responses_5xx)],
      ['4xx', number(now.responses_4xx)], ['active requests', number(now.requests_active)], ['connections', number(now.connections)],
      ['upstream connections', number(now.upstream_connections)], ['waiting', number(now.waiting)], ['retries', number(now.retries_total)],
      ['listeners', number(now.listeners)], ['clusters', number(now.clusters)], ['workers', number(now.workers)],
      ['generation', number(now.generation)], ['overrides', number(now.overrides)], ['memory', bytes(now.memory_bytes)],
    ];
    byId('cards').replaceChildren(...cards.map(([name, value]) => el('div', { class: 'card' }, el('b', {}, value), el('span', {}, name))),
      ...(now.waits_for.length ? [el('div', { class: 'card' }, el('b', {}, now.waits_for.length), el('span', {}, `waits for ${now.waits_for.slice(0, 3).join(', ')}`))] : []));
    for (const { plot, lines } of charts) plot.setData([series.at, ...lines.map(([, list]) => series[list])]);
  },
};

function filterBox(label, value, change) {
  const input = el('input', { type: 'search', id: 'filter', value, oninput: () => change(input.value) });
  return el('div', { class: 'bar' }, el('label', { class: 'row' }, `${label} (/)`, input));
}

const health = { healthy: 'good', degraded: 'warn', unhealthy: 'bad', excluded: 'warn' };
const clusters = {
  title: 'Clusters',
  build(filter) {
    view.append(el('h2', {}, 'Clusters and endpoints'), filterBox('Clusters with', filter, (text) => { clusters.filter = text; refresh(); }), el('div', { id: 'body' }));
    clusters.filter = filter;
  },
  async show(body) {
    const all = await json(`overview/clusters?${query([['format', 'json'], ['filter', clusters.filter]])}`);
    const parts = all.clusters.map((cluster) => {
      const limit = ({ now, limit: most }) => `${number(now)} of ${most >= 4294967295 ? '∞' : number(most)}`;
      const state = !cluster.endpoints_in_all ? 'idle' : cluster.healthy === cluster.endpoints_in_all ? 'good' : cluster.healthy ? 'warn' : 'bad';
      const columns = [
        ['Endpoint', (e) => [e.address, e.hostname ? el('div', { class: 'soft' }, e.hostname) : null], 'w'],
        ['State', (e) => el('span', { class: `tag ${health[e.health]}` }, e.health)],
        ['Flags', (e) => (e.flags === 'healthy' ? '' : e.flags), 'w'],
        ['Weight', (e) => [number(e.weight), e.override_weight ? ` → ${number(e.override_weight)}` : ''], 'n'],
        ['Priority', (e) => number(e.priority), 'n'],
        ['Queue', (e) => number(e.waiting), 'n'],
        ['Requests', (e) => (e.request_limit !== undefined ? `${number(e.requests)} of ${number(e.override_limit || e.request_limit)}` : number(e.rq_active)), 'n'],
        ['Connections', (e) => number(e.cx_active), 'n'],
        ['Total', (e) => number(e.rq_total), 'n'],
        ['Errors', (e) => number(e.rq_error), 'n'],
        ['Timeouts', (e) => number(e.rq_timeout), 'n'],
        ['No connection', (e) => number(e.cx_connect_fail), 'n'],
        ['', (e) => el('button', { class: 'small', 'aria-label': `Override endpoint ${e.address}`, onclick: () => { location.hash = `#overrides/${encodeURIComponent(cluster.name)}/${encodeURIComponent(e.address)}`; } }, 'override')],
      ];
      return el('section', {}, el('h3', {}, cluster.name, ' ', el('span', { class: `tag ${state}` }, `${cluster.healthy} of ${cluster.endpoints_in_all} healthy`)),
        el('p', { class: 'soft' }, `connections ${limit(cluster.connections)}, requests ${limit(cluster.requests)}, pending ${limit(cluster.pending_requests)}, retries ${limit(cluster.retries)}`,
          cluster.waiting === undefined ? '' : `, waiting ${number(cluster.waiting)}`, cluster.checked ? ', checked' : ''),
        table('endpoints', columns, cluster.endpoints, (e) => (e.health === 'healthy' ? 'good' : health[e.health])),
        cluster.endpoints_in_all > cluster.endpoints.length ? el('p', { class: 'soft' }, `and ${cluster.endpoints_in_all - cluster.endpoints.length} more`) : null);
    });
    if (all.clusters_in_all > all.clusters.length) parts.push(el('p', {}, `${all.clusters_in_all - all.clusters.length} more clusters: use the filter.`));
    fill(body, parts.length ? parts : [el('p', { class: 'soft' }, 'No clusters.')]);
  },
};

/** Replaces what a section shows, and keeps the focus where it was. `body` is not shown any more if the section was left meanwhile. */
function fill(body, parts) {
  const places = [...body.querySelectorAll('button,a,summary,input,select')];
  const at = places.indexOf(document.activeElement);
  const open = new Set([...body.querySelectorAll('details[open][data-key]')].map((node) => node.dataset.key));
  body.replaceChildren(...parts);
  for (const node of body.querySelectorAll('details[data-key]')) if (open.has(node.dataset.key)) node.open = true;
  if (at >= 0) { const again = [...body.querySelectorAll('button,a,summary,input,select')][at]; if (again) again.focus({ preventScroll: true }); }
}

const routes = {
  title: 'Routes', slow: true,
  build() { view.append(el('h2', {}, 'Listeners, filter chains, routes'), el('div', { id: 'body' })); },
  async show(body) {
    const { listeners } = await json('overview/routes?format=json');
    const chain = (of, c, index) => {
      const wants = [c.port && `port ${c.port}`, c.ranges && c.ranges.join(' '), c.server_names && c.server_names.join(' '), c.protocols && c.protocols.join(' '), c.transport].filter(Boolean);
      const to = c.clusters ? el('div', {}, 'to ', c.clusters.map((name, at) => [at ? ', ' : '', clusterLink(name)])) : null;
      const http = c.http ? [el('div', { class: 'soft' }, `filters: ${c.http.filters.join(', ') || 'none'}`),
        c.http.missing ? el('div', { class: 'tag bad' }, `routes ${c.http.discovered_as} have not arrived`) : null,
        ...(c.http.virtual_hosts || []).map((host, at) => el('details', { 'data-key': `${of}/${index}/${at}`, open: (c.http.virtual_hosts || []).length < 4 },
          el('summary', {}, host.name, ' ', el('span', { class: 'soft' }, host.domains.join(', '))),
          table('routes', [['#', (r) => host.routes.indexOf(r), 'n'], ['Name', (r) => r.name || '', 'w'], ['Takes', (r) => r.takes, 'w'], ['Does', (r) => r.does],
            ['Clusters', (r) => (r.clusters || []).map((name, n) => [n ? ', ' : '', clusterLink(name)]), 'w']], host.routes)))] : [];
      return el('details', { 'data-key': `${of}/${index}`, open: true }, el('summary', {}, el('b', {}, c.name || `filter chain ${index}`), ' ', el('span', { class: 'tag' }, c.does), c.tls ? el('span', { class: 'tag good' }, 'TLS') : null, ' ', el('span', { class: 'soft' }, wants.join(', ') || 'any connection')), to, ...http);
    };
    fill(body, listeners.length ? listeners.map((listener) => el('details', { 'data-key': listener.name, open: listeners.length < 6 },
      el('summary', {}, el('b', {}, listener.name), ' ', el('span', { class: 'soft' }, listener.addresses.join(', '))),
      listener.filter_chains.map((c, index) => chain(listener.name, c, index)))) : [el('p', { class: 'soft' }, 'No listeners.')]);
  },
};

const failures = {
  title: 'Failures',
  build() { view.append(el('h2', {}, 'What failed last'), el('div', { id: 'body' })); },
  async show(body) {
    const all = await json('failures?format=json&limit=100');
    const columns = [
      ['Time', (f) => time(f.time)],
      ['Why', (f) => el('details', { 'data-key': `${f.time}${f.client}` }, el('summary', {}, f.why), facts(f)), 'w'],
      ['Request', (f) => (f.kind === 'request' ? `${f.method} ${f.host || ''}${f.path}` : 'connection'), 'w'],
      ['Code', (f) => f.code || '-', 'n'], ['Flags', (f) => (f.flags === '-' ? '' : el('span', { class: 'tag bad' }, f.flags))],
      ['Cluster', (f) => clusterLink(f.cluster), 'w'], ['Endpoint', (f) => f.endpoint || ''], ['Tries', (f) => f.tries, 'n'], ['Took', (f) => millis(f.duration_ms), 'n'],
    ];
    fill(body, [el('p', { class: 'soft' }, `${number(all.failed_in_all)} in all since the start. ${all.warning || ''}`), table('failures', columns, all.failures)]);
  },
};

const requests = {
  title: 'Live requests',
  build() { view.append(el('h2', {}, 'Live requests and connections'), el('div', { id: 'body' })); },
  async show(body) {
    const all = await json('requests?format=json&limit=200');
    const columns = [
      ['Id', (r) => r.id], ['Age', (r) => millis(r.age_ms), 'n'], ['Doing', (r) => el('span', { class: `tag ${r.phase === 'waiting in queue' ? 'warn' : ''}` }, r.phase)],
      ['What', (r) => r.line || r.kind, 'w'], ['Client', (r) => r.client], ['Listener', (r) => r.listener, 'w'], ['Route', (r) => r.route || '', 'w'],
      ['Cluster', (r) => clusterLink(r.cluster), 'w'], ['Endpoint', (r) => r.endpoint || ''], ['In', (r) => bytes(r.bytes_received), 'n'], ['Out', (r) => bytes(r.bytes_sent), 'n'], ['Tries', (r) => r.tries, 'n'],
      ['', (r) => el('button', { class: 'small', 'aria-label': `End ${r.id}`, onclick: () => confirm(`End ${r.id}?`) && post(`requests/kill?${query([['id', r.id]])}`, `${r.id} is ended`) }, 'end')],
    ];
    fill(body, [el('p', { class: 'soft' }, `${number(all.total)} now. ${all.warning || ''}`), table('live requests', columns, all.requests)]);
  },
};

const history = {
  title: 'Configuration', slow: true,
  build() {
    const field = (name) => el('label', {}, `${name} generation`, el('input', { name, type: 'number', min: 0, required: true }));
    const form = el('form', { class: 'bar', onsubmit: async (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const diff = byId('diff');
      try { diff.textContent = await (await get(`config_history/diff?${query(data.entries())}`)).text(); say(''); } catch (error) { say(error.message, true); }
    } }, field('from'), field('to'), el('button', { class: 'main' }, 'Compare'));
    view.append(el('h2', {}, 'What changed the configuration'), form, el('pre', { id: 'diff', 'aria-live': 'polite', 'aria-label': 'differences' }, 'Two generations can be compared.'), el('div', { id: 'body' }), el('div', { id: 'coverage' }));
  },
  async show(body) {
    const [all, coverage] = await Promise.all([json('config_history?format=json&limit=100'), json('coverage?format=json')]);
    const names = (label, list) => (list ? el('div', {}, el('span', { class: 'tag' }, label), ' ', list.join(', ')) : null);
    const columns = [
      ['Time', (p) => time(p.time)], ['Type', (p) => p.type], ['Generation', (p) => number(p.generation), 'n'], ['Version', (p) => p.version || '', 'w'],
      ['Verdict', (p) => el('span', { class: `tag ${p.verdict === 'accepted' ? 'good' : 'bad'}` }, p.verdict)],
      ['What', (p) => [names('added', p.added), names('changed', p.changed), names('removed', p.removed), p.unchanged ? el('div', { class: 'soft' }, `${p.unchanged} unchanged`) : null,
        ...(p.rejected || []).map((r) => el('div', {}, el('span', { class: 'tag bad' }, r.name), ' ', r.reason))], 'w'],
      ['From', (p) => p.source, 'w'],
    ];
    const idle = [['Type', (f) => f.type], ['Resource', (f) => f.name, 'w'], ['Field', (f) => f.field, 'w'], ['Why it has no effect', (f) => f.why_no_effect, 'w']];
    fill(body, [table('pushes', columns, all.pushes), el('h3', {}, `Fields without effect (${coverage.fields_without_effect})`), table('fields without effect', idle, coverage.fields.slice(0, 500))]);
  },
};

const explain = {
  title: 'Explain', still: true,
  build() {
    const field = (name, label, hint) => el('label', {}, label, el('input', { name, placeholder: hint, autocomplete: 'off', spellcheck: 'false' }));
    const headers = el('textarea', { name: 'headers', rows: 2, placeholder: 'x-user: alice', 'aria-label': 'headers, one a line' });
    const form = el('form', { class: 'grid', onsubmit: async (event) => {
      event.preventDefault();
      const data = [...new FormData(form).entries()].filter(([name]) => name !== 'headers');
      for (const line of headers.value.split('\n')) if (line.trim()) data.push(['header', line]);
      const body = byId('body');
      try { body.replaceChildren(el('pre', { id: 'account', tabindex: 0 }, await (await get(`explain?${query(data)}`)).text())); say(''); } catch (error) { say(error.message, true); }
    } }, field('method', 'Method', 'GET'), field('host', 'Host', 'a.example'), field('path', 'Path', '/'),
    el('label', {}, 'Listener', el('select', { name: 'listener', id: 'listeners' }, el('option', { value: '' }, 'by destination'))),
    field('destination', 'Destination', '10.0.0.1:80'), field('source', 'Client', '127.0.0.1'), field('sni', 'Server name (TLS)', ''), field('alpn', 'ALPN', 'h2,http/1.1'),
    el('label', {}, 'Scheme', el('select', { name: 'scheme' }, el('option', { value: '' }, 'as TLS says'), el('option', {}, 'http'), el('option', {}, 'https'))),
    el('label', {}, 'Headers, one a line', headers), el('div', {}, el('button', { class: 'main' }, 'Explain')));
    view.append(el('h2', {}, 'What would a request get now?'), form, el('div', { id: 'body', 'aria-live': 'polite' }));
  },
  async show() {
    const select = byId('listeners');
    const { listeners } = await json('overview/routes?format=json');
    select.append(...listeners.map(({ name }) => el('option', {}, name)));
  },
};

const overrides = {
  title: 'Overrides',
  build(cluster = '', endpoint = '') {
    const kind = el('select', { name: 'kind' }, el('option', { value: 'drain' }, 'drain'), el('option', { value: 'weight' }, 'weight'), el('option', { value: 'limit' }, 'requests at a time'), el('option', { value: 'log' }, 'log level'), el('option', { value: 'sampling' }, 'percent of requests traced'));
    const form = el('form', { class: 'grid', onsubmit: (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const what = data.get('kind');
      const pairs = what === 'log' || what === 'sampling' ? [] : [['cluster', data.get('cluster')], ['endpoint', data.get('endpoint')]];
      pairs.push([what, what === 'drain' ? 'y' : data.get('value')], ['for', data.get('for')]);
      post(`override?${query(pairs)}`);
    } }, el('label', {}, 'What', kind), el('label', {}, 'Cluster', el('input', { name: 'cluster', value: cluster })), el('label', {}, 'Endpoint', el('input', { name: 'endpoint', value: endpoint })),
    el('label', {}, 'Value', el('input', { name: 'value' })), el('label', {}, 'For', el('input', { name: 'for', value: '10m', required: true, pattern: '[0-9]+[smh]' })), el('div', {}, el('button', { class: 'main' }, 'Override')));
    view.append(el('h2', {}, 'Changes for a while'), form, el('div', { id: 'body' }));
  },
  async show(body) {
    const all = await json('overrides?format=json');
    const columns = [['Id', (o) => o.id, 'n'], ['What', (o) => o.what, 'w'], ['Since', (o) => time(o.since)], ['Left', (o) => seconds(o.seconds_left), 'n'],
      ['', (o) => el('button', { class: 'small', 'aria-label': `Remove override ${o.id}`, onclick: () => post(`overrides/remove?${query([['id', o.id]])}`, `override ${o.id} is removed`) }, 'remove')]];
    fill(body, [table('overrides', columns, all.overrides, () => 'warn')]);
  },
};

const levels = ['trace', 'debug', 'info', 'warning', 'error', 'critical', 'off'];
const logs = {
  title: 'Log levels', still: true,
  build() { view.append(el('h2', {}, 'Levels of the log'), el('div', { id: 'body' })); },
  async show(body) {
    const answer = await fetch('logging', { method: 'POST' });
    const known = [...(await answer.text()).matchAll(/^ {2}(\S+): (\S+)$/gm)].map(([, name, level]) => ({ name, level }));
    const pick = (label, level, target) => {
      const select = el('select', { 'aria-label': `level of ${label}`, onchange: () => post(`logging?${target(select.value)}`, `${label}: ${select.value}`) }, level ? null : el('option', { value: '' }, 'choose'), levels.map((name) => el('option', { selected: name === level }, name)));
      return select;
    };
    fill(body, [el('p', {}, el('label', { class: 'row' }, 'All loggers ', pick('all loggers', '', (level) => query([['level', level]])))),
      table('loggers', [['Logger', (l) => l.name], ['Level', (l) => pick(l.name, l.level, (level) => query([['paths', `${l.name}:${level}`]]))]], known)]);
  },
};

const sections = { overview, clusters, routes, failures, requests, history, explain, overrides, logs };
let current = null;
let paused = false;
let busy = false;
let round = 0;

async function refresh(first) {
  if (busy && !first) return;
  busy = true;
  const section = current;
  const status = byId('status');
  try {
    take(await json('overview?format=json'));
    if (section === current && (first || !section.still)) await section.show(byId('body'));
    status.textContent = '';
    status.className = '';
  } catch (error) {
    status.textContent = `no data: ${error.message}`;
    status.className = 'bad';
  }
  busy = false;
}

async function open() {
  const [name, ...rest] = location.hash.slice(1).split('/');
  current = sections[name] || overview;
  say('');
  for (const { plot } of charts) plot.destroy();
  charts = [];
  view.replaceChildren();
  for (const link of byId('nav').children) {
    if (sections[link.dataset.name] === current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `outrigger: ${current.title}`;
  current.build(...(rest.length ? rest.map(decodeURIComponent) : ['']));
  await refresh(true);
}

byId('nav').append(...Object.entries(sections).map(([name, section], index) => el('a', { href: `#${name}`, 'data-name': name, 'aria-keyshortcuts': index + 1 }, el('kbd', {}, index + 1), section.title)));
const pause = () => { paused = !paused; byId('pause').setAttribute('aria-pressed', paused); byId('pause').textContent = paused ? 'Go on (p)' : 'Pause (p)'; };
const theme = () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
  open();
};
byId('pause').addEventListener('click', pause);
byId('theme').addEventListener('click', theme);
addEventListener('hashchange', () => { if (location.hash !== '#main') open(); });
addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const name = Object.keys(sections)[Number(event.key) - 1];
  if (name) location.hash = `#${name}`;
  else if (event.key === 'p') pause();
  else if (event.key === 't') theme();
  else if (event.key === '/' && byId('filter')) { event.preventDefault(); byId('filter').focus(); }
});
addEventListener('resize', () => { for (const { plot, box } of charts) plot.setSize({ width: Math.max(box.clientWidth - 16, 200), height: 170 }); });
setInterval(() => {
  round += 1;
  if (!paused && !document.hidden && !(current.slow && round % 5)) refresh();
}, 2000);
open();
})();
